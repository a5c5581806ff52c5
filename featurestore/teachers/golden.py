"""Known answers: what the built-in networks say of a sound that a formula gives.

Tiny networks with weights that a formula gives too show whether this installation computes an architecture as it was
when it agreed with its reference implementation. Of some released files the answers themselves are known.
"""

import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featurestore.teachers.astteacher import load_ast
from featurestore.teachers.asttransformer import Ast, AstSizes
from featurestore.teachers.base import Teacher, WaveformInput
from featurestore.teachers.beats import load_beats
from featurestore.teachers.beatsmodel import Beats, BeatsConfig
from featurestore.teachers.efficientat import ROWS, BlockSizes, MobileNet, Sizes, load_efficientat

DURATION_S = 2.0
SMALL = 0.2
START_HZ, END_HZ = 100.0, 6000.0

TINY_BEATS: dict[str, Any] = {
    "input_patch_size": 16,
    "embed_dim": 12,
    "conv_bias": False,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 40,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "finetuned_model": True,
    "predictor_class": 4,
}
TINY_AST = AstSizes(64, 32, 2, 1, 4, 128, 10, 10, 1e-6, 1e-5)
TINY_MOBILENET = Sizes(
    stem=8,
    blocks=tuple(BlockSizes(16 if i else 0, 4 if row.squeezes else 0, 8 + i // 4) for i, row in enumerate(ROWS)),
    embedding=16,
    head=8,
    classes=4,
)


class Answer(NamedTuple):
    """The first values of the embedding of :func:`formula_sound`, and the first logits."""

    embedding: tuple[float, ...]
    logits: tuple[float, ...]


# By the family in a teacher's provenance.
LOADERS: Mapping[str, Callable[[Path], Teacher]] = {
    "BEATs": load_beats,
    "AST": load_ast,
    "EfficientAT": load_efficientat,
}
TINY_ANSWERS: Mapping[str, Answer] = {
    "BEATs": Answer(
        (2.134389, 0.430726, 0.374874, -1.516751, -0.830452, -0.706181, 0.609872, 0.321247),
        (3.004126, -1.068533, -0.683549, -0.207518),
    ),
    "AST": Answer(
        (-0.637969, 1.496917, 0.449665, 0.360527, -0.552056, 0.794177, 0.781629, 0.299232),
        (-1.271453, 0.021383, 2.038844, -2.009983),
    ),
    "EfficientAT": Answer(
        (0.912734, 0.377734, 1.043326, 0.042541, 0.055654, 0.019648, -0.072300, -0.281524),
        (-0.911171, -0.253140, -0.736727, 0.370537),
    ),
}
# By the sha256 of a released file.
RELEASED_ANSWERS: Mapping[str, Answer] = {
    # mn04_as_mAP_432.pt
    "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c": Answer(
        (-0.287405, 0.120296, -0.139857, 0.229234, 0.460370, -0.220889, -0.303016, -0.008556),
        (-4.397013, -7.946249, -8.984794, -8.119535),
    ),
}


def formula_noise(num: int, seed: int) -> NDArray[np.float64]:
    """`num` numbers in [-1, 1), the same on any machine: MurmurHash3's last step of their places."""
    mixed = np.arange(num, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return (mixed ^ (mixed >> np.uint32(16))) / 2.0**31 - 1.0


def formula_sound(rate_hz: int, duration_s: float = DURATION_S) -> NDArray[np.float32]:
    """A tone that rises from 100 to 6000 Hz, in noise, within [-.5, .5]."""
    time_s = np.arange(round(rate_hz * duration_s)) / rate_hz
    cycles = (START_HZ + (END_HZ - START_HZ) * time_s / (2 * duration_s)) * time_s
    return (0.4 * np.sin(2 * np.pi * cycles) + 0.1 * formula_noise(len(time_s), 1)).astype(np.float32)


def answer_of(teacher: Teacher) -> Answer:
    """What a teacher of waveforms says of the formula's sound."""
    if not isinstance(teacher.input, WaveformInput):
        raise TypeError(f"the teacher {teacher.name!r} takes fbanks, and known answers are those of waveforms")
    output = teacher.embed(torch.from_numpy(formula_sound(teacher.input.sample_rate_hz))[None])
    logits = () if output.logits is None else tuple(output.logits[0, :4].tolist())
    return Answer(tuple(output.embedding[0, :8].tolist()), logits)


def largest_difference(found: Answer, expected: Answer) -> float:
    """Between values of one place, as a share of the largest one expected, or of 1 where that is more."""
    pairs = list(zip([*found.embedding, *found.logits], [*expected.embedding, *expected.logits], strict=True))
    return max(abs(a - b) for a, b in pairs) / max(1.0, *(abs(b) for _, b in pairs))


def load_tiny(family: str) -> Teacher:
    """The tiny teacher of a family that has an answer, written to a file and loaded as a user's file is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.pt"
        torch.save(tiny_content(family), path)
        return LOADERS[family](path)


def tiny_content(family: str) -> object:
    """What the file of a tiny teacher holds."""
    if family == "EfficientAT":
        return _weights(MobileNet(TINY_MOBILENET))
    if family == "AST":
        return {f"module.{name}": tensor for name, tensor in _weights(Ast(TINY_AST)).items()}
    beats = _weights(Beats(BeatsConfig.model_validate(TINY_BEATS)))
    tables = [name for name in beats if name.endswith("relative_attention_bias.weight")]
    beats |= dict.fromkeys(tables, beats[tables[0]])
    labels = {index: f"/golden/{index}" for index in range(TINY_BEATS["predictor_class"])}
    return {"cfg": TINY_BEATS, "model": beats, "label_dict": labels}


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Numbers of a formula in place of all weights, of such sizes that the sound is heard at the other end."""
    return {name: _weight(name, tensor) for name, tensor in network.state_dict().items()}


def _weight(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    noise = formula_noise(tensor.numel(), zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = 0.9 + SMALL * abs(noise)
    elif tensor.ndim == 1 and name.endswith("weight"):  # a norm's
        values = 1 + SMALL * noise
    elif tensor.ndim > 1 and len(tensor) > 1:
        values = noise * (6 * len(tensor) / tensor.numel()) ** 0.5
    else:
        values = SMALL * noise
    return torch.from_numpy(values).float().reshape(tensor.shape)
