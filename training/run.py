"""Opens a run folder: what it was made from, and a clear refusal when that is something else now."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import ValidationError

from featurestore.store import Store
from ingest.atomic import atomic_write
from manifests.errors import InputError
from training.config import RunConfig, differences
from training.iterations import Run
from training.loop import Machine
from training.splits import choose_split

CONFIG_FILE, ENVIRONMENT_FILE, STORE_FILE = "config.json", "environment.json", "store.json"
RECORDED_LIBRARIES = ("torch", "numpy", "zarr", "torchmetrics", "acm-sskd")


def choose_device(name: str) -> torch.device:
    """auto (CUDA where there is one), cpu, cuda or cuda:N. Raises InputError for a device that isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name!r} is not known; give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r} is not supported; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def choose_machine(config: RunConfig, device: torch.device) -> Machine:
    """The device with the precision that the configuration asks for."""
    use_bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    return Machine(device, torch.bfloat16 if use_bfloat16 else None)


def open_run(store: Store, config: RunConfig, folder: Path, device: torch.device) -> Run:
    """Makes the run folder, or opens it again for the same configuration and store.

    It keeps the resolved configuration, the environment of each call, and the store's fingerprint.
    """
    if config.model.num_frames > store.file.fbank.num_frames:
        raise InputError(
            f"the model takes {config.model.num_frames} frames and {store.root} holds {store.file.fbank.num_frames}: "
            f"set model.num_frames={store.file.fbank.num_frames}, or ingest with --num-frames {config.model.num_frames}"
        )
    split = choose_split(store, config.data, config.seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} can't be a run's folder ({error.strerror}); choose another one with --run"
        ) from error
    _keep_config(folder, config)
    _keep_store(folder, store)
    _keep_environment(folder, device)
    return Run(store, config, split, folder, choose_machine(config, device))


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
        "store": str(store.root.resolve()),
        "dataset": store.file.dataset,
        "snapshot": store.snapshot.number,
        "fingerprint": store.snapshot.fingerprint,
    }
    if path.exists():
        known = json.loads(path.read_text())
        if known["fingerprint"] != about["fingerprint"]:
            raise InputError(
                f"{folder} was trained on {known['store']} with fingerprint {known['fingerprint'][:12]}; "
                f"{store.root} now has {store.snapshot.fingerprint[:12]}: choose another folder with --run"
            )
    else:
        atomic_write(path, json.dumps(about, indent=1) + "\n")


def _keep_environment(folder: Path, device: torch.device) -> None:
    """Appends what this call ran on, since a run may go on elsewhere."""
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {name: version(name) for name in RECORDED_LIBRARIES},
    }
    path = folder / ENVIRONMENT_FILE
    calls = json.loads(path.read_text()) if path.exists() else []
    atomic_write(path, json.dumps([*calls, environment], indent=1) + "\n")
