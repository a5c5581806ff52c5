"""Reading on through a file: gaps are silence, and nothing is decoded twice or heard twice."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from ingest.ffmpeg import Block, FFmpegSource

RATE_HZ = 48_000
GAP_S = 2.0
CODECS = {"webm": "libopus", "mkv": "aac", "m4a": "aac", "opus": "libopus"}


def sweep(duration_s: float) -> NDArray[np.float32]:
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    return (0.4 * np.sin(2 * np.pi * (300 * time_s + 20 * time_s**2))).astype(np.float32)


def write(path: Path, duration_s: float, gap_at_s: float | None = None) -> None:
    """A sweep; with a gap in its time stamps what comes behind it is GAP_S later than it would be."""
    frame_size = RATE_HZ // 50  # 20 ms, as Opus takes them
    sound = sweep(duration_s)
    with av.open(path, "w") as container:
        stream = container.add_stream(CODECS[path.suffix[1:]], rate=RATE_HZ, layout="mono")
        size = stream.codec_context.frame_size or frame_size
        for start in range(0, len(sound) - size + 1, size):
            later_s = GAP_S if gap_at_s is not None and start >= gap_at_s * RATE_HZ else 0.0
            kind = "fltp" if stream.codec_context.format.is_planar else "flt"
            frame = av.AudioFrame.from_ndarray(sound[None, start : start + size], format=kind, layout="mono")
            frame.sample_rate, frame.time_base = RATE_HZ, Fraction(1, RATE_HZ)
            frame.pts = start + round(later_s * RATE_HZ)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read(path: Path, *parts_s: tuple[float, float]) -> list[NDArray[np.float32]]:
    """Parts (start, duration), one after the other by one source."""
    source = FFmpegSource(path)
    try:
        return [source.read(round(start_s * RATE_HZ), round(size_s * RATE_HZ)) for start_s, size_s in parts_s]
    finally:
        source.close()


def pitch_hz(sound: NDArray[np.float32]) -> float:
    return float(np.abs(np.fft.rfft(sound * np.hanning(sound.size))).argmax()) * RATE_HZ / sound.size


@pytest.mark.parametrize("suffix", ["webm", "mkv", "m4a"])
def test_a_gap_in_the_time_stamps_is_silence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, 8.0, gap_at_s=3.0)
    (whole,) = read(path, (0.0, 60.0))
    assert whole.size / RATE_HZ == pytest.approx(8.0 + GAP_S, abs=0.1)
    assert not whole[round(3.2 * RATE_HZ) : round(4.9 * RATE_HZ)].any()
    for at_s, of_s in ((2.0, 2.0), (6.0, 4.0), (9.0, 7.0)):
        part = whole[round((at_s - 0.1) * RATE_HZ) : round((at_s + 0.1) * RATE_HZ)]
        assert pitch_hz(part) == pytest.approx(300 + 40 * of_s, abs=6)


@pytest.mark.parametrize("gap_at_s", [None, 5.0])
@pytest.mark.parametrize("suffix", CODECS)
def test_parts_that_overlap_a_little_are_those_of_the_whole(
    tmp_path: Path, suffix: str, gap_at_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, 20.0, gap_at_s)
    (whole,) = read(path, (0.0, 60.0))
    parts_s = [(0.0, 5.0), (3.0, 6.0), (7.0, 6.0), (11.0, 6.0), (15.0, 6.0), (20.5, 6.0)]
    opened = []
    once = FFmpegSource._open
    monkeypatch.setattr(FFmpegSource, "_open", lambda source: (opened.append(1), once(source))[1])
    for (start_s, size_s), part in zip(parts_s, read(path, *parts_s), strict=True):
        first = round(start_s * RATE_HZ)
        np.testing.assert_array_equal(part, whole[first : first + round(size_s * RATE_HZ)])
    # A format in which FFmpeg can't seek is opened again to go back, and only then.
    assert len(opened) == 1


def test_reading_a_file_to_its_end_decodes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.opus"
    write(path, 20.0)
    decoded = []
    once = FFmpegSource._frames
    monkeypatch.setattr(
        FFmpegSource, "_frames", lambda source: (decoded.append(frame.samples) or frame for frame in once(source))
    )
    parts = read(path, *((start_s, 1.0) for start_s in range(24)))
    assert sum(part.size for part in parts) == pytest.approx(20 * RATE_HZ, abs=1000)
    assert sum(decoded) < 21 * RATE_HZ


def test_after_a_failure_a_part_is_decoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.m4a"
    write(path, 10.0)
    (whole,) = read(path, (0.0, 60.0))
    source = FFmpegSource(path)
    first = source.read(0, RATE_HZ)
    once = FFmpegSource._go_on

    def interrupted(source: FFmpegSource) -> Iterator[Block]:
        yield next(once(source))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FFmpegSource, "_go_on", interrupted)
        with pytest.raises(KeyboardInterrupt):
            source.read(RATE_HZ, RATE_HZ)
    np.testing.assert_array_equal(first, whole[:RATE_HZ])
    np.testing.assert_array_equal(source.read(RATE_HZ // 2, RATE_HZ), whole[RATE_HZ // 2 : RATE_HZ * 3 // 2])
    source.close()
