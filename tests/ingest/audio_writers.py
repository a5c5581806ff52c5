"""One sound, known at every instant, and what writes it into any container and codec."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from ingest.ledger import Reason

Samples = NDArray[np.float64]  # (num_samples, num_channels)

RATE_HZ = 44_100
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 6: "5.1", 8: "7.1"}
NUM_PARTIALS = 40
AMR = "libopencore_amrnb"  # which not every build of FFmpeg has
# An 8 kHz file holds no more than the lower, a 16 kHz file all.
NARROW_HZ, WIDE_HZ = 3400.0, 7000.0


# The largest mean difference of the log-mel energies, where the sound is loud, from those of the same sound in a plain
# 16 kHz file. A place wrong by 0.25 ms or a level wrong by 0.5 % makes 0.005; one frame (10 ms) or 10 % makes 0.2; a
# speed wrong by 1 % makes 0.9. Speech codecs, and FFmpeg's WMA encoder, can't do much with forty tones at once.
EXACT, LOSSY, SPEECH, ROUGH = 0.005, 0.15, 0.8, 1.4


@dataclass(frozen=True)
class Case:
    """A file and what the ledger must say of it: one of `reasons`, or where there are none, the right features.

    `start_s` and `end_s` are the clip's part of the file, `sound_s` is where in the sound the clip begins, `length_s`
    how much of it there is, `gain` how loud and `offset` around what. `duration_s` is the file's; None: of no matter.
    """

    name: str
    reasons: tuple[Reason, ...] = ()
    rate_hz: int = RATE_HZ
    num_channels: int = 1
    duration_s: float | None = 1.0
    tolerance: float = EXACT
    start_s: float | None = None
    end_s: float | None = None
    sound_s: float = 0.0
    length_s: float = 1.0
    narrow: bool = False
    gain: float = 1.0
    offset: float = 0.0


def _sine(turns: NDArray[np.float64]) -> NDArray[np.float32]:
    # In single precision, and so much faster, once whole turns are off.
    return np.sin((2 * np.pi * (turns - np.floor(turns))).astype(np.float32))


@lru_cache(maxsize=64)
def _sound(num_samples: int, rate_hz: int, top_hz: float, start_s: float) -> Samples:
    rng = np.random.default_rng(3)
    time_s = start_s + np.arange(num_samples) / rate_hz
    total = np.zeros(num_samples)
    for hz in np.geomspace(120, WIDE_HZ - 200, NUM_PARTIALS):
        bend_hz, beat_hz, phase, late = rng.uniform((1, 0.7, 0, 0), (4, 3, 1, 1))
        if hz <= top_hz - 200:
            turns = hz * time_s + 30 / (2 * np.pi * bend_hz) * _sine(bend_hz * time_s) + phase
            total += 0.02 * (1 + 0.9 * _sine(beat_hz * time_s + late)) * _sine(turns)
    total.setflags(write=False)
    return total


def sound(
    duration_s: float,
    rate_hz: int = RATE_HZ,
    num_channels: int = 1,
    *,
    start_s: float = 0.0,
    narrow: bool | None = None,
) -> Samples:
    """The part from `start_s` of an endless sound that never repeats itself, the same at every rate.

    It reaches up to 7 kHz, or, `narrow` and below 16 kHz, to 3.4 kHz. Channels differ in level and average to the
    sound; the fourth of six and eight is silent, since codecs keep only the bass there.
    """
    narrow = rate_hz < 16_000 if narrow is None else narrow
    top_hz = NARROW_HZ if narrow else WIDE_HZ
    gains = np.linspace(0.5, 1.5, num_channels) if num_channels > 1 else np.ones(1)
    if num_channels >= 6:
        gains[3] = 0.0
        gains *= num_channels / gains.sum()
    return _sound(round(duration_s * rate_hz), rate_hz, top_hz, start_s)[:, None] * gains


@dataclass(frozen=True)
class Track:
    """A stream to encode with FFmpeg: `first_s` is the time of its first sample."""

    samples: Samples
    codec: str
    rate_hz: int = RATE_HZ
    first_s: float = 0.0
    bit_rate: int | None = None
    options: dict[str, str] = field(default_factory=dict)


def mux(
    path: Path,
    *tracks: Track,
    form: str | None = None,
    video: str | None = None,
    video_s: float = 1.0,
    options: dict[str, str] | None = None,
    title: str = "",
) -> None:
    """Encodes tracks of sound, and a moving picture by the codec `video`, into a container of the format `form`."""
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        if title:
            container.metadata["title"] = title
        if video:
            picture = container.add_stream(video, rate=25)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p" if video == "mjpeg" else "yuv420p"
        streams = [_add_stream(container, track) for track in tracks]
        if video:
            for number in range(round(25 * video_s)):
                image = np.full((48, 64, 3), 8 * number % 256, np.uint8)
                container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(picture.encode(None))
        for stream, track in zip(streams, tracks, strict=True):
            container.mux([*stream.encode(_frame(track)), *stream.encode(None)])


def can_encode(codec: str) -> bool:
    """Whether this build of FFmpeg has the encoder."""
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _add_stream(container: av.container.OutputContainer, track: Track) -> av.AudioStream:
    stream = container.add_stream(track.codec, rate=track.rate_hz, layout=LAYOUTS[track.samples.shape[1]])
    stream.codec_context.options = track.options
    if track.bit_rate:
        stream.bit_rate = track.bit_rate
    return stream


def _frame(track: Track) -> av.AudioFrame:
    packed = np.ascontiguousarray(track.samples, np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[track.samples.shape[1]])
    frame.sample_rate, frame.time_base = track.rate_hz, Fraction(1, track.rate_hz)
    frame.pts = round(track.first_s * track.rate_hz)
    return frame


def mux_long(path: Path, quiet_s: float, track: Track, form: str | None = None) -> float:
    """Silence of about `quiet_s`, the track, and as much silence again, cheaply: the same packets over and over.

    Returns the second at which the track's sound begins.
    """
    with av.open(str(path), "w", format=form) as container:
        quiet = Track(np.zeros((8 * track.rate_hz, 1)), track.codec, track.rate_hz, options=track.options)
        stream = _add_stream(container, track)
        silent, loud = ([packet for packet in _packets(each) if packet.duration] for each in (quiet, track))
        silent = silent[2:-2]
        length = sum(packet.duration for packet in silent)
        count = int(quiet_s * track.rate_hz / length)
        # An encoder's first packets lie before 0: what it needs to start, which readers drop.
        pts = loud[0].pts
        for original in [*silent * count, *loud, *silent * count]:
            packet = av.Packet(bytes(original))
            packet.pts = packet.dts = pts
            packet.duration, packet.time_base, packet.stream = original.duration, Fraction(1, track.rate_hz), stream
            packet.is_keyframe = True
            pts += original.duration
            container.mux(packet)
    return count * length / track.rate_hz


def _packets(track: Track) -> list[av.Packet]:
    context = av.CodecContext.create(track.codec, "w")
    context.sample_rate, context.layout = track.rate_hz, LAYOUTS[track.samples.shape[1]]
    context.format, context.options = context.codec.audio_formats[0], track.options
    return [*context.encode(_frame(track)), *context.encode(None)]


def riff(*chunks: tuple[bytes, bytes], size: int | None = None, kind: bytes = b"RIFF") -> bytes:
    """A WAV file of (name, content) chunks; `size` is what its header says in place of the truth."""
    body = b"WAVE" + b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for name, content in chunks
    )
    return kind + struct.pack("<I", len(body) if size is None else size) + body


def pcm(samples: Samples) -> bytes:
    """16-bit little-endian."""
    return np.round(samples * 32767).astype("<i2").tobytes()


def fmt(rate_hz: int = RATE_HZ, num_channels: int = 1, tag: int = 1, bits: int = 16) -> bytes:
    """The content of a WAV file's `fmt ` chunk."""
    frame_size = num_channels * bits // 8
    return struct.pack("<HHIIHH", tag, num_channels, rate_hz, rate_hz * frame_size, frame_size, bits)


def write(path: Path, samples: Samples, rate_hz: int = RATE_HZ, subtype: str | None = None, **how: str) -> None:
    """Through libsndfile."""
    soundfile.write(path, samples, rate_hz, subtype, **how)


def id3(picture: bytes) -> bytes:
    """An ID3v2 tag with a title and a picture in front of an MP3."""
    frames = b"".join(
        name + struct.pack(">IH", len(content), 0) + content
        for name, content in ((b"TIT2", b"\x03A title"), (b"APIC", b"\0image/png\0\x03\0" + picture))
    )
    size = len(frames)
    return b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frames


def boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The outermost boxes of an MP4 file: their names and their bytes, header included."""
    while content:
        (size,) = struct.unpack(">I", content[:4])
        yield content[4:8], content[:size]
        content = content[size:]
