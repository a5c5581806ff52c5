"""Opens a run: what is trained on what, with all that a stage would refuse after hours refused before it begins."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from featurestore.loader import require_views
from featurestore.store import Store
from manifests.errors import InputError
from training.config import OptimiserConfig, RunConfig
from training.distill import teacher_columns
from training.distributed import on_first, world_size
from training.inputs import Normalisation
from training.loop import Machine
from training.runfolder import claimed
from training.schedule import num_steps_of
from training.sources import (
    Source,
    check_complete,
    check_proportions,
    distill_loader,
    is_multi_label,
    make_sources,
    multissl_loader,
    open_teachers,
)
from training.splits import Split, check_share, choose_split

NO_TEACHER, OWN_TEACHER = "none", "own"


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
        """Whether labels are learned, and clips held out that have some."""
        return self.config.distill.classify and len(self.store.label_pairs(self.split.held_out)[0]) > 0

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
    split, sources = choose_sources(stores, config)
    on_first(lambda: check_teachers(sources, config))
    config = _resolved(sources, config, device)
    with ExitStack() as opened:
        on_first(lambda: opened.enter_context(claimed(folder, stores, config, device)))
        yield Run(sources, config, split, folder, choose_machine(config, device))


def choose_sources(stores: Sequence[Store], config: RunConfig) -> tuple[Split, list[Source]]:
    """What is held out and what is trained on. Raises InputError for all that a run would refuse of its stores."""
    store = stores[0]
    if config.model.num_frames > store.file.fbank.num_frames:
        raise InputError(
            f"the model takes {config.model.num_frames} frames and {store.location} holds "
            f"{store.file.fbank.num_frames}: set model.num_frames={store.file.fbank.num_frames}, or ingest with "
            f"--num-frames {config.model.num_frames}"
        )
    split = choose_split(store, config.data, config.seed)
    sources = make_sources(stores, split)
    check_sources(sources, config)
    return split, sources


def check_sources(sources: Sequence[Source], config: RunConfig) -> None:
    """Refuses now what a stage would refuse after hours."""
    check_share(sources[0].store, config.data)
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
    if distill.classify and not len(store.label_pairs(sources[0].rows)[0]):
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


def check_teachers(sources: Sequence[Source], config: RunConfig) -> None:
    """Refuses caches that lack clips to train on: not in :func:`choose_sources`, because every row of them is read."""
    distill = config.distill
    if distill.optimiser.epochs > 0 and distill.teacher not in (NO_TEACHER, OWN_TEACHER):
        check_complete(sources, open_teachers(sources, distill.teacher))


def _resolved(sources: Sequence[Source], config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration with every "auto" decided, so that a run can't change it when it goes on elsewhere."""
    precision, loss = config.precision, config.distill.loss
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if loss == "auto":
        loss = "bce" if is_multi_label(sources) else "ce"
    distill = config.distill.model_copy(update={"loss": loss})
    compiled = config.compile
    if compiled == "auto":
        compiled = "on" if device.type == "cuda" else "off"
    return config.model_copy(update={"precision": precision, "compile": compiled, "distill": distill})
