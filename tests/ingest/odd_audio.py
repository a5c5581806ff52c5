"""A corpus of odd audio files, each with what an ingest must make of it: the right features, or a typed reason."""

import io
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from ingest.ledger import Reason
from tests.ingest.audio_writers import (
    RATE_HZ,
    Samples,
    Track,
    boxes,
    fmt,
    id3,
    mux,
    mux_long,
    pcm,
    riff,
    sound,
    write,
)

EXACT, LOSSY, SPEECH = 0.02, 0.1, 0.4


@dataclass(frozen=True)
class Case:
    """A file and what the ledger must say of it: one of `reasons`, or where there are none, the right features.

    `start_s` and `end_s` are the clip's part of the file, `sound_s` is where in the sound the clip begins, and `length_s`
    how much there is of it. `duration_s` is the file's; None where the ledger need not know it.
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


def corpus(folder: Path) -> list[Case]:
    """Writes all files into the folder."""
    makers = (rates, channels, sample_formats, containers, videos, mp3s, streams, riffs, torn, no_audio)
    return [case for make in (*makers, levels, lengths, names, three_hours) for case in make(folder)]


def rates(folder: Path) -> Iterator[Case]:
    for rate_hz in (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400):
        case = Case(f"rate_{rate_hz}.wav", rate_hz=rate_hz, narrow=rate_hz < 16_000)
        write(folder / case.name, sound(1.0, rate_hz), rate_hz, "PCM_16")
        yield case
    write(folder / "rate_192000.flac", sound(1.0, 192_000), 192_000, "PCM_24")
    yield Case("rate_192000.flac", rate_hz=192_000)


def channels(folder: Path) -> Iterator[Case]:
    for count in (2, 3, 6, 8):
        for suffix in ("wav", "flac"):
            case = Case(f"channels_{count}.{suffix}", num_channels=count)
            write(folder / case.name, sound(1.0, num_channels=count), subtype="PCM_16")
            yield case
    for count in (2, 8):
        case = Case(f"channels_{count}.ogg", num_channels=count, tolerance=LOSSY)
        write(folder / case.name, sound(1.0, num_channels=count))
        yield case
    for count in (2, 6, 8):
        case = Case(f"channels_{count}.m4a", num_channels=count, tolerance=LOSSY)
        mux(folder / case.name, Track(sound(1.0, num_channels=count), "aac"))
        yield case
        case = Case(f"channels_{count}.webm", num_channels=count, tolerance=LOSSY, rate_hz=48_000)
        mux(folder / case.name, Track(sound(1.0, 48_000, count), "libopus", 48_000))
        yield case


def sample_formats(folder: Path) -> Iterator[Case]:
    for name, subtype, tolerance in (
        ("u8.wav", "PCM_U8", LOSSY),
        ("24.wav", "PCM_24", EXACT),
        ("32.wav", "PCM_32", EXACT),
        ("float.wav", "FLOAT", EXACT),
        ("double.wav", "DOUBLE", EXACT),
        ("mulaw.wav", "ULAW", LOSSY),
        ("alaw.wav", "ALAW", LOSSY),
        ("ima.wav", "IMA_ADPCM", LOSSY),
        ("ms.wav", "MS_ADPCM", LOSSY),
        ("gsm.wav", "GSM610", SPEECH),
        ("g721.wav", "G721_32", LOSSY),
        ("8.flac", "PCM_S8", LOSSY),
        ("24.flac", "PCM_24", EXACT),
        ("24.aiff", "PCM_24", EXACT),
        ("float.aiff", "FLOAT", EXACT),
        ("16.au", "PCM_16", EXACT),
        ("mulaw.au", "ULAW", LOSSY),
        ("24.caf", "PCM_24", EXACT),
        ("alac.caf", "ALAC_16", EXACT),
        ("16.w64", "PCM_16", EXACT),
        ("vorbis.ogg", "VORBIS", LOSSY),
    ):
        write(folder / f"format_{name}", sound(1.0), subtype=subtype)
        yield Case(f"format_{name}", tolerance=tolerance)
    for name, how in (
        ("extensible.wav", {"format": "WAVEX", "subtype": "PCM_24"}),
        ("rf64.wav", {"format": "RF64", "subtype": "PCM_16"}),
        ("bigendian.wav", {"format": "WAV", "subtype": "PCM_16", "endian": "BIG"}),
        ("littleendian.aiff", {"format": "AIFF", "subtype": "PCM_16", "endian": "LITTLE"}),
        ("sphere.wav", {"format": "NIST", "subtype": "PCM_16"}),
    ):
        write(folder / f"format_{name}", sound(1.0), **how)
        yield Case(f"format_{name}")
    write(folder / "format_opus.opus", sound(1.0, 48_000), 48_000, "OPUS", format="OGG")
    yield Case("format_opus.opus", rate_hz=48_000, tolerance=LOSSY)


def containers(folder: Path) -> Iterator[Case]:
    """What FFmpeg alone reads. Where no header tells how much an encoder puts in front, the sound comes later."""
    wide, low = sound(1.0), sound(1.0, 8_000)
    for name, track, form, late in (
        ("aac.m4a", Track(wide, "aac"), None, 0),
        ("alac.m4a", Track(wide, "alac"), None, 0),
        ("ac3.mkv", Track(wide, "ac3"), None, 0),
        ("pcm.mkv", Track(wide, "pcm_f32le"), None, 0),
        ("flac.ogg", Track(wide, "flac"), None, 0),
        ("tta.tta", Track(wide, "tta"), None, 0),
        ("wavpack.wv", Track(wide, "wavpack"), None, 0),
        ("adts.aac", Track(wide, "aac"), "adts", 1024),
        ("ac3.ac3", Track(wide, "ac3"), None, 256),
        ("eac3.eac3", Track(wide, "eac3"), "eac3", 256),
        ("aac.ts", Track(wide, "aac"), "mpegts", 1024),
        ("aac.flv", Track(wide, "aac"), None, 1024),
        ("wma.wma", Track(wide, "wmav2", bit_rate=96_000), "asf", 2009),
        ("amr.amr", Track(low, "libopencore_amrnb", 8_000, bit_rate=12_200), "amr", 40),
        ("amr.3gp", Track(low, "libopencore_amrnb", 8_000, bit_rate=12_200), None, 0),
    ):
        mux(folder / f"in_{name}", track, form=form)
        kind = SPEECH if track.rate_hz == 8_000 else LOSSY
        yield Case(
            f"in_{name}", rate_hz=track.rate_hz, tolerance=kind, sound_s=-late / track.rate_hz, narrow=kind == SPEECH
        )


def videos(folder: Path) -> Iterator[Case]:
    """Moving pictures with sound, without, and with sound that begins later than they do."""
    wide = sound(1.0)
    for name, codec, video, late in (
        ("mp4", "aac", "mpeg4", 0),
        ("mov", "pcm_s16le", "mjpeg", 0),
        ("mkv", "flac", "mpeg4", 0),
        ("avi", "libmp3lame", "mpeg4", 1105),
        ("mpg", "mp2", "mpeg1video", 481),
    ):
        mux(folder / f"video.{name}", Track(wide, codec), video=video)
        yield Case(f"video.{name}", tolerance=LOSSY, sound_s=-late / RATE_HZ)
    mux(folder / "video.webm", Track(sound(1.0, 48_000), "libopus", 48_000), video="libvpx")
    yield Case("video.webm", tolerance=LOSSY, rate_hz=48_000)
    for name in ("mp4", "mkv"):
        mux(folder / f"mute.{name}", video="mpeg4")
        yield Case(f"mute.{name}", (Reason.NO_AUDIO_STREAM,))
    for name, codec in (("mov", "pcm_s16le"), ("mkv", "flac"), ("ts", "ac3")):
        track = Track(sound(3.0), codec, first_s=1.5)
        mux(folder / f"late.{name}", track, video="mpeg2video", video_s=4.5)
        late_s = 256 / RATE_HZ if codec == "ac3" else 0.0
        yield Case(f"late.{name}", tolerance=LOSSY, duration_s=4.5, start_s=2.0, end_s=3.0, sound_s=0.5 - late_s)
        mux(folder / f"gap.{name}", track, video="mpeg2video", video_s=4.5)
        yield Case(f"gap.{name}", duration_s=4.5, start_s=0.25, end_s=1.25, gain=0.0)


def mp3s(folder: Path) -> Iterator[Case]:
    """With and without the header that counts the frames, behind tags and junk. An encoder puts 1105 samples in front."""
    write(folder / "mp3_vbr.mp3", sound(3.0), bitrate_mode="VARIABLE", compression_level=0.3)
    vbr = (folder / "mp3_vbr.mp3").read_bytes()
    headless = vbr[vbr.index(vbr[:2], 4) :]
    part = {"duration_s": 3.0, "start_s": 1.5, "end_s": 2.5, "tolerance": LOSSY}
    yield Case("mp3_vbr.mp3", sound_s=1.5, **part)
    picture = np.random.default_rng(0).bytes(2_000_000)
    for name, content in (
        ("picture", id3(picture) + vbr),
        ("two_tags", id3(b"x" * 3000) + id3(b"y" * 3000) + vbr),
        ("tail", vbr + b"TAG" + bytes(125)),
        ("junk", b"junk " * 1000 + vbr),
        ("zeros", bytes(10_000) + vbr),
    ):
        (folder / f"mp3_{name}.mp3").write_bytes(content)
        yield Case(f"mp3_{name}.mp3", sound_s=1.5, **part)
    (folder / "mp3_headless.mp3").write_bytes(headless)
    yield Case("mp3_headless.mp3", sound_s=1.5 - 1105 / RATE_HZ, **part | {"duration_s": None})
    write(folder / "mp3_cbr.mp3", sound(1.0), bitrate_mode="CONSTANT")
    yield Case("mp3_cbr.mp3", tolerance=LOSSY)
    mux(folder / "mp3_in.wav", Track(sound(1.0), "libmp3lame"))
    yield Case("mp3_in.wav", tolerance=LOSSY, sound_s=-1105 / RATE_HZ)


def streams(folder: Path) -> Iterator[Case]:
    """Several streams, unknown codecs, streams that change on the way, clocks that start elsewhere, fragments."""
    wide, low = Track(sound(1.0), "aac"), Track(sound(1.0, 22_050, 2), "aac", 22_050)
    mux(folder / "two.mkv", wide, Track(np.zeros((48_000, 2)), "ac3", 48_000))
    yield Case("two.mkv", tolerance=LOSSY)
    two = (folder / "two.mkv").read_bytes()
    (folder / "two_first_unknown.mkv").write_bytes(two.replace(b"A_AC3", b"A_XYZ"))
    yield Case("two_first_unknown.mkv", tolerance=LOSSY)
    (folder / "unknown.mkv").write_bytes(two.replace(b"A_AC3", b"A_XYZ").replace(b"A_AAC", b"A_XYZ"))
    yield Case("unknown.mkv", (Reason.NOT_AUDIO,))
    mux(folder / "wide.aac", wide, form="adts")
    mux(folder / "low.aac", low, form="adts")
    (folder / "changing.aac").write_bytes((folder / "wide.aac").read_bytes() + (folder / "low.aac").read_bytes())
    # The second part begins after 45 frames, of which the first is silent, at another rate and with two channels.
    after_s = 45 * 1024 / RATE_HZ
    yield Case(
        "changing.aac", duration_s=None, tolerance=LOSSY, start_s=after_s + 1024 / 22_050, end_s=2.0, length_s=0.9
    )
    write(folder / "first.ogg", sound(1.0))
    write(folder / "second.ogg", sound(1.0, 22_050, 2), 22_050)
    (folder / "chained.ogg").write_bytes((folder / "first.ogg").read_bytes() + (folder / "second.ogg").read_bytes())
    yield Case("chained.ogg", tolerance=LOSSY)
    for name, options in (
        ("fragments.m4a", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
        ("dash.mp4", {"movflags": "dash+frag_every_frame"}),
    ):
        mux(folder / name, wide, options=options)
        yield Case(name, tolerance=LOSSY, sound_s=-1024 / RATE_HZ)
    mux(folder / "faststart.m4a", wide, options={"movflags": "faststart"})
    yield Case("faststart.m4a", tolerance=LOSSY)
    for name in ("later.m4a", "later.mkv"):
        mux(folder / name, Track(sound(1.0), "aac", first_s=20.0))
        yield Case(name, tolerance=LOSSY)
    mux(folder / "latin.m4a", wide, title="caf-title")
    (folder / "latin.m4a").write_bytes((folder / "latin.m4a").read_bytes().replace(b"caf-", b"caf\xe9"))
    yield Case("latin.m4a", tolerance=LOSSY)
    write(folder / "total.flac", sound(3.0))
    flac = bytearray((folder / "total.flac").read_bytes())
    for name, high, low_bytes in (("streamed.flac", 0, b"\0" * 4), ("lying.flac", 15, b"\xff" * 4)):
        flac[21], flac[22:26] = flac[21] & 0xF0 | high, low_bytes
        (folder / name).write_bytes(flac)
        yield Case(name, duration_s=None, start_s=1.5, end_s=2.5, sound_s=1.5)


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
    """Cut in the middle and behind the header: the first half where a format allows for it."""
    broken = (Reason.DECODE, Reason.NOT_AUDIO, Reason.TOO_SHORT)
    half = {"length_s": 0.45, "duration_s": None, "tolerance": LOSSY}
    for name, codec, rate_hz, head, case in (
        ("wav", "pcm_s16le", RATE_HZ, 80, Case("", **half)),
        ("flac", "flac", RATE_HZ, 86, Case("", (Reason.DECODE,))),
        ("ogg", "flac", RATE_HZ, 200, Case("", **half)),
        ("opus", "libopus", 48_000, 120, Case("", rate_hz=48_000, **half)),
        ("mp3", "libmp3lame", RATE_HZ, 500, Case("", **half)),
        ("m4a", "aac", RATE_HZ, 40, Case("", (Reason.NOT_AUDIO,))),
        ("mp4", "aac", RATE_HZ, 40, Case("", (Reason.NOT_AUDIO,))),
        ("webm", "libopus", 48_000, 400, Case("", rate_hz=48_000, **half)),
        ("mkv", "flac", RATE_HZ, 500, Case("", **half)),
        ("aac", "aac", RATE_HZ, 3, Case("", **half | {"sound_s": -1024 / RATE_HZ})),
    ):
        whole = folder / f"whole.{name}"
        mux(whole, Track(sound(1.0, rate_hz), codec, rate_hz), form={"aac": "adts"}.get(name))
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
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 90, 3), dtype=np.uint8)).save(picture, "png")
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.txt", np.random.default_rng(0).bytes(100_000))
    for name, content in (
        ("text.wav", b"I am a text.\n" * 100),
        ("page.mp3", b"<!doctype html><html><body>404 Not Found</body></html>"),
        ("error.m4a", json.dumps({"error": "Too many requests"}).encode()),
        ("picture.mp3", picture.getvalue()),
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


def levels(folder: Path) -> Iterator[Case]:
    """Floats out of range, offsets, silence, and what is no number at all."""
    base = {"rate_hz": 16_000}
    plain = sound(1.0, 16_000)
    for name, samples, case in (
        ("loud", 40 * plain, Case("", gain=40.0, **base)),
        ("quiet", 1e-3 * plain, Case("", gain=1e-3, **base)),
        ("offset", plain + 0.5, Case("", **base)),
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


def names(folder: Path) -> Iterator[Case]:
    """Wrong extensions and names that shells, URLs and tables trip over."""
    mux(folder / "true.m4a", Track(sound(1.0), "aac"))
    for true, wrong in (
        ("format_24.wav", "wrong_wav.mp3"),
        ("format_24.flac", "wrong_flac.m4a"),
        ("format_vorbis.ogg", "wrong_ogg.txt"),
        ("true.m4a", "wrong_m4a.wav"),
        ("video.mkv", "wrong_mkv.ogg"),
        ("mp3_cbr.mp3", "wrong_mp3.wav"),
        ("mp3_cbr.mp3", "no_extension"),
        ("true.m4a", "http:x.m4a"),
        ("true.m4a", "a b?#%20%s.m4a"),
        ("format_24.wav", "-rf.wav"),
        ("format_24.wav", "naïve 音 🎵.wav"),
        ("format_24.wav", "two\nlines.wav"),
        ("format_24.wav", "quotes\"'`$(x);.wav"),
        ("format_24.wav", "back\\slash,comma.wav"),
        ("true.m4a", "x" * 251 + ".m4a"),
        ("format_24.wav", "UPPER.WAV"),
    ):
        (folder / wrong).write_bytes((folder / true).read_bytes())
        yield Case(wrong, tolerance=LOSSY)


def three_hours(folder: Path) -> Iterator[Case]:
    """Files of three hours, silent but for one second in the middle."""
    write_long_wav(folder / "long.wav", 8_000, 1)
    place = dict(start_s=5400.0, end_s=5401.0, duration_s=10_800.0)
    yield Case("long.wav", rate_hz=8_000, narrow=True, **place)
    with soundfile.SoundFile(folder / "long.flac", "w", 8_000, 1, "PCM_16") as file:
        for second in range(0, 10_800, 100):
            hundred = np.zeros(800_000)
            if second == 5400:
                hundred[:8_000] = sound(1.0, 8_000)[:, 0]
            file.write(hundred)
    yield Case("long.flac", rate_hz=8_000, narrow=True, **place)


def write_long_wav(path: Path, rate_hz: int, num_channels: int) -> None:
    """Three hours that take no room: a hole in the file, with one second of sound in the middle."""
    size, frame = 10_800 * rate_hz * num_channels * 2, num_channels * 2
    header = riff((b"fmt ", fmt(rate_hz, num_channels)), (b"data", b""), size=size + 36)
    with path.open("wb") as file:
        file.write(header[:-4] + struct.pack("<I", size))
        file.seek(5400 * rate_hz * frame, os.SEEK_CUR)
        file.write(pcm(sound(1.0, rate_hz, num_channels)))
        file.truncate(len(header) + size)
