"""What a teacher is."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from manifests.geometry import FbankSpec
from manifests.vocabulary import Vocabulary


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says of a batch: pooled embedding (B, D), logits (B, C) or None, tokens (B, L, D) or None."""

    embedding: Tensor
    logits: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class WaveformInput:
    """The teacher takes waveforms (B, num_samples) float32 in [-1, 1], mono, at `sample_rate_hz`, not looped."""

    sample_rate_hz: int


@dataclass(frozen=True)
class FbankInput:
    """The teacher takes the store's fbanks (B, num_frames, num_mel_bins), not normalised, float32."""

    fbank: FbankSpec


TeacherInput = WaveformInput | FbankInput


class Teacher(Protocol):
    """One pretrained model, frozen, in evaluation mode.

    `input` says what :meth:`embed` takes; `provenance` is kept with the cache (checkpoint sha256, input
    specification); `vocabulary` orders the logits, and maps to others by label id, never by position.
    """

    embedding_dim: int
    provenance: dict[str, Any]

    # To be read alone, so that a teacher may declare what it has more narrowly.
    @property
    def name(self) -> str: ...

    @property
    def input(self) -> TeacherInput: ...

    @property
    def vocabulary(self) -> Vocabulary | None: ...

    def to(self, device: torch.device) -> "Teacher":
        """Moves the model to a device; returns itself."""
        ...

    def embed(self, batch: Tensor) -> TeacherOutput:
        """The outputs for one batch, which may lie on another device, float32, without gradient."""
        ...
