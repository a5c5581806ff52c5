"""What an ingest needs on this machine: what is there, what is missing, and how to get it.

Nothing is asked of the network unless an address (of Ray, of an object store) was given.
"""

import importlib.metadata
import logging
import os
import socket
import tempfile
import uuid
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile

from ingest.child import Child, ChildDiedError, ChildTimeoutError, Reply, serve
from ingest.decode import DECODER_ERRORS, decode, open_audio
from ingest.diskroom import disk_room
from ingest.ledger import ClipError
from ingest.location import open_location
from manifests.errors import InputError
from manifests.findings import Finding, Status
from manifests.geometry import FbankSpec, HogSpec, bytes_per_clip

# YouTube changes what yt-dlp must do every few weeks.
OLD_AFTER_DAYS = 60
SCARCE_BYTES, NEEDED_BYTES = 10e9, 1e9
TIME_LIMIT_S, CONNECT_LIMIT_S = 120.0, 5.0
_RATE_HZ = 48_000
_GET_YT_DLP = 'pip install -U "yt-dlp[default]"'


def examine(store: str | None, ray_address: str | None, *, with_ray: bool = True) -> list[Finding]:
    """Examines this machine for an ingest into `store` (a folder or a URL; None: ./data).

    Ray is started, or asked at `ray_address`, unless `with_ray` is off and no address is given; that takes seconds.
    """
    findings = [examine_yt_dlp(date.today()), examine_javascript(), examine_decoders(), examine_disk(store)]
    if with_ray or ray_address is not None:
        remedy = "pip install -U ray" if ray_address is None else "run `ray status` there, or leave out the address"
        findings.append(_ask("Ray", {"ray_address": ray_address}, remedy))
    if store is not None and "://" in store:
        remedy = "set the credentials in the environment (such as AWS_ACCESS_KEY_ID), and see that the bucket exists"
        findings.append(_ask("object store", {"store": store}, remedy))
    return findings


def examine_yt_dlp(today: date) -> Finding:
    """yt-dlp, how old it is, and the HTTP library that it is used with here."""
    try:
        version = importlib.metadata.version("yt-dlp")
        import yt_dlp.networking._requests  # noqa: F401 (raises where requests is missing or too old)
    except (importlib.metadata.PackageNotFoundError, ImportError) as error:
        return Finding("yt-dlp", Status.MISSING, f"it can't be used: {error}", _GET_YT_DLP)
    try:
        # 2026.10.26, and with a time behind it from the nightly builds
        released = date(*(int(part) for part in version.split(".")[:3]))
    except (ValueError, TypeError):
        return Finding("yt-dlp", Status.WARNING, f"{version}, which doesn't tell its date", _GET_YT_DLP)
    age_days = (today - released).days
    if age_days > OLD_AFTER_DAYS:
        return Finding("yt-dlp", Status.WARNING, f"{version}, {age_days} days old", _GET_YT_DLP)
    return Finding("yt-dlp", Status.OK, version)


def examine_javascript() -> Finding:
    """What yt-dlp solves YouTube's challenges with: a runtime, and the scripts of the package yt-dlp-ejs.

    No more than a warning: all sources but YouTube do without.
    """
    name, remedy = "JavaScript for YouTube", 'pip install -U "yt-dlp[default,deno]" (other sources do without)'
    try:
        import yt_dlp  # noqa: F401 (fills the table of runtimes)
        from yt_dlp.extractor.youtube.jsc._builtin import vendor
        from yt_dlp.globals import supported_js_runtimes
    except ImportError as error:
        return Finding(name, Status.WARNING, f"yt-dlp can't tell what it needs: {error}", _GET_YT_DLP)
    runtimes, problems = [], []
    for runtime, kind in supported_js_runtimes.value.items():
        info = kind().info
        if info is not None and info.supported:
            runtimes.append(f"{runtime} {info.version}")
        else:
            at_least = ".".join(map(str, kind.MIN_SUPPORTED_VERSION))
            problems.append(f"{runtime} {info.version} (needs {at_least})" if info else f"no {runtime} (>= {at_least})")
    if not runtimes:
        return Finding(name, Status.WARNING, ", ".join(problems), remedy)
    scripts = _version_of("yt-dlp-ejs")
    # Patch versions have the same scripts.
    if scripts is None or scripts.split(".")[:2] != vendor.VERSION.split(".")[:2]:
        found = f"{', '.join(runtimes)}, but yt-dlp-ejs {scripts or 'is missing'} (needs {vendor.VERSION})"
        return Finding(name, Status.WARNING, found, remedy)
    return Finding(name, Status.OK, f"{', '.join(runtimes)}, yt-dlp-ejs {scripts}")


