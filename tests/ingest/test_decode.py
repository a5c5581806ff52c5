"""Files of every format to 16 kHz mono: right pitch, level, length and place, or a typed reason."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.container import OutputContainer
from numpy.typing import NDArray

from ingest.decode import AudioInfo, decode, open_audio
from ingest.ledger import ClipError, Reason

RATE_HZ = 16_000
LEVEL = 0.4
Waveform = NDArray[np.float32]

# suffix: subtype or codec, largest error against the true tone. AAC and Opus come through PyAV.
SOUNDFILE_FORMATS = {
    "8.wav": ("PCM_U8", 0.01),
    "16.wav": ("PCM_16", 1e-3),
    "24.wav": ("PCM_24", 1e-3),
    "float.wav": ("FLOAT", 1e-3),
    "flac": ("PCM_16", 1e-3),
    "aiff": ("PCM_16", 1e-3),
    "w64": ("PCM_16", 1e-3),
    "ogg": ("VORBIS", 0.05),
    "mp3": ("MPEG_LAYER_III", 0.05),
}
FFMPEG_FORMATS = {
    "m4a": ("aac", 44_100),
    "mkv": ("aac", 44_100),
    "webm": ("libopus", 48_000),
    "opus": ("libopus", 48_000),
}


def tone(duration_s: float, rate_hz: int, num_channels: int = 1, hz: float = 1000.0) -> NDArray[np.float64]:
    """(num_samples, num_channels), the same in all channels."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return np.repeat(LEVEL * np.sin(2 * np.pi * hz * time_s)[:, None], num_channels, 1)


