"""Starts a program so that Ctrl-C is one line and exit status 130 from its first moment on."""

# Nothing else is imported here: what these two take, no one is guarded against.
import os
import signal
from importlib import import_module
from types import FrameType

EXIT_INTERRUPTED = 130
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"


def start(module: str) -> None:
    """Imports a module and calls its `main`."""
    # Where it isn't Python's own, whoever started this wants no interruption: `nohup`, or `&` in a script.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        import_module(module).main()
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        import_module(module).main()
    finally:
        # What libraries do at the end would show a traceback, too.
        signal.signal(signal.SIGINT, _end)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, but not in an import: libraries make other errors of it there, or lose it."""
    if _is_importing(frame):
        _end(number, frame)
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False
