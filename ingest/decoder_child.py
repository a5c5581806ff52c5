"""The helper process of :mod:`ingest.decoder`: decodes files that may make a decoder hang, crash or eat memory."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ingest.child import Reply, serve
from ingest.decode import measure_duration_s, open_audio
from ingest.ledger import ClipError, Reason
from ingest.window import read_window, source_sha256
from manifests.clips import Clip

# Libraries reserve address space that they never use; a window of audio needs some tens of MiB.
MAX_MEMORY_BYTES = 4 << 30


def answer(request: dict[str, Any]) -> Reply:
    """The reply to one request of the functions in :mod:`ingest.decoder`."""
    path = Path(request["path"])
    try:
        return _duration(path) if request["what"] == "duration" else _window(path, request)
    except ClipError as error:
        return {"reason": error.reason, "detail": error.detail}, b""
    except MemoryError:
        return {"reason": Reason.DECODE, "detail": "decoding it takes more memory than any clip should"}, b""


def _window(path: Path, request: dict[str, Any]) -> Reply:
    wanted = request["sha256"]
    if wanted is not None and source_sha256(path) != wanted:
        raise ClipError(Reason.DAMAGED, "it is not the file that was downloaded; the next run fetches it again")
    clip = Clip(request["key"], "", request["start_ms"], request["end_ms"])
    limits = request["sample_rate_hz"], request["window_s"], request["seed"], request["is_cut"]
    window = read_window(path, clip, *limits)
    header = {
        "start_ms": window.start_ms,
        "clip_start_ms": window.clip_start_ms,
        "info": asdict(window.info),
        "sha256": wanted or source_sha256(path),
    }
    return header, window.waveform.tobytes()


def _duration(path: Path) -> Reply:
    with open_audio(path) as source:
        return {"duration_s": source.info.duration_s or measure_duration_s(source)}, b""


if __name__ == "__main__":
    serve(answer, MAX_MEMORY_BYTES)
