"""Audio files made by hand, torn, of odd content or none, each with what an ingest must make of it."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ingest.ledger import Reason
from tests.ingest.audio_writers import LOSSY, RATE_HZ, Case, Track, boxes, fmt, mux, pcm, riff, sound, write


def riffs(folder: Path) -> Iterator[Case]:
    """WAV files made by hand."""
    header, data = fmt(), pcm(sound(1.0))
    plain = riff((b"fmt ", header), (b"data", data))
    sized = plain.index(b"data") + 4

    def with_sizes(whole: int, content: int) -> bytes:
        return plain[:4] + struct.pack("<I", whole) + plain[8:sized] + struct.pack("<I", content) + plain[sized + 4 :]

    for name, content in (
        (
            "chunks",
            riff((b"fmt ", header), (b"LIST", b"INFOabc"), (b"junk", bytes(3)), (b"data", data), (b"id3 ", b"x" * 5)),
        ),
        ("fmt18", riff((b"fmt ", header + bytes(2)), (b"data", data))),
        ("streamed_ff", with_sizes(0xFFFFFFFF, 0xFFFFFFFF)),
        ("streamed_riff0", with_sizes(0, 0xFFFFFFFF)),
        ("too_large", with_sizes(0x7FFFFFFE, 0x7FFFFFDA)),
        ("align0", riff((b"fmt ", header[:12] + bytes(2) + header[14:]), (b"data", data))),
        ("twice", plain + plain),
        ("tail", plain + b"\0" * 5001),
    ):
        (folder / f"riff_{name}.wav").write_bytes(content)
        yield Case(f"riff_{name}.wav")
    short, nothing = (Reason.TOO_SHORT,), (Reason.NOT_AUDIO,)
    for name, content, reasons in (
        ("streamed_0", with_sizes(0, 0), short),
        ("header", plain[:44], short),
        ("half_header", plain[:20], nothing),
        ("no_data", riff((b"fmt ", header)), nothing),
        ("unknown", riff((b"fmt ", fmt(tag=0x1234)), (b"data", data)), nothing),
        ("rate_0", riff((b"fmt ", fmt(0)), (b"data", data)), nothing),
        ("rate_1", riff((b"fmt ", fmt(1)), (b"data", data)), nothing),
        ("rate_huge", riff((b"fmt ", fmt(2_000_000_011)), (b"data", data)), nothing),
        ("channels_0", riff((b"fmt ", fmt(num_channels=0)), (b"data", data)), nothing),
    ):
        (folder / f"riff_{name}.wav").write_bytes(content)
        yield Case(f"riff_{name}.wav", reasons)


def torn(folder: Path) -> Iterator[Case]:
    """Cut in the middle and behind the header: a reason, but for Opus in Ogg, whose header tells no length."""
    broken = (Reason.DECODE, Reason.NOT_AUDIO, Reason.TOO_SHORT)
    for name, codec, rate_hz, head, case in (
        ("wav", "pcm_s16le", RATE_HZ, 80, Case("", (Reason.DECODE,))),
        ("flac", "flac", RATE_HZ, 86, Case("", (Reason.DECODE,))),
        ("opus", "libopus", 48_000, 120, Case("", rate_hz=48_000, length_s=1.0, duration_s=None, tolerance=LOSSY)),
        ("mp3", "libmp3lame", RATE_HZ, 500, Case("", (Reason.DECODE,))),
        ("m4a", "aac", RATE_HZ, 40, Case("", (Reason.NOT_AUDIO,))),
        ("mp4", "aac", RATE_HZ, 40, Case("", (Reason.NOT_AUDIO,))),
        ("webm", "libopus", 48_000, 400, Case("", (Reason.DECODE,))),
        ("mkv", "flac", RATE_HZ, 500, Case("", (Reason.DECODE,))),
        ("aac", "aac", RATE_HZ, 3, Case("", (Reason.DECODE,))),
    ):
        whole = folder / f"whole.{name}"
        mux(whole, Track(sound(3.0, rate_hz), codec, rate_hz), form={"aac": "adts"}.get(name))
        content = whole.read_bytes()
        whole.unlink()
        (folder / f"torn.{name}").write_bytes(content[: len(content) // 2])
        yield replace(case, name=f"torn.{name}")
        (folder / f"head.{name}").write_bytes(content[:head])
        yield Case(f"head.{name}", broken)
        (folder / f"empty.{name}").touch()
        yield Case(f"empty.{name}", (Reason.NOT_AUDIO,))
    mux(folder / "no_samples.m4a", Track(sound(1.0), "aac"))
    content = b"".join(box for name, box in boxes((folder / "no_samples.m4a").read_bytes()) if name != b"mdat")
    (folder / "no_samples.m4a").write_bytes(content)
    yield Case("no_samples.m4a", broken)


def no_audio(folder: Path) -> Iterator[Case]:
    """Other things by an audio file's name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.txt", np.random.default_rng(0).bytes(100_000))
    for name, content in (
        ("text.wav", b"I am a text.\n" * 100),
        ("page.mp3", b"<!doctype html><html><body>404 Not Found</body></html>"),
        ("error.m4a", json.dumps({"error": "Too many requests"}).encode()),
        ("picture.mp3", _png()),
        ("archive.mp3", archive.getvalue()),
        ("archive.flac", archive.getvalue()),
        ("zeros.wav", bytes(5000)),
        ("zeros.mp3", bytes(100_000)),
        ("noise.aac", np.random.default_rng(0).bytes(200_000)),
        ("ones.mp3", b"\xff" * 100_000),
        ("list.m3u8.mp3", b"#EXTM3U\n#EXTINF:1,\nplain.wav\n#EXT-X-ENDLIST\n"),
        ("one_byte.ogg", b"O"),
    ):
        (folder / name).write_bytes(content)
        yield Case(name, (Reason.NOT_AUDIO, Reason.DECODE))


