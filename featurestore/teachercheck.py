"""Checks of a teacher that need no data: its answers to made-up sounds, known answers, and its label vocabulary.

`verifyteachers.py` checks the caches that a teacher filled.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from featurestore.check import Check
from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput
from featurestore.teachers.golden import (
    RELEASED_ANSWERS,
    TINY_ANSWERS,
    answer_of,
    formula_noise,
    formula_sound,
    largest_difference,
    load_tiny,
)
from featurestore.teachers.kaldi import KaldiFbank
from manifests.audioset import audioset_vocabulary

# As a share of the largest value, or of 1. CUDA's convolutions round their inputs to TF32.
TOLERANCES = {"cpu": 1e-4, "cuda": 1e-2}
REPEAT_TOLERANCE = 1e-6
# From this cosine on, two sounds are the same to a teacher.
SAME_COSINE = 0.9999
LARGEST_FLOAT16 = 65504.0
GAIN = 2.0**-4
NUM_SHOWN = 5


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """What a checkpoint turned out to be."""
    input_ = teacher.input
    fed = (
        {"fbank": input_.fbank.model_dump(mode="json")}
        if isinstance(input_, FbankInput)
        else {"waveform at": f"{input_.sample_rate_hz} Hz"}
    )
    labels = len(teacher.vocabulary) if teacher.vocabulary else None
    return {"teacher": teacher.name, "embedding_dim": teacher.embedding_dim, "labels": labels, "fed": fed} | (
        teacher.provenance
    )


def check_answers(teacher: Teacher, device: torch.device) -> Iterator[Check]:
    """Whether the same sound gets the same finite answer, alone and in a batch, and other sounds other answers."""
    sounds = _sounds(teacher)
    alone = {name: teacher.embed(_inputs(teacher, sound[None])) for name, sound in sounds.items()}
    tolerance = TOLERANCES[device.type]
    yield _check_shapes(teacher, alone["chirp"])
    again = _difference(teacher.embed(_inputs(teacher, sounds["chirp"][None])), alone["chirp"])
    yield Check("repeatable", again <= REPEAT_TOLERANCE, f"the same sound again differs by {again:.1e}")
    names = ["chirp", "noise", "silence"]
    batch = teacher.embed(_inputs(teacher, np.stack([sounds[name] for name in names])))
    apart = max(_difference(_row(batch, n), alone[name]) for n, name in enumerate(names))
    yield Check("alone as in a batch", apart <= tolerance, f"differs by {apart:.1e}, {tolerance:.0e} is allowed")
    yield _check_finite(alone)
    cosine = max(_cosine(alone[a], alone[b]) for a, b in combinations(names, 2))
    yield Check("tells sounds apart", cosine < SAME_COSINE, f"chirp, noise and silence: cosine up to {cosine:.4f}")
    yield Check(
        "gain", None, f"the chirp at 1/16 of its amplitude: cosine {_cosine(alone['quiet'], alone['chirp']):.3f}"
    )
    padded = _cosine(alone["padded"], alone["chirp"])
    yield Check("padding", None, f"the chirp followed by as much silence: cosine {padded:.3f}; clips are never padded")


def check_known_answers(teacher: Teacher, device: torch.device) -> Iterator[Check]:
    """Whether this installation, and this file where it is a known one, answer as they did when they were verified."""
    family, sha256 = (str(teacher.provenance.get(name)) for name in ("family", "checkpoint_sha256"))
    if family in TINY_ANSWERS:
        found = largest_difference(answer_of(load_tiny(family)), TINY_ANSWERS[family])
        detail = f"a tiny {family} with known weights differs by {found:.1e} from its known answer"
        yield Check("installation", found <= TOLERANCES["cpu"], detail)
    else:
        yield Check("installation", None, "no answer of this kind of network is known")
    if sha256 in RELEASED_ANSWERS and not isinstance(teacher.input, FbankInput):
        found = largest_difference(answer_of(teacher), RELEASED_ANSWERS[sha256])
        tolerance = TOLERANCES[device.type]
        yield Check("released file", found <= tolerance, f"differs by {found:.1e} from its known answer")
    else:
        yield Check("released file", None, "no answer of this file is known")


def check_vocabulary(teacher: Teacher) -> Iterator[Check]:
    """Which of the teacher's labels are AudioSet's, by MID, and whether in AudioSet's order and under its names."""
    vocabulary, audioset = teacher.vocabulary, audioset_vocabulary()
    if vocabulary is None:
        yield Check("labels", None, "none that could be joined with a store's")
        return
    known = [label for label in vocabulary.labels if label.id in audioset.position]
    order = [audioset.position[label.id] for label in known]
    others = [label.id for label in vocabulary.labels if label.id not in audioset.position]
    detail = f"{len(known)} of {len(vocabulary)} are AudioSet's {len(audioset)}, by MID"
    if known:
        whole = "" if order != list(range(len(audioset))) else ", all of them"
        detail += f", {'in its order' if order == sorted(order) else 'in another order'}{whole}"
    if others:
        detail += f"; not AudioSet's: {', '.join(others[:NUM_SHOWN])}{', ...' if len(others) > NUM_SHOWN else ''}"
    yield Check("labels", None, detail)
    renamed = [label for label in known if label.name != audioset.labels[audioset.position[label.id]].name]
    wrong = ", ".join(f"{label.id} is called {label.name!r}" for label in renamed[:NUM_SHOWN])
    if known:
        yield Check("labels' names", not renamed, wrong or "as in AudioSet")


