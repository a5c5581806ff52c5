"""Opens a run folder: what it was made from, and a clear refusal when that is something else now."""

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

from featurestore.loader import require_views
from featurestore.store import Store
from ingest.atomic import atomic_write, exclusive, remove_stale
from ingest.location import Location
from manifests.errors import InputError
from training.config import OptimiserConfig, RunConfig, differences
from training.distill import teacher_columns
from training.distributed import on_first, world_size
from training.inputs import Normalisation
from training.loop import Machine
from training.schedule import num_steps_of
from training.sources import (
    Source,
    check_proportions,
    distill_loader,
    make_sources,
    multissl_loader,
    open_teachers,
)
from training.splits import Split, choose_split

NO_TEACHER, OWN_TEACHER = "none", "own"
CONFIG_FILE, ENVIRONMENT_FILE, STORE_FILE = "config.json", "environment.json", "store.json"
DEFAULT_HOME = Path("runs")
RECORDED_LIBRARIES = ("torch", "numpy", "zarr", "acm-sskd")


@dataclass(frozen=True)
class Run:
    """A run: what is trained on what, where it is kept, and on which machine. The first source has the labels."""

    sources: list[Source]
    config: RunConfig
    split: Split
    folder: Path
    machine: Machine

    @property
    def store(self) -> Store:
        return self.sources[0].store

    @property
    def one_label(self) -> bool:
        return self.config.distill.loss == "ce"

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.store.snapshot.mean, self.store.snapshot.std)

    @property
    def can_evaluate(self) -> bool:
        """Whether clips are held out that have labels."""
        return bool(self.store.labels(self.split.held_out).any())

    @property
    def num_clips(self) -> int:
        """Clips to train on, of all stores."""
        return sum(len(source.rows) for source in self.sources)

    def num_steps(self, optimiser: OptimiserConfig) -> int:
        """Steps of a stage: an epoch has as many clips as there are."""
        return num_steps_of(optimiser.epochs, self.num_clips, optimiser.batch_size)


def choose_machine(config: RunConfig, device: torch.device) -> Machine:
    """The device with the precision that the resolved configuration asks for."""
    autocast = torch.bfloat16 if config.precision == "bfloat16" else None
    return Machine(device, autocast, config.parallel, config.compile == "on")


@contextmanager
def open_run(stores: Sequence[Store], config: RunConfig, folder: Path, device: torch.device) -> Iterator[Run]:
    """Makes the run folder, or opens it again for the same configuration and stores, and holds its lock.

    It keeps the resolved configuration, the environment of each call, and the stores' fingerprints. All that can be
    refused is refused before anything is written.
    """
    store = stores[0]
    if config.model.num_frames > store.file.fbank.num_frames:
        raise InputError(
            f"the model takes {config.model.num_frames} frames and {store.location} holds "
            f"{store.file.fbank.num_frames}: set model.num_frames={store.file.fbank.num_frames}, or ingest with "
            f"--num-frames {config.model.num_frames}"
        )
    split = choose_split(store, config.data, config.seed)
    sources = make_sources(stores, split)
    _check_sources(sources, config)
    config = _resolved(store, config, device)
    with ExitStack() as opened:
        on_first(lambda: _claim(opened, stores, config, folder, device))
        yield Run(sources, config, split, folder, choose_machine(config, device))