def sweep(duration_s: float, rate_hz: int) -> NDArray[np.float64]:
    """Never the same twice, so that a part read from a wrong place is seen."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return LEVEL * np.sin(2 * np.pi * (300 * time_s + 150 * time_s**2))[:, None]


def write_ffmpeg(path: Path, samples: NDArray[np.float64], codec: str, rate_hz: int, first_s: float = 0.0) -> None:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        planes = np.ascontiguousarray(samples.T, np.float32)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), round(first_s * rate_hz)
        container.mux([*stream.encode(frame), *stream.encode(None)])


def mux_pcm(container: OutputContainer, stream: av.AudioStream, duration_s: float) -> None:
    for first in range(0, round(duration_s * RATE_HZ), 1000):
        frame = av.AudioFrame.from_ndarray(np.full((1, 1000), 1000, np.int16), "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), first
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write(path: Path, samples: NDArray[np.float64], rate_hz: int) -> None:
    """By the end of the name, as in the tables above."""
    suffix = path.name.partition(".")[2]
    if suffix in FFMPEG_FORMATS:
        write_ffmpeg(path, samples, FFMPEG_FORMATS[suffix][0], rate_hz)
    else:
        soundfile.write(path, samples, rate_hz, subtype=SOUNDFILE_FORMATS[suffix][0])


def read(path: Path, start_s: float = 0.0, duration_s: float = 60.0) -> Waveform:
    with open_audio(path) as source:
        return decode(source, RATE_HZ, start_s, duration_s)


def info_of(path: Path) -> AudioInfo:
    with open_audio(path) as source:
        return source.info


def reason_of(path: Path) -> tuple[Reason, str]:
    with pytest.raises(ClipError) as caught:
        read(path)
    return caught.value.reason, caught.value.detail


def pitch_hz(waveform: Waveform) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(waveform.size)))
    return float(spectrum.argmax()) * RATE_HZ / waveform.size


def assert_is_the_tone(waveform: Waveform, duration_s: float, tolerance: float) -> None:
    assert waveform.dtype == np.float32
    # A codec pads to whole packets.
    excess = waveform.size - round(duration_s * RATE_HZ)
    assert abs(excess) <= 2 if tolerance < 0.02 else -100 <= excess <= 1200
    inner = waveform[800 : round(duration_s * RATE_HZ) - 800]
    assert pitch_hz(inner) == pytest.approx(1000.0, abs=2.0)
    assert np.sqrt(np.mean(inner**2)) == pytest.approx(LEVEL / np.sqrt(2), abs=tolerance)
    np.testing.assert_allclose(inner, tone(duration_s, RATE_HZ)[800:-800, 0], atol=tolerance)


@pytest.mark.parametrize("num_channels", [1, 2, 6])
@pytest.mark.parametrize("suffix", [*SOUNDFILE_FORMATS, *FFMPEG_FORMATS])
def test_every_format(tmp_path: Path, suffix: str, num_channels: int) -> None:
    if suffix == "mp3" and num_channels > 2:
        pytest.skip("MP3 has no more than two channels")
    path = tmp_path / f"a.{suffix}"
    rate_hz = FFMPEG_FORMATS.get(suffix, ("", 44_100))[1]
    write(path, tone(1.5, rate_hz, num_channels), rate_hz)
    waveform = read(path)
    if num_channels == 6 and suffix in ("ogg", "m4a", "mkv"):
        waveform *= 6 / 5  # in 5.1 these keep only the bass of the sixth channel
    assert_is_the_tone(waveform, 1.5, SOUNDFILE_FORMATS.get(suffix, ("", 0.05))[1])
    info = info_of(path)
    assert (info.sample_rate_hz, info.num_channels) == (rate_hz, num_channels)
    assert info.duration_s == pytest.approx(1.5, abs=0.06)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_every_rate(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "a.float.wav"
    write(path, tone(1.5, rate_hz), rate_hz)
    assert_is_the_tone(read(path), 1.5, 1e-3)


def test_what_is_above_8_khz_is_filtered_out(tmp_path: Path) -> None:
    path = tmp_path / "a.float.wav"
    write(path, tone(1.0, 48_000, hz=11_000.0), 48_000)
    assert np.abs(read(path)[200:-200]).max() < 1e-3


def test_16_khz_comes_through_untouched(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    assert np.array_equal(read(path), samples)


def test_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).uniform(-1, 1, (5000, 3)).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, channels, RATE_HZ, subtype="FLOAT")
    np.testing.assert_allclose(read(path), channels.mean(1), atol=1e-7)


@pytest.mark.parametrize("suffix", ["16.wav", "flac", "mp3", "m4a"])
@pytest.mark.parametrize(("start_s", "duration_s"), [(0.0, 1.0), (0.731, 0.5), (2.5, 1.0), (3.4, 0.5)])
def test_a_part_is_that_part_of_the_whole(tmp_path: Path, suffix: str, start_s: float, duration_s: float) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, sweep(4.0, 44_100), 44_100)
    whole, part = read(path), read(path, start_s, duration_s)
    first = round(start_s * RATE_HZ)
    assert part.size == round(duration_s * RATE_HZ)
    # A part starts on a sample of the file's own rate; its ends lack their neighbours for resampling.
    np.testing.assert_allclose(part[200:-200], whole[first : first + part.size][200:-200], atol=0.1 * LEVEL)


# Matroska's clock ticks in milliseconds.
@pytest.mark.parametrize(("suffix", "most_ms"), [("mkv", 1), ("webm", 1), ("ogg", 0), ("opus", 0)])
@pytest.mark.parametrize("start_s", [2.5, 2.97])
def test_a_part_is_in_its_place_to_the_format_s_precision(
    tmp_path: Path, suffix: str, most_ms: int, start_s: float
) -> None:
    path = tmp_path / f"a.{suffix}"
    rate_hz = FFMPEG_FORMATS.get(suffix, ("", 44_100))[1]
    write(path, sweep(4.0, rate_hz), rate_hz)
    whole, part = read(path), read(path, start_s, 1.0)
    first, most = round(start_s * RATE_HZ), 16 * most_ms
    assert part.size == pytest.approx(RATE_HZ, abs=most)
    errors = [
        np.abs(part[1000:-1000] - whole[first + lag :][1000 : part.size - 1000]).mean() / LEVEL
        for lag in range(-most - 4, min(most + 5, 500))
    ]
    assert min(errors) < 0.15
    assert abs(int(np.argmin(errors)) - most - 4) <= most


@pytest.mark.parametrize("suffix", ["ogg", "opus", "webm"])
def test_the_first_sample_is_the_first(tmp_path: Path, suffix: str) -> None:
    """What an encoder puts before the sound, to be dropped again, doesn't shift it."""
    rate_hz = FFMPEG_FORMATS.get(suffix, ("", 44_100))[1]
    write(tmp_path / f"a.{suffix}", sweep(2.0, rate_hz), rate_hz)
    part, truth = read(tmp_path / f"a.{suffix}", 0.0, 1.0), sweep(2.0, RATE_HZ)[:, 0]
    errors = [np.abs(part[2000:9000] - truth[2000 + lag : 9000 + lag]).mean() for lag in range(-200, 200)]
    assert abs(int(np.argmin(errors)) - 200) <= 8


