"""Opens a run folder: what it was made from, and a clear refusal when that is something else now."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from featurestore.loader import require_views
from featurestore.store import Store
from ingest.atomic import atomic_write, exclusive, remove_stale
from ingest.location import Location
from manifests.errors import InputError
from training.config import RunConfig, differences
from training.distill import teacher_columns
from training.iterations import NO_TEACHER, OWN_TEACHER, Run, open_teacher
from training.loop import Machine
from training.splits import Split, choose_split

CONFIG_FILE, ENVIRONMENT_FILE, STORE_FILE = "config.json", "environment.json", "store.json"
DEFAULT_HOME = Path("runs")
RECORDED_LIBRARIES = ("torch", "numpy", "zarr", "torchmetrics", "acm-sskd")


def choose_machine(config: RunConfig, device: torch.device) -> Machine:
    """The device with the precision that the resolved configuration asks for."""
    return Machine(device, torch.bfloat16 if config.precision == "bfloat16" else None)


@contextmanager
def open_run(store: Store, config: RunConfig, folder: Path, device: torch.device) -> Iterator[Run]:
    """Makes the run folder, or opens it again for the same configuration and store, and holds its lock.

    It keeps the resolved configuration, the environment of each call, and the store's fingerprint. All that can be
    refused is refused before anything is written.
    """
    if config.model.num_frames > store.file.fbank.num_frames:
        raise InputError(
            f"the model takes {config.model.num_frames} frames and {store.location} holds "
            f"{store.file.fbank.num_frames}: set model.num_frames={store.file.fbank.num_frames}, or ingest with "
            f"--num-frames {config.model.num_frames}"
        )
    split = choose_split(store, config.data, config.seed)
    _check_distillation(store, config, split)
    config = _resolved(store, config, device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} can't be a run's folder ({error.strerror}); choose another one with --run"
        ) from error
    with exclusive(folder, "training"):
        for place in (folder, *folder.glob("iter*/"), *folder.glob("iter*/*/")):
            remove_stale(place)
        # The store first: another one may resolve the configuration otherwise.
        _keep_store(folder, store)
        _keep_config(folder, config)
        _keep_environment(folder, device)
        yield Run(store, config, split, folder, choose_machine(config, device))


def _check_distillation(store: Store, config: RunConfig, split: Split) -> None:
    """Refuses now what the distillation stage would refuse after hours of Multi-SSL."""
    distill = config.distill
    if distill.optimiser.epochs == 0:
        return
    if not store.labels(split.train).any():
        raise InputError(
            f"no clip to train on in {store.location} has a label; do Multi-SSL alone with "
            "--set distill.optimiser.epochs=0"
        )
    if distill.teacher not in (NO_TEACHER, OWN_TEACHER):
        cache = open_teacher(store, distill.teacher, split)
        if distill.views:
            require_views(cache)
        if distill.probability_weight > 0:
            teacher_columns(store.file.vocabulary, cache.attributes.vocabulary)


def _resolved(store: Store, config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration with every "auto" decided, so that a run can't change it when it goes on elsewhere."""
    precision, loss = config.precision, config.distill.loss
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if loss == "auto":
        loss = "bce" if store.is_multi_label else "ce"
    distill = config.distill.model_copy(update={"loss": loss})
    return config.model_copy(update={"precision": precision, "distill": distill})


def read_config(folder: Path) -> RunConfig:
    """The resolved configuration of a run. Raises InputError when `folder` is no run."""
    path = folder / CONFIG_FILE
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{folder} is not a run: it has no {CONFIG_FILE}; make one with `training run`") from error
    except ValidationError as error:
        raise InputError(
            f"{path} is not a configuration that this version reads ({error.errors()[0]['msg']})"
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
        atomic_write(path, config.model_dump_json(indent=1) + "\n")


def _keep_store(folder: Path, store: Store) -> None:
    path = folder / STORE_FILE
    about = {
        "store": _address(store),
        "dataset": store.file.dataset,
        "snapshot": store.snapshot.number,
        "fingerprint": store.snapshot.fingerprint,
    }
    if path.exists():
        known = _read_json(path)
        if known["fingerprint"] != about["fingerprint"]:
            raise InputError(
                f"{folder} was trained on {known['store']} with fingerprint {known['fingerprint'][:12]}; "
                f"{store.location} now has {store.snapshot.fingerprint[:12]}: choose another folder with --run"
            )
    else:
        atomic_write(path, json.dumps(about, indent=1) + "\n")


def _address(store: Store) -> str:
    """The store's address, from wherever the run is read."""
    return str(store.location) if store.location.folder is None else str(store.location.folder.resolve())


def open_recorded_snapshot(folder: Path, address: Location) -> Store:
    """The store as the run in `folder` knows it, however it has grown since; its last snapshot for a new run."""
    store = Store(address)
    path = folder / STORE_FILE
    if path.exists():
        known = _read_json(path)["fingerprint"]
        for snapshot in store.file.snapshots[:-1]:
            if snapshot.fingerprint == known:
                return Store(address, snapshot.number)
    return store


def recorded_store(checkpoint: Path) -> str | None:
    """The store that the run of a checkpoint was trained on, where both are still there."""
    path = checkpoint.resolve().parent.parent.parent / STORE_FILE
    if not path.exists():
        return None
    store = str(_read_json(path)["store"])
    return store if "://" in store or Path(store).is_dir() else None


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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "versions": {name: version(name) for name in RECORDED_LIBRARIES},
    }
    path = folder / ENVIRONMENT_FILE
    calls = _read_json(path) if path.exists() else []
    atomic_write(path, json.dumps([*calls, environment], indent=1) + "\n")