def _claim(opened: ExitStack, stores: Sequence[Store], config: RunConfig, folder: Path, device: torch.device) -> None:
    """Makes or checks the folder's files, under a lock that is held until `opened` ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} can't be a run's folder ({error.strerror}); choose another one with --run"
        ) from error
    opened.enter_context(exclusive(folder, "training"))
    for place in (folder, *folder.glob("iter*/"), *folder.glob("iter*/*/")):
        remove_stale(place)
    # The stores first: another one may resolve the configuration otherwise.
    _keep_stores(folder, stores)
    _keep_config(folder, config)
    _keep_environment(folder, device)


def _check_sources(sources: Sequence[Source], config: RunConfig) -> None:
    """Refuses now what a stage would refuse after hours."""
    distill = config.distill
    if config.multissl.optimiser.epochs > 0:
        check_proportions(sources, config.multissl.proportions)
        multissl_loader(sources, config.multissl, 0)
    for optimiser in (config.multissl.optimiser, distill.optimiser):
        if optimiser.epochs > 0 and optimiser.batch_size % world_size():
            raise InputError(
                f"batches of {optimiser.batch_size} can't be divided among {world_size()} processes; set a batch_size "
                f"that is a multiple of {world_size()}"
            )
    if distill.optimiser.epochs == 0:
        return
    check_proportions(sources, distill.proportions)
    store = sources[0].store
    if distill.classify and not store.labels(sources[0].rows).any():
        raise InputError(
            f"no clip to train on in {store.location} has a label; do Multi-SSL alone with "
            "--set distill.optimiser.epochs=0, or regress a teacher alone with --teacher NAME --set "
            "distill.classify=false"
        )
    caches = []
    if distill.teacher not in (NO_TEACHER, OWN_TEACHER):
        caches = open_teachers(sources, distill.teacher)
        for cache in caches:
            if distill.views:
                require_views(cache)
        if distill.probability_weight > 0:
            teacher_columns(store.file.vocabulary, caches[0].attributes.vocabulary)
    if caches or not (distill.views or distill.probability_weight):
        distill_loader(sources, distill, caches, 0)


def _resolved(store: Store, config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration with every "auto" decided, so that a run can't change it when it goes on elsewhere."""
    precision, loss = config.precision, config.distill.loss
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if loss == "auto":
        loss = "bce" if store.is_multi_label else "ce"
    distill = config.distill.model_copy(update={"loss": loss})
    compiled = config.compile
    if compiled == "auto":
        compiled = "on" if device.type == "cuda" else "off"
    return config.model_copy(update={"precision": precision, "compile": compiled, "distill": distill})


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
        atomic_write(path, json.dumps({**about[0], "others": about[1:]}, indent=1) + "\n")
        return
    known = _known_stores(folder)
    if len(known) != len(stores):
        names = ", ".join(str(entry["store"]) for entry in known)
        raise InputError(f"{folder} was trained on {names}; name the same stores, or choose another folder with --run")
    for entry, store in zip(known, stores, strict=True):
        if entry["fingerprint"] != store.snapshot.fingerprint:
            raise InputError(
                f"{folder} was trained on {entry['store']} with fingerprint {entry['fingerprint'][:12]}; "
                f"{store.location} now has {store.snapshot.fingerprint[:12]}: choose another folder with --run"
            )


def _known_stores(folder: Path) -> list[dict[str, Any]]:
    """What a run's folder says of its stores, the labelled one first."""
    content = _read_json(folder / STORE_FILE)
    return [content, *content.get("others", [])]


def _address(store: Store) -> str:
    """The store's address, from wherever the run is read."""
    return str(store.location) if store.location.folder is None else str(store.location.folder.resolve())


def open_recorded_snapshots(folder: Path, addresses: Sequence[Location]) -> list[Store]:
    """The stores as the run in `folder` knows them, however they have grown; their last snapshots for a new run."""
    known = _known_stores(folder) if (folder / STORE_FILE).exists() else []
    fingerprints = {entry["fingerprint"] for entry in known}
    return [_open_snapshot(address, fingerprints) for address in addresses]


def _open_snapshot(address: Location, fingerprints: set[str]) -> Store:
    store = Store(address)
    for snapshot in store.file.snapshots[:-1]:
        if snapshot.fingerprint in fingerprints:
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
        "processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "versions": {name: version(name) for name in RECORDED_LIBRARIES},
    }
    path = folder / ENVIRONMENT_FILE
    calls = _read_json(path) if path.exists() else []
    atomic_write(path, json.dumps([*calls, environment], indent=1) + "\n")
