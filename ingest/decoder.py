"""Decodes in a helper process, so that no file can hang or crash a worker: it becomes a ledger row instead."""

import atexit
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ingest.child import Child, ChildDiedError, ChildTimeoutError
from ingest.ledger import AudioInfo, ClipError, Reason
from ingest.window import Window
from manifests.clips import Clip

TIME_LIMIT_S = 60.0
# A long file gets longer, since all of it is read for its hash, for its length, or to come to a place in a format
# without an index.
MIN_BYTES_PER_S = 5e6

_child = Child("ingest.decoder_child")
atexit.register(_child.close)
_lock = Lock()


def decode_window(
    path: Path,
    clip: Clip,
    sample_rate_hz: int,
    window_s: float,
    seed: int,
    is_cut: bool | None,
    sha256: str | None = None,
) -> tuple[Window, str]:
    """:func:`ingest.window.read_window` and the file's sha256, in the helper process and within a time limit.

    Raises ClipError, for a decoder that hangs or crashes too, and for a file that doesn't come to `sha256`.
    """
    request = {
        "what": "window",
        "key": clip.key,
        "start_ms": clip.start_ms,
        "end_ms": clip.end_ms,
        "sample_rate_hz": sample_rate_hz,
        "window_s": window_s,
        "seed": seed,
        "is_cut": is_cut,
        "sha256": sha256,
    }
    header, content = _ask(path, request)
    waveform = np.frombuffer(content, np.float32)
    return Window(waveform, header["start_ms"], header["clip_start_ms"], AudioInfo(**header["info"])), header["sha256"]


def decode_duration_s(path: Path) -> float:
    """How long the sound of a file is, by decoding it where the file doesn't tell. Raises ClipError."""
    return float(_ask(path, {"what": "duration"})[0]["duration_s"])


def _ask(path: Path, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
    with _lock:
        return ask_decoder(_child, path, request)


def ask_decoder(child: Child, path: Path, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
    """The reply of a helper that decodes `path`, and its bytes, within a limit that a longer file has longer.

    Raises ClipError: what the helper's reply says is wrong, or a decoder that hangs or crashes.
    """
    limit_s = TIME_LIMIT_S + _size(path) / MIN_BYTES_PER_S
    try:
        header, content = child.call({**request, "path": str(path)}, limit_s)
    except ChildTimeoutError as error:
        raise ClipError(Reason.TIMEOUT, f"the decoder didn't end within {limit_s:.0f} s") from error
    except ChildDiedError as error:
        raise ClipError(Reason.DECODE, f"the decoder crashed: {error}") from error
    if "reason" in header:
        raise ClipError(Reason(header["reason"]), header["detail"])
    return header, content


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0  # the helper says what is wrong with it