@pytest.mark.parametrize("suffix", ["m4a", "mkv", "webm"])
def test_a_clock_that_starts_late_is_set_to_0(tmp_path: Path, suffix: str) -> None:
    codec, rate_hz = FFMPEG_FORMATS[suffix]
    plain, late = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    write_ffmpeg(plain, sweep(4.0, rate_hz), codec, rate_hz)
    write_ffmpeg(late, sweep(4.0, rate_hz), codec, rate_hz, first_s=20.0)
    for start_s in (0.0, 2.0):
        part = read(late, start_s, 1.0)
        assert part.size == RATE_HZ
        expected = 300 + 300 * (start_s + 0.5)
        assert pitch_hz(part[6000:-6000]) == pytest.approx(expected, abs=12)


def test_parts_at_and_past_the_end(tmp_path: Path) -> None:
    for suffix in ("16.wav", "m4a"):
        path = tmp_path / f"a.{suffix}"
        write(path, tone(2.0, 44_100), 44_100)
        assert read(path, 1.5, 10.0).size == pytest.approx(RATE_HZ // 2, abs=1000)
        assert read(path, 9.0, 1.0).size == 0


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 12_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("num_samples", [41_200, 82_160])
def test_a_window_of_a_long_file_is_exact_to_the_sample(tmp_path: Path, rate_hz: int, num_samples: int) -> None:
    path = tmp_path / "a.16.wav"
    write(path, tone(6.0, rate_hz), rate_hz)
    assert read(path, 0.3, num_samples / RATE_HZ).size == num_samples


@pytest.mark.parametrize("name", ["flac.mp3", "wav.m4a", "ogg.webm", "flac.wav", "m4a.wav", "webm.mp3"])
def test_a_wrong_extension_does_no_harm(tmp_path: Path, name: str) -> None:
    true, wrong = name.split(".")
    suffix = "16.wav" if true == "wav" else true
    path, renamed = tmp_path / f"a.{suffix}", tmp_path / f"b.{wrong}"
    write(path, tone(1.5, 48_000), 48_000)
    path.rename(renamed)
    assert_is_the_tone(read(renamed), 1.5, 0.05)


def test_odd_names(tmp_path: Path) -> None:
    for name in ("http:x.m4a", "a b?#%.m4a", "é.wav", "-.wav", "pipe:0.webm"):
        path = tmp_path / name
        write_ffmpeg(tmp_path / "a.m4a", tone(0.5, 44_100), "aac", 44_100)
        (tmp_path / "a.m4a").rename(path)
        assert pitch_hz(read(path)[:8000]) == pytest.approx(1000, abs=3)


def test_no_such_file(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "a.wav") == (Reason.MISSING, "no such file")
    assert reason_of(tmp_path / "none" / "a.wav")[0] is Reason.MISSING


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    assert reason_of(tmp_path / "a.wav")[0] is Reason.UNREADABLE


@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a", "webm"])
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.touch()
    assert reason_of(path) == (Reason.NOT_AUDIO, "the file is empty")


@pytest.mark.parametrize("suffix", ["wav", "flac", "m4a", "webm"])
@pytest.mark.parametrize("content", [b"Not Found\n" * 50, bytes(5000), b"RIFF", b"<html></html>", b"\x89PNG\r\n\x1a\n"])
def test_no_audio_by_an_audio_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    reason, detail = reason_of(path)
    assert reason in (Reason.NOT_AUDIO, Reason.NO_AUDIO_STREAM)
    assert str(tmp_path) not in detail
    assert "\n" not in detail


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile b.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nb.wav\n#EXT-X-ENDLIST\n",
        "v=0\nm=audio 0 RTP/AVP 0\n",
    ],
)
def test_no_file_leads_to_another(tmp_path: Path, suffix: str, playlist: str) -> None:
    soundfile.write(tmp_path / "b.wav", tone(1.0, RATE_HZ), RATE_HZ)
    path = tmp_path / f"a.{suffix}"
    path.write_text(playlist)
    assert reason_of(path)[0] is Reason.NOT_AUDIO


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_video_without_sound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4" if suffix == "mp4" else "libvpx", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    assert reason_of(path) == (Reason.NO_AUDIO_STREAM, "the container holds no audio stream")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    samples = tone(1.0, RATE_HZ)[:, 0].astype(np.float32)
    samples[12_000] = bad
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    assert reason_of(path)[0] is Reason.NON_FINITE
    assert read(path, 0.0, 0.5).size == 8000