def _png() -> bytes:
    rows = b"".join(b"\0" + np.random.default_rng(row).bytes(270) for row in range(90))
    header = struct.pack(">IIBBBBB", 90, 90, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def levels(folder: Path) -> Iterator[Case]:
    """Floats out of range, offsets, silence, and what is no number at all."""
    base = {"rate_hz": 16_000}
    plain = sound(1.0, 16_000)
    for name, samples, case in (
        ("loud", 40 * plain, Case("", gain=40.0, **base)),
        ("quiet", 1e-3 * plain, Case("", gain=1e-3, **base)),
        ("offset", plain + 0.5, Case("", offset=0.5, **base)),
        ("silence", 0 * plain, Case("", gain=0.0, **base)),
        ("denormal", plain * 1e-40, Case("", gain=0.0, **base)),
        ("integers", 32_768 * plain, Case("", gain=32_768.0, **base)),
        ("enormous", 1e30 * plain, Case("", (Reason.NON_FINITE,))),
        ("beyond_float", 1e300 * plain, Case("", (Reason.NON_FINITE,))),
    ):
        write(folder / f"level_{name}.wav", samples, 16_000, "DOUBLE")
        yield replace(case, name=f"level_{name}.wav")
    stereo = sound(3.0, 16_000, 2)
    for name, value, channel in (("nan", np.nan, [0, 1]), ("nan_left", np.nan, [0]), ("inf", np.inf, [0, 1])):
        spoilt = stereo.copy()
        spoilt[20_000, channel] = value
        write(folder / f"level_{name}.wav", spoilt, 16_000, "FLOAT")
        yield Case(f"level_{name}.wav", (Reason.NON_FINITE,))
        write(folder / f"level_{name}_elsewhere.wav", spoilt, 16_000, "FLOAT")
        part = {"start_s": 1.5, "end_s": 2.5, "sound_s": 1.5, "duration_s": 3.0, "num_channels": 2}
        yield Case(f"level_{name}_elsewhere.wav", **part, **base)
    spoilt = sound(1.0)
    spoilt[20_000] = np.nan
    mux(folder / "level_nan.mkv", Track(spoilt, "pcm_f32le"))
    yield Case("level_nan.mkv", (Reason.NON_FINITE,))


def lengths(folder: Path) -> Iterator[Case]:
    """In samples at 16 kHz: one frame is 400, the window of 256 frames 41,200."""
    for count in (0, 1, 399, 400, 401, 41_199, 41_200, 41_201):
        write(folder / f"length_{count}.wav", sound(count / 16_000, 16_000), 16_000, "PCM_16")
        short = (Reason.TOO_SHORT,) if count < 400 else ()
        yield Case(f"length_{count}.wav", short, 16_000, duration_s=count / 16_000, length_s=count / 16_000)
    write(folder / "length_1.flac", sound(1 / 192_000, 192_000), 192_000)
    yield Case("length_1.flac", (Reason.TOO_SHORT,))
