"""Tars whose bytes depend on their members alone."""

import hashlib
import io
import tarfile
import zlib
from typing import Any, BinaryIO

import numpy as np


class TarWriter:
    """Writes an uncompressed ustar archive with fixed owner and time, hashing it on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0
        self.sample_crc32 = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def start_sample(self) -> int:
        """The members from here on belong to a new clip; returns the offset of the first one's header."""
        self.sample_crc32 = 0
        return self.size

    def add(self, name: str, content: bytes) -> int:
        """Appends a member; returns the offset of its content in the archive."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mode = 0o444
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(content)
        self._write(bytes(-self.size % tarfile.BLOCKSIZE))
        return offset

    def copy(self, members: bytes) -> None:
        """Appends members as they lie in another tar, headers and padding included."""
        self._write(members)

    def add_array(self, name: str, array: np.ndarray[Any, Any]) -> int:
        """Appends an array as npy; returns the offset of its data."""
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        return self.add(name, buffer.getvalue()) + buffer.tell() - array.nbytes

    def close(self) -> None:
        """Writes the end of the archive."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.sample_crc32 = zlib.crc32(content, self.sample_crc32)
        self.size += len(content)
