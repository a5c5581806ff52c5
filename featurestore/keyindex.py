"""Where a key's row is: two million keys in 32 MB, by their hashes, and not as so many objects of Python's."""

import numpy as np
import pyarrow as pa

KEYS_A_PIECE = 1 << 16


class KeyIndex:
    """Finds the rows of keys. Of a key's rows the last one counts: the clip was tried again."""

    def __init__(self, keys: pa.Array) -> None:
        """`keys`: a key a row."""
        self._keys = keys
        pieces = (keys.slice(start, KEYS_A_PIECE).to_pylist() for start in range(0, len(keys), KEYS_A_PIECE))
        hashes = np.fromiter((hash(key) for piece in pieces for key in piece), np.int64, len(keys))
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]

    def row_of(self, key: str) -> int | None:
        """The key's last row; None for a key that isn't there."""
        first, stop = (int(np.searchsorted(self._hashes, hash(key), side)) for side in ("left", "right"))
        # Different keys may have one hash.
        for row in self._rows[first:stop][::-1].tolist():
            if self._keys[row].as_py() == key:
                return int(row)
        return None
