"""The helper process of :mod:`training.audiopieces`: goes through one file after the other, a piece a request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.child import Reply, serve
from ingest.ledger import ClipError, Reason
from training.audiopieces import pieces

# Libraries reserve address space that they never use; a piece of audio needs some tens of MiB.
MAX_MEMORY_BYTES = 4 << 30


class Pieces:
    """Answers requests for the pieces of a file, which have to be asked for in their order."""

    def __init__(self) -> None:
        self._pieces: Iterator[NDArray[np.float32]] = iter(())
        self._next: tuple[str, int] | None = None

    def __call__(self, request: dict[str, Any]) -> Reply:
        try:
            path, number = request["path"], request["number"]
            if number == 0:
                self._pieces = pieces(Path(path), request["sample_rate_hz"])
            elif self._next != (path, number):  # the helper that began with the file has died since
                raise ClipError(Reason.DECODE, "the decoder crashed between two pieces of it")
            self._next = path, number + 1
            piece = next(self._pieces, None)
        except ClipError as error:
            return {"reason": error.reason, "detail": error.detail}, b""
        except MemoryError:
            return {"reason": Reason.DECODE, "detail": "decoding it takes more memory than any sound should"}, b""
        except ValueError as error:  # a NUL in the path
            return {"reason": Reason.UNREADABLE, "detail": str(error)}, b""
        return {"ended": piece is None}, b"" if piece is None else np.ascontiguousarray(piece).tobytes()


if __name__ == "__main__":
    serve(Pieces(), MAX_MEMORY_BYTES)
