"""An iterator worked off by a thread, a few items ahead of whoever consumes them."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

# What the thread is at when it is stopped takes far less.
THREAD_PATIENCE_S = 30.0
T = TypeVar("T")


def read_ahead(items: Generator[T], num_ahead: int, name: str) -> Iterator[T]:
    """The items, up to `num_ahead` of them ahead of the consumer; what the thread `name` raises comes out here.

    The generator runs, and is closed, in the thread alone.
    """
    ready: queue.Queue[Any] = queue.Queue(num_ahead)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, stopped), daemon=True, name=name)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        # Ctrl-C may have left the queue's lock taken, and then it never ends; it ends with the process.
        thread.join(THREAD_PATIENCE_S)


def _fill(items: Generator[Any], ready: "queue.Queue[Any]", stopped: threading.Event) -> None:
    last: BaseException | None = None
    try:
        for item in items:
            if not _put(ready, item, stopped):
                break
        items.close()
    except BaseException as error:  # handed to the consumer, who raises it
        last = error
    finally:
        _put(ready, last, stopped)


def _put(ready: "queue.Queue[Any]", item: Any, stopped: threading.Event) -> bool:
    """Puts `item`, unless the consumer has stopped."""
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
