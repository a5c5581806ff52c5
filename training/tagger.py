"""What gives tags and embeddings of audio: our checkpoints, any teacher, or an exported file."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from manifests.vocabulary import Vocabulary

Prepared = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Heard:
    """Of each window: probabilities (B, C) or None, embedding (B, D), tokens (B, L, D) or None; float32."""

    probabilities: NDArray[np.float32] | None
    embedding: NDArray[np.float32]
    tokens: NDArray[np.float32] | None = None


class Tagger(Protocol):
    """One model that takes windows of a waveform.

    `window_samples` is the length of a window at `sample_rate_hz`, `least_samples` the shortest waveform that it can
    say anything of; `vocabulary` orders the probabilities; `provenance` says whose outputs these are.
    """

    name: str
    sample_rate_hz: int
    window_samples: int
    least_samples: int
    embedding_dim: int
    vocabulary: Vocabulary | None
    provenance: dict[str, Any]

    def prepare(self, waveform: NDArray[np.float32]) -> Prepared:
        """What :meth:`hear` takes of a window (num_samples,), mono in [-1, 1]; safe to call in many threads at once."""
        ...

    def hear(self, prepared: list[Prepared]) -> Heard:
        """The outputs for prepared windows of one shape, in their order."""
        ...
