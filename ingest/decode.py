"""Files to mono waveforms: libsndfile where it knows the format, FFmpeg (PyAV) for the rest."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ingest.ledger import AudioInfo, ClipError, DecoderError, Reason

# Formats that libsndfile reads; it is tried first for them, and FFmpeg first for all others.
SOUNDFILE_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})
# On broken files the decoders' bindings raise these besides their own.
DECODER_ERRORS = (soundfile.LibsndfileError, DecoderError, ValueError, RuntimeError, ArithmeticError)
# An MP3's frames lean on those before: right after a seek they come out as silence.
MP3_LEAD_S = 0.5


class AudioSource(Protocol):
    """A file open for decoding."""

    info: AudioInfo

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        """Up to `num_samples` mono samples from sample `start`, at the file's own rate; channels are averaged."""
        ...

    def close(self) -> None: ...


def decode(source: AudioSource, sample_rate_hz: int, start_s: float, duration_s: float) -> NDArray[np.float32]:
    """The part [start_s, start_s + duration_s) of an open file as mono float32 at `sample_rate_hz`.

    Shorter when the file ends before. Only the part wanted is kept in memory. Raises ClipError on NaN or Inf.
    """
    rate_hz = source.info.sample_rate_hz
    # Rounded up, and cut at the end: else a window of 11.025 kHz audio would come out one sample short.
    native = source.read(round(start_s * rate_hz), math.ceil(duration_s * rate_hz))
    if not np.isfinite(native).all():
        raise ClipError(Reason.NON_FINITE, "NaN or Inf among the samples")
    if rate_hz != sample_rate_hz and native.size:
        native = soxr.resample(native, rate_hz, sample_rate_hz, quality="HQ")
    return native[: round(duration_s * sample_rate_hz)]


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
        self._file = soundfile.SoundFile(path)
        file = self._file
        self.info = AudioInfo(
            codec=f"{file.format}/{file.subtype}".lower(),
            sample_rate_hz=file.samplerate,
            num_channels=file.channels,
            duration_s=file.frames / file.samplerate,
        )

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        if start >= self._file.frames:
            return np.zeros(0, np.float32)
        lead = min(start, round(MP3_LEAD_S * self.info.sample_rate_hz)) if self._file.format == "MP3" else 0
        self._file.seek(start - lead)
        frames: NDArray[np.float32] = self._file.read(lead + num_samples, dtype="float32", always_2d=True)[lead:]
        return frames[:, 0] if frames.shape[1] == 1 else frames.mean(1, dtype=np.float32)

    def close(self) -> None:
        self._file.close()


@contextmanager
def open_audio(path: Path) -> Iterator[AudioSource]:
    """Opens a file with the first decoder that takes it, and turns the decoders' errors into ClipErrors."""
    try:
        if path.stat().st_size == 0:
            raise ClipError(Reason.NOT_AUDIO, "the file is empty")
        with path.open("rb"):
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
    decoders: list[Callable[[Path], AudioSource]] = [_SoundFileSource, _open_in_ffmpeg]
    if path.suffix.lower() not in SOUNDFILE_SUFFIXES:
        decoders.reverse()
    failures = []
    for decoder in decoders:
        try:
            return decoder(path)
        except DECODER_ERRORS as error:
            failures.append(_message(error))
    raise ClipError(Reason.NOT_AUDIO, "no decoder takes it: " + "; ".join(failures))


def _open_in_ffmpeg(path: Path) -> AudioSource:
    # Imported here: the trainer reads stores through this package, and must do without FFmpeg.
    from ingest.ffmpeg import FFmpegSource

    return FFmpegSource(path)


def _message(error: Exception) -> str:
    """What a decoder says, without the path that it puts in front: paths differ between machines, ledgers must not."""
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string)
    return str(error) or type(error).__name__