def examine_decoders() -> Finding:
    """Decodes a sound of each common format, made on the spot."""
    good, bad = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in _WRITERS.items():
            try:
                path = Path(folder, f"tone.{name}")
                write(path)
                _check_tone(path)
                good.append(name)
            except (ClipError, ImportError, OSError, *DECODER_ERRORS) as error:
                bad.append(f"{name} ({error or type(error).__name__})")
    if bad:
        return Finding("decoders", Status.MISSING, "; ".join(bad), "pip install -U av soundfile")
    return Finding("decoders", Status.OK, ", ".join(good))


def examine_disk(store: str | None) -> Finding:
    """Room and permission where shards are written: in the store, or in the folder for temporary files before a URL."""
    place = Path(tempfile.gettempdir()) if store is not None and "://" in store else Path(store or "data")
    try:
        existing, free = disk_room(place)
    except InputError as error:
        remedy = "choose another --store, or change the folder's permissions"
        return Finding("disk", Status.MISSING, str(error), remedy)
    num_clips = free // bytes_per_clip(FbankSpec(), HogSpec())
    found = f"{free / 1e9:.1f} GB free at {existing}: shards of {num_clips:,} clips, downloads not counted"
    status = Status.MISSING if free < NEEDED_BYTES else Status.WARNING if free < SCARCE_BYTES else Status.OK
    return Finding("disk", status, found, "" if status is Status.OK else "make room, or choose another --store")


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tone() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Half a second at 440 Hz, rms 0.354."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(_RATE_HZ // 2) / _RATE_HZ)).astype(np.float32)


def _write_with_ffmpeg(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        codec = {".m4a": "aac", ".webm": "libopus"}[path.suffix]
        stream = cast("av.AudioStream", container.add_stream(codec, rate=_RATE_HZ, layout="mono"))
        frame = av.AudioFrame.from_ndarray((_tone() * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = _RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


_WRITERS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(("wav", "flac", "ogg", "mp3"), lambda path: soundfile.write(path, _tone(), _RATE_HZ)),
    **dict.fromkeys(("m4a", "webm"), _write_with_ffmpeg),
}


def _check_tone(path: Path) -> None:
    with open_audio(path) as source:
        samples = decode(source, _RATE_HZ, 0.1, 0.3)
    rms = float(np.sqrt(np.mean(samples**2))) if samples.size else 0.0
    if samples.size != round(0.3 * _RATE_HZ) or not 0.3 < rms < 0.4:
        raise ValueError(f"decodes wrongly: {samples.size} samples, rms {rms:.2f}")


def _ask(name: str, request: dict[str, Any], remedy: str) -> Finding:
    """Asks a helper process: what may hang must not hang the examination."""
    child = Child("ingest.doctor")
    try:
        header, _ = child.call(request, TIME_LIMIT_S)
    except (ChildTimeoutError, ChildDiedError) as error:
        return Finding(name, Status.MISSING, str(error), remedy)
    finally:
        child.close()
    if "problem" in header:
        return Finding(name, Status.MISSING, header["problem"], remedy)
    return Finding(name, Status.OK, header["found"])


def answer(request: dict[str, Any]) -> Reply:
    """The helper's side: starts or asks Ray, or tries an object store."""
    try:
        found = try_store(request["store"]) if "store" in request else try_ray(request["ray_address"])
    except Exception as error:  # Ray raises anything; whatever it is belongs into the examination
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"problem": lines[0][:200]}, b""
    return {"found": found}, b""


def try_ray(address: str | None) -> str:
    """Runs one task on a Ray of this machine, or on the one at `address`; says what is there."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        # Ray itself would knock for a minute at a closed door.
        socket.create_connection((host, int(port)), CONNECT_LIMIT_S).close()
    options = {"num_cpus": 1, "include_dashboard": False} if address is None else {}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        ray.get(ray.remote(num_cpus=1)(lambda: os.getpid()).remote())
        num_nodes, num_cores = len(ray.nodes()), ray.cluster_resources().get("CPU", 0)
    finally:
        ray.shutdown()
    where = "starts here" if address is None else f"at {address}: {num_nodes} machines, {num_cores:g} cores"
    return f"{ray.__version__}, {where}"


def try_store(url: str) -> str:
    """Writes, reads, lists and deletes a small file; raises OSError or InputError."""
    location, name, content = open_location(url), f"doctor-{uuid.uuid4().hex}.txt", b"written by ingest doctor\n"
    location.write(name, content)
    try:
        if location.read(name) != content or name not in location.files():
            raise InputError("what was written is not there afterwards")
    finally:
        location.delete(name)
    return f"{location}: can be written, read, listed and deleted from"


if __name__ == "__main__":
    serve(answer)
