"""An exported file against the model it was made from: on clips, alone and several at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featurestore.store import Store
from featurestore.waveforms import read_waveform
from ingest.decode import decode, open_audio
from ingest.featurise import looped
from ingest.ledger import ClipError
from ingest.synthesis import SOUNDS, synthesise
from manifests.errors import InputError
from manifests.geometry import FbankSpec
from training.checkpoint import WEIGHTS_FILE, Checkpoint, load_checkpoint
from training.checkpointtagger import CheckpointTagger
from training.export.formats import ONNX_FILE, TORCH_FILE, Outputs, Waveforms, open_onnx, open_torch

TOLERANCE = 1e-3
BATCH_SIZE = 3
NUM_CLIPS = 4
NUM_LOOKED_AT = 40  # of a store's clips, before its audio is taken to be gone
SHORT_SHARE = 5  # a clip's first fifth is shown too, which has to be repeated


@dataclass(frozen=True)
class CheckClips:
    """Waveforms (num_samples,) of at least one frame, and what they are in words."""

    waveforms: list[Waveforms]
    said: str


@dataclass(frozen=True)
class Expected:
    """What a model is shown, alone and several at a time (B, num_samples), and what it says of each."""

    shown: list[Waveforms]
    outputs: list[Outputs]
    said: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference from the model's own outputs; of probabilities None where there are none."""

    probabilities: float | None
    embedding: float

    @property
    def passes(self) -> bool:
        # Nothing compares with NaN.
        return all(value <= TOLERANCE for value in (self.probabilities or 0.0, self.embedding))


def expect(checkpoint: Checkpoint, clips: CheckClips) -> Expected:
    """What the model itself says, see :func:`own_outputs`, of clips alone, one of them much shorter, and in a batch."""
    spec, own = checkpoint.about.window, own_outputs(checkpoint)
    first = clips.waveforms[0]
    alone = [*clips.waveforms, first[: max(spec.frame_length, len(first) // SHORT_SHARE)]]
    batch = np.stack([looped(alone[place % len(alone)], spec.num_samples) for place in range(BATCH_SIZE)])
    shown = [*(waveform[None] for waveform in alone), batch]
    return Expected(shown, [own(waveforms) for waveforms in shown], clips.said)


def check_file(path: Path, expected: Expected) -> Difference:
    """How far an exported file of weights is from its model. Raises InputError when that is more than TOLERANCE."""
    run = _open(path)
    pairs = [(run(shown), own) for shown, own in zip(expected.shown, expected.outputs, strict=True)]
    difference = Difference(
        _largest([(got[0], own[0]) for got, own in pairs]) if len(expected.outputs[0]) > 1 else None,
        _largest([(got[-1], own[-1]) for got, own in pairs]),
    )
    if not difference.passes:
        raise InputError(
            f"{path.name} gives other values than the model that it was made from: probabilities differ by up to "
            f"{difference.probabilities or 0:.1e} and embeddings by {difference.embedding:.1e} on {expected.said}, "
            f"where {TOLERANCE:g} is allowed; nothing was kept: leave this --format out, and report it with the "
            "versions of torch and onnxruntime"
        )
    return difference


def _largest(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.max([np.abs(got - own).max() for got, own in pairs]))


def _open(path: Path) -> Callable[[Waveforms], Outputs]:
    if path.name == WEIGHTS_FILE:
        return own_outputs(load_checkpoint(path))
    return {ONNX_FILE: open_onnx, TORCH_FILE: open_torch}[path.name](path)


def own_outputs(checkpoint: Checkpoint) -> Callable[[Waveforms], Outputs]:
    """What `training predict` says of windows (B, num_samples): probabilities (B, C), if any, and embedding (B, D).

    Through the fbank that shards are made with, and none of what is exported.
    """
    tagger = CheckpointTagger(checkpoint, {}, torch.device("cpu"))

    def run(waveforms: Waveforms) -> Outputs:
        said = tagger.hear([tagger.prepare(waveform) for waveform in waveforms])
        return (said.embedding,) if said.probabilities is None else (said.probabilities, said.embedding)

    return run


def choose_clips(files: Sequence[Path], store: Store | None, spec: FbankSpec) -> CheckClips:
    """The beginnings of `files`; without any, clips of the store; without a store whose audio is there, made sounds.

    Raises InputError for a file that can't be read or is shorter than a frame.
    """
    if files:
        return CheckClips([_read(file, spec) for file in files], _count(len(files), "given file"))
    found = [] if store is None else _clips_of(store, spec)
    if store is not None and found:
        return CheckClips(found, f"{_count(len(found), 'clip')} of {store.file.dataset}")
    labels = list(SOUNDS)[:NUM_CLIPS]
    made = [synthesise(label, np.random.default_rng(place), spec.sample_rate_hz) for place, label in enumerate(labels)]
    why = "is out of reach" if store is None else "no longer has its audio"
    return CheckClips(made, f"{_count(len(made), 'synthetic sound')}, since the store that it was trained on {why}")


def _read(file: Path, spec: FbankSpec) -> Waveforms:
    try:
        with open_audio(file) as source:
            waveform = decode(source, spec.sample_rate_hz, 0.0, spec.num_samples / spec.sample_rate_hz)
    except ClipError as error:
        raise InputError(f"--check {file}: {error}; give an audio file that `training predict` reads") from error
    if waveform.size < spec.frame_length:
        raise InputError(f"--check {file}: less than one frame of {spec.frame_length_ms} ms; give a longer one")
    return waveform


def _clips_of(store: Store, spec: FbankSpec) -> list[Waveforms]:
    """Up to NUM_CLIPS from all over the store, of those whose audio can be had."""
    rows = np.random.default_rng(0).permutation(store.rows())
    found: list[Waveforms] = []
    for row in rows[:NUM_LOOKED_AT].tolist():
        try:
            found.append(read_waveform(store, row, spec.sample_rate_hz))
        except ClipError:  # one of those that can't be had: what is counted and said is those that can
            continue
        if len(found) == NUM_CLIPS:
            break
    return found


def _count(num: int, what: str) -> str:
    return f"{num} {what}{'' if num == 1 else 's'}"
