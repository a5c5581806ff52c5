"""A file's sound, piece after piece, from a helper process: no file can hang or crash who asks for it."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.child import Child
from ingest.decode import decode, open_audio
from ingest.decoder import ask_decoder

PIECE_S = 30
# So much of the neighbours is resampled with a piece, and cut off again: no seam is left. Whole seconds of any rate are
# whole samples.
MARGIN_S = 1


def pieces(path: Path, sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """The file as mono float32 at `sample_rate_hz`: pieces of PIECE_S, of which only the last is shorter, or empty.

    Raises ClipError.
    """
    with open_audio(path) as source:
        margin_s = 0 if source.info.sample_rate_hz == sample_rate_hz else MARGIN_S
        start_s, num_samples = 0, PIECE_S * sample_rate_hz
        while True:
            lead_s = min(start_s, margin_s)
            wider = decode(source, sample_rate_hz, start_s - lead_s, lead_s + PIECE_S + margin_s)
            piece = wider[lead_s * sample_rate_hz :][:num_samples]
            yield piece
            if piece.size < num_samples:
                return
            start_s += PIECE_S


class PieceReader:
    """:func:`pieces` in a helper process of its own, each within a time limit; for one thread at a time."""

    def __init__(self) -> None:
        self._child = Child("training.audiopieces_child")

    def pieces(self, path: Path, sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
        """As :func:`pieces`; raises ClipError for a decoder that hangs or crashes, too."""
        for number in count():
            header, content = ask_decoder(self._child, path, {"sample_rate_hz": sample_rate_hz, "number": number})
            if header["ended"]:
                return
            yield np.frombuffer(content, np.float32)

    def kill(self) -> None:
        """Makes a call under way fail; from any thread."""
        self._child.kill()

    def close(self) -> None:
        """Ends the helper."""
        self._child.close()
