"""What a checkpoint's frozen features say of a store's labels: probes of them, computed as they are needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from featurestore.loader import sequential_batches
from featurestore.probe import ProbeOptions, ProbeReport, Source, probe_source
from featurestore.probeparts import Part, PartOptions, Parts, choose_parts, labelled_parts
from featurestore.store import Store
from manifests.errors import InputError
from training.checkpoint import About, Checkpoint, load_aft, load_checkpoint, provenance_of
from training.heard import warning_of
from training.inference import pooled_features
from training.modelfile import check_frames, choose_part

BATCH_SIZE = 64


@dataclass(frozen=True)
class HeldOut:
    """What to judge by: a split, some folds, all folds in turn; by default what the model's run held out."""

    split: str | None = None
    folds: Sequence[int] = ()
    all_folds: bool = False


def probe_checkpoint(
    path: Path, store: Store, held_out: HeldOut, options: ProbeOptions, advance: Callable[[int], None] = lambda _: None
) -> ProbeReport:
    """Probes the pooled features of a checkpoint of either stage; nothing is written.

    `advance` counts the clips whose features are computed. Raises InputError where the store's clips are too short for
    the model, or the parts asked for are not there.
    """
    checkpoint = load_checkpoint(path)
    check_frames(checkpoint.about, store)
    parts = choose_model_parts(checkpoint.about, store, held_out, options.parts.seed)
    features = _Features(checkpoint, store, options, advance)
    about = checkpoint.about
    provenance = {**provenance_of(path, about), "held_out": about.held_out}
    source = Source(str(path), "checkpoint", provenance, features.read, "they are not finite: take another checkpoint")
    return probe_source(store, source, parts, options)


def choose_model_parts(about: About, store: Store, held_out: HeldOut, seed: int) -> Parts:
    """The parts of a probe. Raises InputError for parts that aren't there, or when several ways are asked for."""
    if (held_out.split is not None) + bool(held_out.folds) + held_out.all_folds > 1:
        raise InputError("give one of --split, --fold and --all-folds")
    if held_out.folds or held_out.all_folds:
        if not store.folds:
            raise InputError(f"{store.location} has no folds; use --split, or neither for what the model held out")
        return choose_parts(store, PartOptions(held_out.folds or store.folds, seed=seed))
    split = choose_part(about, store, held_out.split, None)
    chosen_by = "the split asked for" if held_out.split is not None else "what the model's run held out"
    return labelled_parts(store, [Part(split.name, split.train, split.held_out)], chosen_by)


def heard_warnings(about: About, store: Store, parts: Parts) -> list[str]:
    """A line for each part whose clips to be judged by the model was trained on."""
    warnings = [warning_of(about, store, part.name, part.test) for part in parts.parts]
    return [warning for warning in warnings if warning is not None]


class _Features:
    """Pooled features of clips; those of up to two full sides of a part are kept for the next part."""

    def __init__(
        self, checkpoint: Checkpoint, store: Store, options: ProbeOptions, advance: Callable[[int], None]
    ) -> None:
        about = checkpoint.about
        self._aft = load_aft(checkpoint).to(options.device)
        self._about, self._store, self._device, self._advance = about, store, options.device, advance
        self._max_kept = 2 * options.max_clips
        self._rows = np.empty(0, np.int64)  # sorted
        self._values = np.empty((0, about.model.width), np.float32)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features (len(rows), D)."""
        missing = np.setdiff1d(rows, self._rows)
        if len(self._rows) + len(missing) > self._max_kept:
            kept = np.isin(self._rows, rows)
            self._rows, self._values = self._rows[kept], self._values[kept]
        if len(missing):
            values = np.concatenate([self._values, self._compute(missing)])
            together = np.concatenate([self._rows, missing])
            order = np.argsort(together)
            self._rows, self._values = together[order], values[order]
        return self._values[np.searchsorted(self._rows, rows)]

    def _compute(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        about, found = self._about, []
        for batch in sequential_batches(self._store, rows, BATCH_SIZE):
            fbank = torch.from_numpy(batch.fbank).to(self._device)
            found.append(pooled_features(self._aft, about.model.grid, fbank, about.normalisation).cpu().numpy())
            self._advance(len(batch.rows))
        return np.concatenate(found)
