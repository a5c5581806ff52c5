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
from ingest.sndfile import SoundFileSource

# Formats that libsndfile reads; it is tried first for them, and FFmpeg first for all others.
SOUNDFILE_SUFFIXES = frozenset(
    {".wav", ".flac", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"},
)
# FFmpeg reads these twice as fast, and libsndfile leaves an Opus stream's first milliseconds, which are none, in.
OGG_SUFFIXES = frozenset({".ogg", ".oga", ".opus"})
# On broken files the decoders' bindings raise these besides their own.
DECODER_ERRORS = (soundfile.LibsndfileError, DecoderError, ValueError, RuntimeError, ArithmeticError)
# What a broken header says may be anything, and memory follows it: no recorder is slower or faster, none runs longer.
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 2_000_000
MAX_DURATION_S = 1e8
# Integers of 32 bits taken for floats reach this; the energies of larger numbers would overflow.
MAX_LEVEL = 2.0**31
# So much less than its header tells may be in a file: codecs drop a little at both ends.
MISSING_S = 0.5


class AudioSource(Protocol):
    """A file open for decoding."""

    info: AudioInfo
    # How much sound its header tells of; None where it doesn't, or where that is a guess.
    told_s: float | None

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        """Up to `num_samples` mono samples from sample `start`, at the file's own rate; channels are averaged."""
        ...

    def close(self) -> None: ...


def decode(source: AudioSource, sample_rate_hz: int, start_s: float, duration_s: float) -> NDArray[np.float32]:
    """The part [start_s, start_s + duration_s) of an open file as mono float32 at `sample_rate_hz`.

    Shorter when the file ends before. Only the part wanted is kept in memory. Raises ClipError where the file ends
    before its header says so, and on NaN, Inf or numbers that no sound has.
    """
    rate_hz = source.info.sample_rate_hz
    # Rounded up, and cut at the end: else a window of 11.025 kHz audio would come out one sample short.
    native = source.read(round(start_s * rate_hz), math.ceil(duration_s * rate_hz))
    _check_end(start_s + native.size / rate_hz, start_s + duration_s, source.told_s)
    if native.size:
        _check_level(float(max(native.max(), -native.min())))
        if rate_hz != sample_rate_hz:
            native = soxr.resample(native, rate_hz, sample_rate_hz, quality="HQ")
    return native[: round(duration_s * sample_rate_hz)]


def _check_end(end_s: float, wanted_s: float, told_s: float | None) -> None:
    """Half a download, or a recorder that died: what is there is not the clip."""
    if told_s is not None and end_s < min(wanted_s, told_s) - MISSING_S:
        raise ClipError(
            Reason.DECODE,
            f"no sound from {end_s:.1f} s on, and its header tells of {told_s:.1f} s: the file was cut off",
        )


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


class _OggSource:
    """A file open in FFmpeg; in libsndfile from where FFmpeg gives up, as it does where two files were joined."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source = _open_in_ffmpeg(path)
        self._is_first = True
        self.info = self._source.info
        self.told_s = self._source.told_s

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        try:
            return self._source.read(start, num_samples)
        except DECODER_ERRORS:
            if not self._is_first:
                raise
        self._source.close()
        self._source, self._is_first = SoundFileSource(self._path), False
        self.info, self.told_s = self._source.info, self._source.told_s
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
    decoders: list[Callable[[Path], AudioSource]] = [_open_in_ffmpeg, SoundFileSource]
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
        source.info, source.told_s = replace(info, duration_s=None), None
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
