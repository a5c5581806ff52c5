"""TensorBoard's event files: scalars, written in the thread that asks for it, so that a full disk is its error."""

import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FILE_VERSION = "brain.Event:2"


class EventFile:
    """Appends scalars to a new event file in `folder`.

    torch's SummaryWriter writes in a thread of its own, whose errors are shown as tracebacks and may be lost.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """TensorBoard forgets what earlier files of the folder say of `first_step` and later ones."""
        # Imported here: TensorBoard takes a second, and most commands do without it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._new_event, self._new_summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        # In the order of their names they are read; two may begin within a second, of one process.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(step=first_step, file_version=FILE_VERSION)
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, name: str, value: float, step: int) -> None:
        """One scalar."""
        summary = self._new_summary(value=[self._new_summary.Value(tag=name, simple_value=value)])
        self._write(step=step, summary=summary)

    def flush(self) -> None:
        """Hands what was added to the system."""
        self._file.flush()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._new_event(wall_time=time.time(), **fields).SerializeToString())

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
