"""A Ray cluster of several machines on this one, and what its processes are doing."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import ray
from ray._common.usage.usage_lib import put_cluster_metadata
from ray.cluster_utils import Cluster

# Processes take long to start on a busy machine; nothing here waits so long when all is well.
PATIENCE_S = 60.0
OBJECT_STORE_BYTES = 80 << 20
T = TypeVar("T")


class Machines:
    """A head that makes nothing, and machines of one core each."""

    def __init__(self) -> None:
        self._cluster = Cluster(True, head_node_args=_settings(num_cpus=0))
        self.address: str = self._cluster.address

    @property
    def nodes(self) -> list[Any]:
        return list(self._cluster.worker_nodes)

    def set_number(self, count: int) -> None:
        """Starts or kills machines until there are so many."""
        for node in self.nodes[count:]:
            self.kill(node)
        for _ in range(count - len(self.nodes)):
            self._cluster.add_node(wait=False, **_settings())
        self._cluster.wait_for_nodes(PATIENCE_S)

    def add_starved(self) -> Any:
        """A machine on which Ray finds too little memory for any task."""
        starved = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
        return self._cluster.add_node(**_settings(env_vars=starved))

    def kill(self, node: Any) -> None:
        """As if its power failed."""
        processes = _processes_of(node)
        self._cluster.remove_node(node, allow_graceful=False)
        for pid in processes:
            signal_if_there(pid, signal.SIGKILL)

    def node_of(self, pid: int) -> Any:
        return next(node for node in self.nodes if pid in _processes_of(node))

    def shutdown(self) -> None:
        self._cluster.shutdown()

    @contextmanager
    def pretending(self, ray_version: str) -> Iterator[None]:
        """Another version of Ray started the cluster, so far as it tells."""
        client = self._cluster.head_node.get_gcs_client()
        with mock.patch.object(ray, "__version__", ray_version):
            put_cluster_metadata(client, ray_init_cluster=False)
        yield
        put_cluster_metadata(client, ray_init_cluster=False)

    def workers(self) -> list[int]:
        """Ray's workers, busy and idle ones, and their helpers."""
        found = [pid for node in self.nodes for pid in _processes_of(node)]
        return [pid for pid in found if _is_worker(command_line(pid))]

    def writers(self, store: Path) -> list[int]:
        """The workers in the middle of a shard."""
        if not list(store.glob("shards/.*.tar.*")):
            return []  # far quicker to see
        return [pid for pid in self.workers() if any(_is_shard(path, store) for path in _open_files(pid))]

    def fetchers(self) -> list[int]:
        return [pid for pid in self.workers() if command_line(pid).startswith("ray::fetch")]

    @contextmanager
    def stopped_writer(self, store: Path, but: int | None = None) -> Iterator[int]:
        """Stops a worker in the middle of a shard; it goes on at the end, if it is still there."""
        pid = wait_for(lambda: next((pid for pid in self.writers(store) if pid != but), None))
        signal_if_there(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            signal_if_there(pid, signal.SIGCONT)


def wait_for(look: Callable[[], T | None]) -> T:
    """What `look` sees, as soon as that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (seen := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return seen


def command_line(pid: int) -> str:
    return _read(f"/proc/{pid}/cmdline").replace("\0", " ")


def is_there(pid: int) -> bool:
    """Whether a process runs, and isn't only waiting for its parent to ask how it ended."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])


def signal_if_there(pid: int, number: signal.Signals) -> None:
    if is_there(pid):
        os.kill(pid, number)


def processes_with(mark: str) -> list[int]:
    """Processes that have `mark` in their environment."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if mark in _read(f"/proc/{pid}/environ") and is_there(pid)]


def _settings(**changes: Any) -> dict[str, Any]:
    return {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, **changes}


def _is_worker(command: str) -> bool:
    return (command.startswith("ray::") and "Agent" not in command) or "-m ingest." in command


def _processes_of(node: Any) -> list[int]:
    return [pid for info in node.all_processes["raylet"] for pid in _descendants(info.process.pid)]


def _descendants(pid: int) -> list[int]:
    tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
    children = [int(child) for path in tasks for child in _read(path).split()]
    return children + [below for child in children for below in _descendants(child)]


def _open_files(pid: int) -> list[str]:
    try:
        return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []  # it has just ended


def _is_shard(path: str, store: Path) -> bool:
    return path.startswith(f"{(store / 'shards').resolve()}/") and ".tar." in path


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""  # it has just ended
