"""The files that say what a run was made from: config.json, store.json and environment.json."""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from featurestore.store import Store
from ingest.atomic import exclusive, remove_stale
from ingest.location import Location, open_location
from manifests.errors import InputError
from training.config import RunConfig, differences
from training.distributed import world_size
from training.written import write_json, writing

CONFIG_FILE, ENVIRONMENT_FILE, STORE_FILE = "config.json", "environment.json", "store.json"
DEFAULT_HOME = Path("runs")
RECORDED_LIBRARIES = ("torch", "numpy", "zarr", "acm-sskd")


@contextmanager
def claimed(folder: Path, stores: Sequence[Store], config: RunConfig, device: torch.device) -> Iterator[None]:
    """Makes a run's folder, or checks that it is one of these stores and configuration, and holds its lock.

    Raises InputError when it is another run's, another process is at work there, or it can't be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} can't be a run's folder ({error.strerror}); choose another one with --run"
        ) from error
    with ExitStack() as held:
        with writing(folder):
            held.enter_context(exclusive(folder, "training"))
            for place in (folder, *folder.glob("iter*/"), *folder.glob("iter*/*/")):
                remove_stale(place)
        # The stores first: another one may resolve the configuration otherwise.
        _keep_stores(folder, stores)
        _keep_config(folder, config)
        _keep_environment(folder, device)
        yield


def read_config(folder: Path) -> RunConfig:
    """The resolved configuration of a run. Raises InputError when `folder` is no run."""
    path = folder / CONFIG_FILE
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a run: it has no {CONFIG_FILE}; make one with `training run`") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} is not a configuration that this version reads ({where + ': ' if where else ''}{first['msg']}); "
            "put it back as it was, or choose another folder with --run"
        ) from error


def _keep_config(folder: Path, config: RunConfig) -> None:
    path = folder / CONFIG_FILE
    if path.exists():
        changed = differences(read_config(folder), config)
        if changed:
            raise InputError(
                f"{folder} is a run of another configuration; it differs in {', '.join(changed)}: "
                "choose another folder with --run"
            )
    else:
        write_json(path, config.model_dump(mode="json"))


def _keep_stores(folder: Path, stores: Sequence[Store]) -> None:
    path = folder / STORE_FILE
    about = [
        {
            "store": _address(store),
            "dataset": store.file.dataset,
            "snapshot": store.snapshot.number,
            "fingerprint": store.snapshot.fingerprint,
        }
        for store in stores
    ]
    if not path.exists():
        write_json(path, {**about[0], "others": about[1:]})
        return
    known = _known_stores(folder)
    if len(known) != len(stores):
        names = ", ".join(entry.address for entry in known)
        raise InputError(f"{folder} was trained on {names}; name the same stores, or choose another folder with --run")
    for entry, store in zip(known, stores, strict=True):
        if entry.fingerprint != store.snapshot.fingerprint:
            raise InputError(
                f"{folder} was trained on {entry.address} with fingerprint {entry.fingerprint[:12]}; "
                f"{store.location} now has {store.snapshot.fingerprint[:12]}: choose another folder with --run"
            )


def _address(store: Store) -> str:
    """The store's address, from wherever the run is read."""
    return str(store.location) if store.location.folder is None else str(store.location.folder.resolve())


@dataclass(frozen=True)
class _Known:
    """What a run's folder says of one of its stores."""

    address: str
    fingerprint: str


def _known_stores(folder: Path) -> list[_Known]:
    """The stores of a run, the labelled one first. Raises InputError when the file is damaged."""
    path = folder / STORE_FILE
    content = _read_json(path)
    try:
        entries = [content, *content.get("others", [])]
        return [_Known(str(entry["store"]), str(entry["fingerprint"])) for entry in entries]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged, it names no store; choose another folder with --run") from error


def open_recorded_snapshots(folder: Path, addresses: Sequence[Location]) -> list[Store]:
    """The stores as the run in `folder` knows them, however they have grown; their last snapshots for a new run.

    In the folder of an experiment, its first run counts for all.
    """
    # A run, or an experiment's: by table or row, and by fold and seed. A feature store has a file of that name, too.
    found = (path.parent for depth in ("", "*/", "*/*/", "*/*/*/") for path in folder.glob(f"{depth}{STORE_FILE}"))
    runs = sorted(path for path in found if (path / CONFIG_FILE).exists())
    known = _known_stores(runs[0]) if runs else []
    fingerprints = {entry.fingerprint for entry in known}
    return [_open_snapshot(address, fingerprints) for address in addresses]


def _open_snapshot(address: Location, fingerprints: set[str]) -> Store:
    store = Store(address)
    for snapshot in store.file.snapshots[:-1]:
        if snapshot.fingerprint in fingerprints:
            return Store(address, snapshot.number)
    return store


def recorded_store(checkpoint: Path) -> str | None:
    """The store that the run of a checkpoint was trained on, where both are still there."""
    folder = checkpoint.resolve().parent.parent.parent
    if not (folder / STORE_FILE).exists():
        return None
    store = _known_stores(folder)[0].address
    return store if "://" in store or Path(store).is_dir() else None


def open_recorded_store(checkpoint: Path) -> Store | None:
    """:func:`recorded_store` as the run knows it, however it has grown since."""
    address = recorded_store(checkpoint)
    if address is None:
        return None
    known = _known_stores(checkpoint.resolve().parent.parent.parent)[0]
    return _open_snapshot(open_location(address), {known.fingerprint})


def choose_run(folder: Path | None) -> Path:
    """`folder`, or the one run under ./runs. Raises InputError when there are none or several."""
    if folder is not None:
        return folder
    found = sorted(file.parent for file in DEFAULT_HOME.glob(f"*/{CONFIG_FILE}"))
    if not found:
        raise InputError(f"there is no run under ./{DEFAULT_HOME}; make one (`training run`), or name a model")
    if len(found) > 1:
        raise InputError(f"there are several runs under ./{DEFAULT_HOME}: {', '.join(map(str, found))}; choose one")
    return found[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); choose another folder with --run") from error


def _keep_environment(folder: Path, device: torch.device) -> None:
    """Appends what this call ran on, since a run may go on elsewhere."""
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "versions": {name: version(name) for name in RECORDED_LIBRARIES},
    }
    path = folder / ENVIRONMENT_FILE
    calls = _read_json(path) if path.exists() else []
    if not isinstance(calls, list):
        raise InputError(f"{path} is damaged, it is no list of calls; delete it")
    write_json(path, [*calls, environment])
