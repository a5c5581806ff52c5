"""Files to mono waveforms: libsndfile where it knows the format, FFmpeg (PyAV) for the rest."""

import math
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ingest.ledger import AudioInfo, ClipError, DecoderError, Reason

# Formats that libsndfile reads; it is tried first for them, and FFmpeg first for all others.
SOUNDFILE_SUFFIXES = frozenset(
    {".wav", ".flac", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"},
)
# FFmpeg reads these twice as fast, and libsndfile leaves an Opus stream's first milliseconds, which are none, in.
OGG_SUFFIXES = frozenset({".ogg", ".oga", ".opus"})
# On broken files the decoders' bindings raise these besides their own.
DECODER_ERRORS = (soundfile.LibsndfileError, DecoderError, ValueError, RuntimeError, ArithmeticError)
# An MP3's frames lean on those before: right after a seek they come out as silence.
MP3_LEAD_S = 0.5
# What a broken header says may be anything, and memory follows it: no recorder is slower or faster, none runs longer.
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 2_000_000
MAX_DURATION_S = 1e8
# Integers of 32 bits taken for floats reach this; the energies of larger numbers would overflow.
MAX_LEVEL = 2.0**31
_BLOCK_VALUES = 1 << 22
_UNKNOWN_FRAMES = 2**63 - 1


class AudioSource(Protocol):
    """A file open for decoding."""

    info: AudioInfo

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        """Up to `num_samples` mono samples from sample `start`, at the file's own rate; channels are averaged."""
        ...

    def close(self) -> None: ...


def decode(source: AudioSource, sample_rate_hz: int, start_s: float, duration_s: float) -> NDArray[np.float32]:
    """The part [start_s, start_s + duration_s) of an open file as mono float32 at `sample_rate_hz`.

    Shorter when the file ends before. Only the part wanted is kept in memory. Raises ClipError on NaN, Inf or numbers
    that no sound has.
    """
    rate_hz = source.info.sample_rate_hz
    # Rounded up, and cut at the end: else a window of 11.025 kHz audio would come out one sample short.
    native = source.read(round(start_s * rate_hz), math.ceil(duration_s * rate_hz))
    if native.size:
        _check_level(float(max(native.max(), -native.min())))
        if rate_hz != sample_rate_hz:
            native = soxr.resample(native, rate_hz, sample_rate_hz, quality="HQ")
    return native[: round(duration_s * sample_rate_hz)]


def _check_level(peak: float) -> None:
    if not math.isfinite(peak):
        raise ClipError(Reason.NON_FINITE, "NaN or Inf among the samples")
    if peak > MAX_LEVEL:
        raise ClipError(Reason.NON_FINITE, f"samples up to {peak:.1e}, where sound has at most 1")


def measure_duration_s(source: AudioSource) -> float:
    """Decodes an open file to its end, for a container that doesn't tell its length; a minute at a time in memory."""
    block = 60 * source.info.sample_rate_hz
    num_samples = 0
    while size := source.read(num_samples, block).size:
        num_samples += size
    return num_samples / source.info.sample_rate_hz


class _SoundFileSource:
    """A file open in libsndfile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = file = soundfile.SoundFile(path)
        self._position = 0
        if not _tells_its_length(file, path):
            file.close()
            raise DecoderError("its header doesn't tell its length")
        self.info = AudioInfo(
            codec=f"{file.format}/{file.subtype}".lower(),
            sample_rate_hz=file.samplerate,
            num_channels=file.channels,
            duration_s=file.frames / file.samplerate,
        )

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        if start >= self._file.frames:
            return np.zeros(0, np.float32)
        lead = self._go_to(start)
        blocks = []
        for block in self._blocks(lead + num_samples):
            blocks.append(block[lead:])
            lead = max(0, lead - block.size)
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def _go_to(self, start: int) -> int:
        """Moves to `start` or before it; returns how many samples before."""
        if start == self._position:
            return 0
        lead = min(start, round(MP3_LEAD_S * self.info.sample_rate_hz)) if self._file.format == "MP3" else 0
        try:
            self._file.seek(start - lead)
        except soundfile.LibsndfileError:
            # Some codecs can't seek, and no broken file can past its end: then all up to there is read.
            self._file.close()
            self._file = soundfile.SoundFile(self._path)
            lead = start
        self._position = start - lead
        return lead

    def _blocks(self, num_samples: int) -> Iterator[NDArray[np.float32]]:
        """The next mono samples: as many values at a time as memory allows for, however many channels there are."""
        most = max(1, _BLOCK_VALUES // self.info.num_channels)
        while num_samples > 0:
            frames: NDArray[np.float32] = self._file.read(min(num_samples, most), dtype="float32", always_2d=True)
            if not len(frames):
                return
            yield frames[:, 0] if frames.shape[1] == 1 else frames.mean(1, dtype=np.float32)
            self._position += len(frames)
            num_samples -= len(frames)

    def close(self) -> None:
        self._file.close()


def _tells_its_length(file: soundfile.SoundFile, path: Path) -> bool:
    """False for files that libsndfile can't read to their end: streamed FLAC, and MP3 whose length it guesses."""
    if file.format != "MP3":
        return bool(file.frames != _UNKNOWN_FRAMES)
    with path.open("rb") as stream:
        head = stream.read(10)
        if head.startswith(b"ID3"):  # its size comes in four times seven bits
            stream.seek(10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:]))))
        start = stream.read(1 << 16)
    return any(name in start for name in (b"Xing", b"Info", b"VBRI"))


