"""A Ray cluster of several machines on this one, and what its processes are doing."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ray.cluster_utils import Cluster

# Starting processes takes long on a busy machine; nothing here waits so long when all is well.
PATIENCE_S = 60.0
OBJECT_STORE_BYTES = 80 << 20
T = TypeVar("T")


class Machines:
    """A head that makes nothing, and machines of one core each."""

    def __init__(self) -> None:
        self._cluster = Cluster(True, head_node_args=self._settings(num_cpus=0))
        self.address: str = self._cluster.address

    def set_number(self, count: int) -> None:
        """Starts or kills machines until there are so many."""
        while len(self.nodes) > count:
            self.kill(self.nodes[0])
        missing = count - len(self.nodes)
        for _ in range(missing):
            self._cluster.add_node(wait=False, **self._settings())
        if missing:
            self._cluster.wait_for_nodes(PATIENCE_S)

    def add_starved(self) -> Any:
        """A machine on which Ray finds too little memory for any task."""
        starved = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
        return self._cluster.add_node(**self._settings(env_vars=starved))

    def kill(self, node: Any) -> None:
        """As if its power failed."""
        processes = [pid for top in raylets(node) for pid in descendants(top)]
        self._cluster.remove_node(node, allow_graceful=False)
        for pid in processes:
            signal_if_there(pid, signal.SIGKILL)

    def shutdown(self) -> None:
        self._cluster.shutdown()

    @property
    def nodes(self) -> list[Any]:
        return sorted(self._cluster.worker_nodes, key=lambda node: raylets(node)[0])

    @property
    def workers(self) -> list[int]:
        """All processes on the machines besides Ray's own, also the helpers of workers."""
        return [pid for node in self.nodes for top in raylets(node) for pid in descendants(top)]

    def holders(self, folder: Path) -> list[int]:
        """Processes on the machines that have an unfinished file open in `folder`, as the writer of a shard has."""
        return [pid for pid in self.workers if any(is_unfinished(path, folder) for path in open_files(pid))]

    @contextmanager
    def stopped_writer(self, store: Path, but: tuple[int, ...] = ()) -> Iterator[int]:
        """Stops a worker in the middle of a shard; it goes on at the end, if it is still there."""
        pid = wait_for(lambda: next((pid for pid in self.holders(store / "shards") if pid not in but), None))
        signal_if_there(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            signal_if_there(pid, signal.SIGCONT)

    def node_of(self, pid: int) -> Any:
        return next(node for node in self.nodes for top in raylets(node) if pid in descendants(top))

    @staticmethod
    def _settings(**changes: Any) -> dict[str, Any]:
        return {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, **changes}


def wait_for(look: Callable[[], T | None]) -> T:
    """What `look` sees, as soon as it sees something."""
    deadline = time.monotonic() + PATIENCE_S
    while (seen := look()) is None or seen is False:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return seen


def raylets(node: Any) -> list[int]:
    return [info.process.pid for info in node.all_processes["raylet"]]


def descendants(pid: int) -> list[int]:
    try:
        found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found + [below for child in found for below in descendants(child)]


def open_files(pid: int) -> list[str]:
    try:
        return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_unfinished(path: str, folder: Path) -> bool:
    return path.startswith(f"{folder.resolve()}/") and path.endswith(".partial")


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_there(pid: int) -> bool:
    """Whether a process runs, and isn't only waiting for its parent to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def signal_if_there(pid: int, number: signal.Signals) -> None:
    if is_there(pid):
        os.kill(pid, number)
