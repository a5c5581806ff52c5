"""FFmpeg, through PyAV, as a source of audio: for the formats that libsndfile doesn't know."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from ingest.ledger import AudioInfo, ClipError, DecoderError, Reason

# FFmpeg may open nothing but the file itself: no playlist or concatenation, which are formats too, leads elsewhere.
FFMPEG_FORMATS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "dts", "eac3", "flac", "flv", "loas", "matroska"),
    *("mov", "mp3", "mpeg", "mpegts", "ogg", "tta", "w64", "wav", "wv"),
)
FFMPEG_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FFMPEG_FORMATS)}


class FFmpegSource:
    """A file open in FFmpeg; raises ClipError when it has no sound, and DecoderError for what FFmpeg finds wrong."""

    def __init__(self, path: Path) -> None:
        # The prefix keeps a file named like a URL or a device from being opened as one.
        with _own_errors():
            self._container = av.open(f"file:{path}", options=FFMPEG_OPTIONS)
        streams = self._container.streams.audio
        if not streams:
            self._container.close()
            raise ClipError(Reason.NO_AUDIO_STREAM, "the container holds no audio stream")
        self._stream = stream = streams[0]
        if not stream.sample_rate:
            # By its suffix alone FFmpeg takes any file for raw FLAC or AAC.
            self._container.close()
            raise ClipError(Reason.NOT_AUDIO, "the audio stream has no sample rate")
        # A container's clock need not start at 0.
        self._origin_s = (self._container.start_time or 0) / av.time_base
        duration_s = None
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif self._container.duration is not None:
            duration_s = self._container.duration / av.time_base
        self.info = AudioInfo(stream.codec_context.name, stream.sample_rate, stream.channels, duration_s)

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        with _own_errors():
            return self._read(start, num_samples)

    def _read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        rate_hz = self.info.sample_rate_hz
        if start > rate_hz:
            # One second early: a codec needs some packets before its output is right.
            self._container.seek(round((self._origin_s + start / rate_hz - 1.0) * av.time_base))
        parts, num_kept = [], 0
        for position, samples in self._blocks():
            wanted = samples[max(0, start - position) : max(0, start + num_samples - position)]
            if wanted.size:
                parts.append(wanted)
                num_kept += wanted.size
            if num_kept >= num_samples:
                break
        return np.concatenate(parts)[:num_samples] if parts else np.zeros(0, np.float32)

    def _blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Mono blocks with the position of their first sample."""
        resampler = av.AudioResampler(format="fltp")
        position = None
        for frame in self._container.decode(self._stream):
            if position is None:
                position = round(((frame.time or 0.0) - self._origin_s) * self.info.sample_rate_hz)
            for planar in resampler.resample(frame):
                samples = planar.to_ndarray().mean(0, dtype=np.float32)
                yield position, samples
                position += samples.size

    def close(self) -> None:
        self._container.close()


@contextmanager
def _own_errors() -> Iterator[None]:
    """Turns FFmpeg's errors into ours, without the path that it puts in: paths differ between machines."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise DecoderError(error.strerror or type(error).__name__) from error