class _OggSource:
    """A file open in FFmpeg; in libsndfile from where FFmpeg gives up, as it does where two files were joined."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source = _open_in_ffmpeg(path)
        self._is_first = True
        self.info = self._source.info

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        try:
            return self._source.read(start, num_samples)
        except DECODER_ERRORS:
            if not self._is_first:
                raise
        self._source.close()
        self._source, self._is_first = _SoundFileSource(self._path), False
        self.info = self._source.info
        return self._source.read(start, num_samples)

    def close(self) -> None:
        self._source.close()


@contextmanager
def open_audio(path: Path) -> Iterator[AudioSource]:
    """Opens a file with the first decoder that takes it, and turns the decoders' errors into ClipErrors."""
    try:
        about = path.stat()
        # Opening a named pipe would wait for a writer for ever.
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise ClipError(Reason.UNREADABLE, "a pipe, socket or device, not a file")
        with path.open("rb"):
            if about.st_size == 0:
                raise ClipError(Reason.NOT_AUDIO, "the file is empty")
            source = _first_decoder(path)
    except FileNotFoundError as error:
        raise ClipError(Reason.MISSING, "no such file") from error
    except OSError as error:
        raise ClipError(Reason.UNREADABLE, error.strerror or str(error)) from error
    try:
        yield source
    except DECODER_ERRORS as error:
        raise ClipError(Reason.DECODE, _message(error)) from error
    finally:
        source.close()


def _first_decoder(path: Path) -> AudioSource:
    decoders: list[Callable[[Path], AudioSource]] = [_open_in_ffmpeg, _SoundFileSource]
    if path.suffix.lower() in OGG_SUFFIXES:
        decoders[0] = _OggSource
    if path.suffix.lower() in SOUNDFILE_SUFFIXES:
        decoders.reverse()
    failures = []
    for decoder in decoders:
        try:
            return _plausible(decoder(path))
        except DECODER_ERRORS as error:
            failures.append(_message(error))
    raise ClipError(Reason.NOT_AUDIO, "no decoder takes it: " + "; ".join(failures))


def _plausible(source: AudioSource) -> AudioSource:
    """`source`, without a length that can't be. Raises DecoderError for a sample rate that can't be."""
    info = source.info
    if not MIN_RATE_HZ <= info.sample_rate_hz <= MAX_RATE_HZ:
        source.close()
        raise DecoderError(f"a sample rate of {info.sample_rate_hz} Hz is not possible")
    if info.duration_s is not None and not 0 <= info.duration_s <= MAX_DURATION_S:
        source.info = replace(info, duration_s=None)
    return source


def _open_in_ffmpeg(path: Path) -> AudioSource:
    # Imported here: the trainer reads stores through this package, and must do without FFmpeg.
    from ingest.ffmpeg import FFmpegSource

    return FFmpegSource(path)


def _message(error: Exception) -> str:
    """What a decoder says, without the path that it puts in front: paths differ between machines, ledgers must not."""
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string)
    return str(error) or type(error).__name__
