"""Sound of any length cut into windows, whatever the pieces it comes in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ingest.ledger import ClipError, Reason
from training.filewindows import Windows


def by_hand(sound: NDArray[np.float32], windows: Windows) -> list[tuple[int, list[float]]]:
    """All of it at once: windows up to the first that reaches the end; that one if half a window, or the first."""
    found = []
    for start in range(0, len(sound), windows.hop):
        part = sound[start : start + windows.window]
        if len(part) >= windows.least and (start == 0 or 2 * len(part) >= windows.window):
            found.append((start, part.tolist()))
        if start + windows.window >= len(sound):
            break
    return found


@given(
    num_samples=st.integers(3, 80),
    window=st.integers(3, 20),
    hop=st.integers(1, 30),
    piece=st.integers(1, 90),
)
def test_any_pieces_give_the_windows_of_the_whole(num_samples: int, window: int, hop: int, piece: int) -> None:
    sound = np.arange(num_samples, dtype=np.float32)
    windows = Windows(window, hop, least=3)
    pieces = [sound[start : start + piece] for start in range(0, num_samples, piece)]
    cut = [(start, part.tolist()) for start, part in windows.cut(pieces)]
    assert cut == by_hand(sound, windows)


def test_overlap_by_hand() -> None:
    cut = list(Windows(window=4, hop=2, least=1).cut([np.arange(7, dtype=np.float32)]))
    assert [(start, part.tolist()) for start, part in cut] == [(0, [0, 1, 2, 3]), (2, [2, 3, 4, 5]), (4, [4, 5, 6])]


@pytest.mark.parametrize("pieces", [[], [np.zeros(4, np.float32)], [np.zeros(2, np.float32), np.zeros(2, np.float32)]])
def test_too_short(pieces: list[NDArray[np.float32]]) -> None:
    with pytest.raises(ClipError) as caught:
        list(Windows(window=10, hop=10, least=5).cut(pieces))
    assert caught.value.reason == Reason.TOO_SHORT
