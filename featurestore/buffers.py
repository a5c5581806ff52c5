"""Memory for batches, used again and again."""

import math
import threading
import weakref

import numpy as np
from numpy.typing import NDArray


class BufferPool:
    """Memory used again once nobody holds it: fresh pages cost as much time as the reading itself.

    An array over a bytearray is the base of all its views, and torch holds it too, so that the memory is free when that
    array is gone.
    """

    def __init__(self) -> None:
        self._memory: list[tuple[bytearray, weakref.ref[NDArray[np.float16]]]] = []
        # Two iterators of one loader fill their batches at the same time.
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float16]:
        """A float16 array with arbitrary content that nobody else holds."""
        with self._lock:
            return self._take(2 * math.prod(shape)).reshape(shape)

    def _take(self, num_bytes: int) -> NDArray[np.float16]:
        free = [entry for entry in self._memory if entry[1]() is None]
        memory = next((block for block, _ in free if len(block) == num_bytes), None)
        if memory is None:
            memory = bytearray(num_bytes)
        # What is free and not taken now is of another size, or more than the consumer needed: let it go.
        self._memory = [entry for entry in self._memory if entry[1]() is not None or len(entry[0]) == num_bytes]
        self._memory = [entry for entry in self._memory if entry[0] is not memory]
        array = np.frombuffer(memory, np.float16)
        self._memory.append((memory, weakref.ref(array)))
        return array
