"""Audio files of every format, each with what an ingest must make of it: nearly always the right features."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from ingest.ledger import Reason
from tests.ingest.audio_writers import (
    AMR,
    EXACT,
    LOSSY,
    RATE_HZ,
    ROUGH,
    SPEECH,
    Case,
    Track,
    can_encode,
    fmt,
    id3,
    mux,
    mux_long,
    pcm,
    riff,
    sound,
    write,
)


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
    wide = sound(1.0)
    low = Track(sound(1.0, 8_000), AMR, 8_000, bit_rate=12_200)
    amr = [("amr.amr", low, "amr", 40), ("amr.3gp", low, None, 0)] if can_encode(AMR) else []
    for name, track, form, late in (
        *amr,
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
        ("mp3.asf", Track(wide, "libmp3lame"), "asf", 1105),
        ("wma.wma", Track(wide, "wmav2", bit_rate=96_000), "asf", 2048),
    ):
        mux(folder / f"in_{name}", track, form=form)
        kind = {"wmav2": ROUGH, AMR: SPEECH}.get(track.codec, LOSSY)
        yield Case(f"in_{name}", (), track.rate_hz, tolerance=kind, sound_s=-late / track.rate_hz, narrow=track is low)


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
    """With and without the header that counts the frames, behind tags and junk. LAME puts 1105 samples in front."""
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
    mux(folder / "two.mkv", Track(np.zeros((48_000, 2)), "ac3", 48_000), wide)
    yield Case("two.mkv", rate_hz=48_000, num_channels=2, tolerance=LOSSY, gain=0.0)
    two = (folder / "two.mkv").read_bytes().replace(b"A_AC3", b"A_XYZ")
    (folder / "first_unknown.mkv").write_bytes(two)
    yield Case("first_unknown.mkv", tolerance=LOSSY)
    (folder / "unknown.mkv").write_bytes(two.replace(b"A_AAC", b"A_XYZ"))
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
    # A picture turns up behind the sound, and the header promised none.
    mux(folder / "surprise.flv", Track(np.pad(sound(1.0), ((13 * RATE_HZ, 0), (0, 0))), "libmp3lame"))
    tag = b"\x09" + struct.pack(">I", 5)[1:] + bytes(7) + b"\x22\0\0\x84\0" + struct.pack(">I", 16)
    (folder / "surprise.flv").write_bytes((folder / "surprise.flv").read_bytes() + tag)
    part = {"start_s": 13.0, "end_s": 15.0, "sound_s": -1105 / RATE_HZ}
    yield Case("surprise.flv", tolerance=LOSSY, duration_s=None, **part)
    mux(folder / "faststart.m4a", wide, options={"movflags": "faststart"})
    yield Case("faststart.m4a", tolerance=LOSSY)
    # Their clocks start at 20 s; Matroska's length counts from 0 all the same.
    for name, late, duration_s in (("later.m4a", 1024, 1.0), ("later.mkv", 0, None)):
        mux(folder / name, Track(sound(1.0), "aac", first_s=20.0))
        yield Case(name, tolerance=LOSSY, sound_s=-late / RATE_HZ, duration_s=duration_s)
    mux(folder / "latin.m4a", wide, title="caf-title")
    (folder / "latin.m4a").write_bytes((folder / "latin.m4a").read_bytes().replace(b"caf-", b"caf\xe9"))
    yield Case("latin.m4a", tolerance=LOSSY)
    write(folder / "total.flac", sound(3.0))
    flac = bytearray((folder / "total.flac").read_bytes())
    for name, high, low_bytes in (("streamed.flac", 0, b"\0" * 4), ("lying.flac", 15, b"\xff" * 4)):
        flac[21], flac[22:26] = flac[21] & 0xF0 | high, low_bytes
        (folder / name).write_bytes(flac)
        yield Case(name, duration_s=None, start_s=1.5, end_s=2.5, sound_s=1.5)
    yield Case("streamed.flac", duration_s=None, length_s=2.575)


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
    """Files of three hours, silent but for a second in the middle."""
    write_long_wav(folder / "long.wav", 8_000, 1)
    yield Case("long.wav", rate_hz=8_000, narrow=True, duration_s=10_800.0, start_s=5400.0, end_s=5401.0)
    with soundfile.SoundFile(folder / "long.flac", "w", 8_000, 1, "PCM_16") as file:
        for part in (np.zeros(5400 * 8_000), sound(1.0, 8_000)[:, 0], np.zeros(5399 * 8_000)):
            file.write(part)
    yield Case("long.flac", rate_hz=8_000, narrow=True, duration_s=10_800.0, start_s=5400.0, end_s=5401.0)
    for name, codec, rate_hz, options, late, tolerance in (
        ("long.m4a", "aac", 8_000, {}, 0, LOSSY),
        ("long.mp3", "libmp3lame", 8_000, {"reservoir": "0"}, 576, SPEECH),  # 8 kbit/s are not much
        ("long.webm", "libopus", 48_000, {"frame_duration": "120"}, 0, LOSSY),
    ):
        # A second of its own silence, for a codec to find its feet after the packets that were not made for this.
        track = Track(np.pad(sound(1.0, rate_hz), ((rate_hz, 0), (0, 0))), codec, rate_hz, options=options)
        start_s = mux_long(folder / name, 5400.0, track) + 1.0 + late / rate_hz
        yield Case(
            name,
            rate_hz=rate_hz,
            narrow=rate_hz == 8_000,
            duration_s=None,
            tolerance=tolerance,
            start_s=start_s,
            end_s=start_s + 1.0,
        )


def write_long_wav(path: Path, rate_hz: int, num_channels: int) -> None:
    """Three hours that take no room: a hole in the file, with one second of sound in the middle."""
    size, frame = 10_800 * rate_hz * num_channels * 2, num_channels * 2
    header = riff((b"fmt ", fmt(rate_hz, num_channels)), (b"data", b""), size=size + 36)
    with path.open("wb") as file:
        file.write(header[:-4] + struct.pack("<I", size))
        file.seek(5400 * rate_hz * frame, os.SEEK_CUR)
        file.write(pcm(sound(1.0, rate_hz, num_channels)))
        file.truncate(len(header) + size)