def test_a_file_without_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.16.wav"
    write(path, np.zeros((0, 1)), 44_100)
    assert read(path).size == 0


def outcome(path: Path) -> Waveform | Reason:
    try:
        return read(path)
    except ClipError as error:
        return error.reason


@pytest.mark.parametrize("suffix", ["16.wav", "aiff", "w64", "mp3", "flac", "m4a", "webm", "mkv"])
def test_a_file_cut_in_the_middle_has_no_more_than_its_first_part(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    rate_hz = FFMPEG_FORMATS.get(suffix, ("", 44_100))[1]
    write(path, sweep(6.0, rate_hz), rate_hz)
    whole, content = read(path), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    reason, detail = reason_of(path)
    assert reason is (Reason.NOT_AUDIO if suffix == "m4a" else Reason.DECODE)
    if suffix not in ("m4a", "flac"):
        assert re.fullmatch(
            r"no sound from (2\.[4-9]|3\.[0-6]) s on, and its header tells of 6\.[01] s: the file was cut off", detail
        )
    if suffix != "m4a":
        np.testing.assert_allclose(read(path, 0.0, 1.0), whole[:16_000], atol=0.1 * LEVEL)


def test_a_cut_recording_whose_index_is_in_front(tmp_path: Path) -> None:
    path = tmp_path / "a.mov"
    with av.open(path, "w", options={"movflags": "+faststart"}) as container:
        mux_pcm(container, container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono"), 4.0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    reason, detail = reason_of(path)
    assert reason is Reason.DECODE
    assert detail.endswith("and its header tells of 4.0 s: the file was cut off")


def test_a_cut_vorbis_file_gives_its_first_part(tmp_path: Path) -> None:
    # Only its last page would tell its length.
    path = tmp_path / "a.ogg"
    write(path, sweep(4.0, 44_100), 44_100)
    whole, content = read(path), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    part = read(path)
    assert part.size < 0.6 * whole.size
    inner = slice(0, max(0, part.size - 2000))
    np.testing.assert_allclose(part[inner], whole[inner], atol=0.1 * LEVEL)


@pytest.mark.parametrize("told", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_from_a_pipe_tells_no_length(tmp_path: Path, told: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2.0, RATE_HZ), RATE_HZ)
    content = bytearray(path.read_bytes())
    size_at = content.index(b"data") + 4
    content[4:8] = content[size_at : size_at + 4] = told.to_bytes(4, "little")
    path.write_bytes(content)
    assert read(path).size == 2 * RATE_HZ


def test_a_video_longer_than_its_sound_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 32
        pictures.pix_fmt = "yuv420p"
        stream = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for _ in range(50):
            container.mux(pictures.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(pictures.encode(None))
        mux_pcm(container, stream, 2.0)
    assert read(path).size == 2 * RATE_HZ


@pytest.mark.parametrize("suffix", ["flac", "ogg", "m4a", "webm", "mkv"])
def test_damage_in_the_middle_is_no_crash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    rate_hz = FFMPEG_FORMATS.get(suffix, ("", 44_100))[1]
    write(path, sweep(4.0, rate_hz), rate_hz)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(10):
        start = int(rng.integers(len(content) - 500))
        path.write_bytes(content[:start] + rng.bytes(500) + content[start + 500 :])
        came = outcome(path)
        assert isinstance(came, Reason) or np.isfinite(came).all()


@pytest.mark.parametrize("tag", [b"VBRI", b"none", b"Xing"])
def test_an_mp3_of_variable_rate_whose_length_no_tag_tells(tmp_path: Path, tag: bytes) -> None:
    """libsndfile would guess it from the first frames, which are silent, and stop there."""
    path = tmp_path / "a.mp3"
    silent, loud = np.zeros(6 * RATE_HZ), np.random.default_rng(0).normal(0, 0.2, 6 * RATE_HZ)
    soundfile.write(path, np.concatenate([loud, silent]), RATE_HZ, bitrate_mode="VARIABLE", compression_level=0.2)
    content = bytearray(path.read_bytes())
    xing = content.index(b"Xing")
    if tag == b"Xing":
        content[xing + 7] &= ~1  # no count of frames follows
    else:
        content[xing : xing + 4] = b"none"
        content[36:40] = tag  # VBRI stands there, whatever the side information
    path.write_bytes(content)
    assert abs(read(path).size - 12 * RATE_HZ) < 0.2 * RATE_HZ