def _sounds(teacher: Teacher) -> dict[str, NDArray[np.float32]]:
    rate_hz = _rate_hz(teacher)
    chirp = formula_sound(rate_hz)
    sign = np.sign(np.sin(2 * np.pi * 440 * np.arange(len(chirp)) / rate_hz + 0.1))
    sounds: dict[str, NDArray[Any]] = {
        "chirp": chirp,
        "noise": 0.3 * formula_noise(len(chirp), 2),
        "silence": np.zeros(len(chirp)),
        "full scale": sign,
        "quiet": GAIN * chirp,
        "padded": np.concatenate([chirp, np.zeros(len(chirp))]),
        "10 ms": chirp[: rate_hz // 100],
        "one sample": chirp[1:2],
    }
    return {name: sound.astype(np.float32) for name, sound in sounds.items()}


def _rate_hz(teacher: Teacher) -> int:
    is_fbank = isinstance(teacher.input, FbankInput)
    return teacher.input.fbank.sample_rate_hz if is_fbank else teacher.input.sample_rate_hz  # type: ignore[union-attr]


def _inputs(teacher: Teacher, sounds: NDArray[np.float32]) -> Tensor:
    """What the teacher takes of sounds (B, num_samples): themselves, or their fbanks, looped as in a store."""
    if not isinstance(teacher.input, FbankInput):
        return torch.from_numpy(sounds)
    spec = teacher.input.fbank
    looped = torch.from_numpy(np.stack([np.resize(sound, spec.num_samples) for sound in sounds]))
    fbanks: Tensor = KaldiFbank("hanning")(looped - looped.mean(1, keepdim=True))
    return fbanks


def _check_shapes(teacher: Teacher, output: TeacherOutput) -> Check:
    width = output.embedding.shape[1]
    num_logits = None if output.logits is None else output.logits.shape[1]
    num_labels = None if teacher.vocabulary is None else len(teacher.vocabulary)
    fits = width == teacher.embedding_dim and num_labels in (None, num_logits)
    return Check("shapes", fits, f"embedding of {width}, {num_logits or 'no'} logits, {num_labels or 'no'} labels")


def _check_finite(outputs: dict[str, TeacherOutput]) -> Check:
    largest = {
        name: max(float(t.abs().max().nan_to_num(float("inf"))) for t in _tensors(o)) for name, o in outputs.items()
    }
    bad = [name for name, value in largest.items() if not value <= LARGEST_FLOAT16]
    detail = f"silence, full scale, 10 ms and one sample: values up to {max(largest.values()):.3g}"
    return Check("finite", not bad, f"not finite in float16 for: {', '.join(bad)}" if bad else detail)


def _tensors(output: TeacherOutput) -> list[Tensor]:
    return [part.float() for part in (output.embedding, output.logits) if part is not None]


def _row(output: TeacherOutput, number: int) -> TeacherOutput:
    logits = None if output.logits is None else output.logits[number : number + 1]
    return TeacherOutput(output.embedding[number : number + 1], logits)


def _difference(found: TeacherOutput, expected: TeacherOutput) -> float:
    """The largest, as a share of the output's largest value or of 1; infinite where something is not finite."""
    shares = [
        float((a - b).abs().max() / b.abs().max().clamp(min=1))
        for a, b in zip(_tensors(found), _tensors(expected), strict=True)
    ]
    return float(np.nan_to_num(max(shares), nan=np.inf)) if not np.isnan(shares).any() else float("inf")


def _cosine(a: TeacherOutput, b: TeacherOutput) -> float:
    return float(F.cosine_similarity(a.embedding.float(), b.embedding.float()))
