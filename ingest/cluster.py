"""Starts a Ray on this machine, or joins a cluster: what is wrong with it is one line, within seconds."""

import logging
import os
import socket
from pathlib import Path
from typing import Any

from ingest.child import Child, ChildDiedError, ChildTimeoutError, Reply, serve
from manifests.errors import InputError, first_line

KNOCK_LIMIT_S, CONNECT_LIMIT_S = 5.0, 20.0
NUM_TRIES = 4
MODE = "RAY_AUTH_MODE"
# Ray itself would try a task again for ever that is killed for its memory; it waits 1, 2, 4 ... s, at most a minute.
MAX_OOM_RETRIES = 8


def start_ray(num_workers: int | None, address: str | None) -> Any:
    """Ray, connected to the cluster at `address`; without one, started here with `num_workers` cores (None: all).

    Raises InputError when no cluster of the same Ray and Python answers there.
    """
    is_local = address in (None, "local")
    with_token = address is not None and not is_local and _check(address)
    _set_environment(with_token=with_token)
    # Imported here: Ray takes a second to import and --workers 0 does without it.
    import ray

    if is_local:
        ray.init(address="local", num_cpus=num_workers, include_dashboard=False, **_QUIET)
        return ray
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(
            f"the Ray cluster at {address} answered, and then didn't ({first_line(error)}); see `ray status`, and run "
            "the same command again"
        ) from error
    return ray


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def _set_environment(*, with_token: bool) -> None:
    # Ray's own choice for later versions, which it warns of until it is made.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Nothing is reported to anybody unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(MAX_OOM_RETRIES))
    logging.getLogger("ray").setLevel(logging.ERROR)
    if with_token:
        # Ray itself looks for a token only when it looks for the cluster, too.
        os.environ.setdefault(MODE, "token")


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").is_file()


def _check(address: str) -> bool:
    """Connects in a helper process first: where nothing answers as Ray does, Ray tries for minutes on end.

    Returns whether the cluster wants the token that there is. One that was started where there is a token does; to
    another it must not be shown, because then our side would want it of the workers there, whose results it would
    turn away, and wait for them for ever.
    """
    remedy = (
        "start one with `ray start --head`, correct --ray-address (or RAY_ADDRESS), such as HOST:6379, or leave it out "
        "to use this machine alone. If it asks for a token, put that into ~/.ray/auth_token or RAY_AUTH_TOKEN"
    )
    if "://" in address:
        raise InputError(
            f"{address} is an address of Ray's dashboard or of Ray Client, neither of which can run this; give that of "
            "the cluster itself, such as HOST:6379, on one of its machines, or leave it out to use this machine alone"
        )
    # What the user decided stays.
    ways = [False, True] if _has_token() and MODE not in os.environ else [False]
    problem = ""
    for with_token in ways:
        problem = _knock(address, remedy, with_token=with_token, is_last=with_token is ways[-1])
        if not problem:
            return with_token
    raise InputError(f"no Ray cluster answers at {address} ({problem}); {remedy}")


def _knock(address: str, remedy: str, *, with_token: bool, is_last: bool) -> str:
    """What is wrong with the cluster, seen by a helper process; empty where nothing is."""
    child = Child("ingest.cluster")
    try:
        header, _ = child.call({"address": address, "with_token": with_token, "is_last": is_last}, CONNECT_LIMIT_S)
    except ChildTimeoutError as error:
        raise InputError(
            f"what listens at {address} doesn't answer as a Ray cluster does, within {CONNECT_LIMIT_S:g} s; {remedy}"
        ) from error
    except ChildDiedError as error:
        raise InputError(f"no Ray cluster answers at {address} (Ray {error}); {remedy}") from error
    finally:
        child.close()
    return str(header["problem"])


def answer(request: dict[str, Any]) -> Reply:
    """The helper's side: what is wrong with the cluster at an address; empty where nothing is."""
    host, _, port = request["address"].rpartition(":")
    try:
        if host and port.isdigit():
            # At a closed door Ray would knock for a minute.
            socket.create_connection((host.strip("[]"), int(port)), KNOCK_LIMIT_S).close()
        _set_environment(with_token=request["with_token"])
        if not request["is_last"]:
            # Of a cluster that wants a token Ray would ask twenty times without one, a second apart.
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", str(NUM_TRIES))
        import ray

        ray.init(address=request["address"], **_QUIET)
        ray.shutdown()
    except (OSError, RuntimeError, ValueError) as error:
        return {"problem": " ".join(str(error).split())}, b""
    return {"problem": ""}, b""


if __name__ == "__main__":
    serve(answer)
