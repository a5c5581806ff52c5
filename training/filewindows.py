"""Sound of any length cut into windows, one window's worth of it in memory at a time."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.ledger import ClipError, Reason
from manifests.errors import InputError
from training.tagger import Tagger

# A rest shorter than this share of a window is left out, unless it is all there is.
MIN_WINDOW_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Windows:
    """How a file is cut, in samples: a window every `hop` of them, none shorter than `least`."""

    window: int
    hop: int
    least: int

    def cut(self, pieces: Iterable[NDArray[np.float32]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each window's first sample and waveform, of a sound that comes in pieces.

        They begin at multiples of the hop, up to the first that reaches the sound's end, which alone may be shorter.
        Raises ClipError where there is less than `least`.
        """
        kept, offset, start = np.zeros(0, np.float32), 0, 0  # `kept` begins at sample `offset`
        for piece in pieces:
            passed = min(kept.size, max(0, start - offset))
            kept, offset = np.concatenate([kept[passed:], piece]), offset + passed
            while start + self.window < offset + kept.size:
                # A copy, which doesn't hold the piece in memory.
                yield start, kept[start - offset :][: self.window].copy()
                start += self.hop
        rest = kept[max(0, start - offset) :]
        if start == 0 and rest.size < self.least:
            raise ClipError(Reason.TOO_SHORT, f"{rest.size} samples, where the model needs at least {self.least}")
        if rest.size >= self.least and (start == 0 or rest.size >= MIN_WINDOW_SHARE * self.window):
            yield start, rest.copy()


def windows_of(tagger: Tagger, hop_s: float | None) -> Windows:
    """The windows that a model takes, every `hop_s`, or one after the other. Raises InputError for a hop of nothing."""
    if hop_s is not None and not (math.isfinite(hop_s) and hop_s * tagger.sample_rate_hz >= 1):
        raise InputError(f"--hop-s {hop_s} is not a sample or more; give the seconds between two windows, such as 5")
    hop = tagger.window_samples if hop_s is None else round(hop_s * tagger.sample_rate_hz)
    return Windows(tagger.window_samples, hop, tagger.least_samples)
