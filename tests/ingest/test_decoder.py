"""Decoding in a helper process: the same as here, and whatever happens to the helper becomes a reason."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest import decoder
from ingest.child import Child
from ingest.decoder import decode_duration_s, decode_window
from ingest.ledger import ClipError, Reason
from ingest.window import read_window
from manifests.clips import Clip
from tests.ingest.stores import write_sound

# Stands for the helper: it does what a file's name says before it decodes.
HELPER = """
import os, signal, sys, time
from pathlib import Path
from ingest import decoder_child
from ingest.child import serve

def answer(request):
    match Path(request["path"]).stem:
        case "hang":
            time.sleep(60)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.abort()
        case "exit":
            sys.exit(3)
        case "memory":
            raise_memory_error = bytearray(1 << 40)
    return decoder_child.answer(request)

if __name__ == "__main__":
    serve(answer, decoder_child.MAX_MEMORY_BYTES)
"""
LIMIT_S = 4.0


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which files make the decoder hang or end, by their names."""
    (tmp_path / "odd_decoder.py").write_text(HELPER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    monkeypatch.setattr(decoder, "TIME_LIMIT_S", LIMIT_S)
    with closing(Child("odd_decoder")) as child:
        monkeypatch.setattr(decoder, "_child", child)
        yield tmp_path


def size_of(path: Path) -> int:
    window, _ = decode_window(path, Clip("k", path.name), 16_000, 2.575, 0, False)
    return window.waveform.size


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("hang", Reason.TIMEOUT, "the decoder didn't end within 4 s"),
        ("kill", Reason.DECODE, "the decoder crashed: ended by signal 9 (Killed)"),
        ("crash", Reason.DECODE, "the decoder crashed: ended by signal 6 (Aborted)"),
        ("exit", Reason.DECODE, "the decoder crashed: ended with status 3"),
        ("memory", Reason.DECODE, "the decoder crashed: ended with status 1"),
    ],
)
def test_a_helper_that_comes_to_grief_is_a_reason(odd: Path, name: str, reason: Reason, detail: str) -> None:
    for number, stem in enumerate(("before", name, "after")):
        write_sound(odd / f"{stem}.wav", seed=number)
    assert size_of(odd / "before.wav") == 6400
    for ask in (size_of, decode_duration_s) if name != "hang" else (size_of,):
        with pytest.raises(ClipError) as caught:
            ask(odd / f"{name}.wav")
        assert (caught.value.reason, caught.value.detail) == (reason, detail)
    assert size_of(odd / "after.wav") == 6400


@pytest.mark.parametrize(
    ("clip", "is_cut"),
    [
        (Clip("k", "a.wav"), False),
        (Clip("k", "a.wav", 1000, 2000), False),
        (Clip("k", "a.wav", 1000, 2000), True),
        (Clip("k", "a.wav", 1000, 5500), None),
        (Clip("k", "a.wav", 9000), False),
    ],
)
def test_a_window_is_that_of_this_process(tmp_path: Path, clip: Clip, is_cut: bool | None) -> None:
    path = tmp_path / "a.wav"
    samples = np.random.default_rng(0).uniform(-1, 1, (60_000, 2))
    soundfile.write(path, samples, 11_025, subtype="PCM_24")
    here = read_window(path, clip, 16_000, 2.575, 7, is_cut)
    there, sha256 = decode_window(path, clip, 16_000, 2.575, 7, is_cut)
    assert np.array_equal(there.waveform, here.waveform)
    assert there.waveform.dtype == np.float32
    assert (there.start_ms, there.clip_start_ms, there.info) == (here.start_ms, here.clip_start_ms, here.info)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reasons_come_through(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    for name, reason in (("gone.wav", Reason.MISSING), ("text.wav", Reason.NOT_AUDIO), (".", Reason.UNREADABLE)):
        for ask in (size_of, decode_duration_s):
            with pytest.raises(ClipError) as caught:
                ask(tmp_path / name)
            assert caught.value.reason is reason
            assert str(tmp_path) not in caught.value.detail


def test_durations(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", duration_s=1.25)
    assert decode_duration_s(tmp_path / "a.wav") == 1.25


def test_a_large_file_gets_more_time(odd: Path) -> None:
    with (odd / "hang.wav").open("wb") as file:
        file.truncate(int(decoder.MIN_BYTES_PER_S))
    with pytest.raises(ClipError, match="the decoder didn't end within 5 s"):
        size_of(odd / "hang.wav")
