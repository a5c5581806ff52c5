"""FFmpeg, through PyAV, as a source of audio: for the formats that libsndfile doesn't know."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import soxr
from numpy.typing import NDArray

from ingest.decode import MAX_RATE_HZ, MIN_RATE_HZ
from ingest.ledger import AudioInfo, ClipError, DecoderError, Reason

# FFmpeg may open nothing but the file itself: no playlist or concatenation, which are formats too, leads elsewhere.
FFMPEG_FORMATS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "dts", "eac3", "flac", "flv", "loas", "matroska"),
    *("mov", "mp3", "mpeg", "mpegts", "ogg", "tta", "w64", "wav", "wv"),
)
# From version 19 on PyAV reads tags of any encoding, and doesn't know the option.
TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
FFMPEG_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FFMPEG_FORMATS)}
# Decoding begins so much before the part wanted: a codec needs some packets before its output is right.
LEAD_S = 1.0
# After a seek the time stamps are wrong in these, by up to a second: they are decoded from their start.
UNSEEKABLE_FORMATS = frozenset({"ogg", "ac3", "eac3"})
# In these a length is what the header says; in others FFmpeg guesses it, or takes the last time stamp.
TELLING_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "aiff", "flac", "tta", "w64", "wav", "wv"})
# What codecs drop at a stream's start may be missing in its time stamps: only a longer gap is silence, but not one of
# hours.
MIN_GAP_S, MAX_GAP_S = 0.05, 3600.0
# So much of what was decoded last is kept: reading goes on a little before it ended.
KEPT_S = 3.0
# PyAV reads beyond the end of a frame's planes, and crashes, where there are more.
MAX_PLANES = 7

Block = tuple[int, NDArray[np.float32]]


class FFmpegSource:
    """A file open in FFmpeg; raises ClipError when it has no sound, and DecoderError for what FFmpeg finds wrong.

    Sample 0 is where the container's clock starts, which need not be at 0: a stream that begins later is preceded by
    silence.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recent: deque[Block] = deque()
        # What is decoded before this sample is not right yet.
        self._right_from = 0
        self._running: Iterator[Block] = iter(())
        self._open()
        stream = self._stream
        duration_s = None
        if stream.duration is not None and stream.time_base is not None:
            late_s = (
                0.0 if stream.start_time is None else self._since_start_s(float(stream.start_time * stream.time_base))
            )
            duration_s = late_s + float(stream.duration * stream.time_base)
        elif self._container.duration is not None:
            duration_s = self._container.duration / av.time_base
        self.info = AudioInfo(stream.codec_context.name, stream.sample_rate, stream.channels, duration_s)
        self.told_s = self._told_s(duration_s) if self._container.format.name in TELLING_FORMATS else None

    def _told_s(self, duration_s: float | None) -> float | None:
        if duration_s is None or self._stream.duration is not None:
            return duration_s
        # The container's length may be that of its pictures, and Matroska's counts from 0 wherever its clock starts.
        return self._since_start_s(duration_s) if len(self._container.streams) == 1 else None

    def _open(self) -> None:
        # The prefix keeps a file named like a URL or a device from being opened as one.
        with _own_errors():
            self._container = av.open(f"file:{self._path}", options=FFMPEG_OPTIONS, **TAGS)
        self._is_moved = False
        try:
            self._stream = _first_known(self._container)
        except BaseException:
            self._container.close()
            raise

    def read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        try:
            with _own_errors():
                return self._read(start, num_samples)
        except BaseException:
            # What comes next can't be had from where decoding broke off.
            self._recent.clear()
            raise

    def _read(self, start: int, num_samples: int) -> NDArray[np.float32]:
        parts, at, end = list[NDArray[np.float32]](), start, start + num_samples
        for position, samples in self._blocks_for(start):
            if at == 0 and position <= MIN_GAP_S * self.info.sample_rate_hz:
                at = position
            elif position > at:
                parts.append(np.zeros(min(position, end) - at, np.float32))
                at += parts[-1].size
            wanted = samples[max(0, at - position) : max(0, end - position)]
            if wanted.size:
                parts.append(wanted)
                at += wanted.size
            if position + samples.size >= end:
                break
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _blocks_for(self, start: int) -> Iterator[Block]:
        """Mono blocks, of which the first begins at `start` or before, unless the stream itself begins later."""
        is_seekable = self._container.format.name not in UNSEEKABLE_FORMATS
        is_kept = self._recent and max(self._recent[0][0], self._right_from) <= start
        if is_kept and (start <= _end(self._recent[-1]) or not is_seekable):
            yield from list(self._recent)
            yield from self._go_on()
            return
        self._recent.clear()
        early_s = start / self.info.sample_rate_hz - LEAD_S
        if early_s > 0 and is_seekable:
            self._is_moved = True
            try:
                self._container.seek(round(early_s * av.time_base) + (self._container.start_time or 0))
                blocks = self._blocks(first_s=None)
                first = next(blocks, None)
            except (av.error.FFmpegError, DecoderError):
                first = None
            if first and first[0] <= start:
                self._running, self._right_from = chain([first], blocks), start
                yield from self._go_on()
                return
        # Without an index, past the end or by wrong time stamps FFmpeg lands anywhere.
        if self._is_moved:
            self.close()
            self._open()
        self._running, self._right_from = self._blocks(first_s=0.0), 0
        yield from self._go_on()

    def _go_on(self) -> Iterator[Block]:
        """The blocks from where decoding stands; the last ones are kept for a read that begins a little before."""
        for block in self._running:
            self._recent.append(block)
            # One that begins before that time stays: there may be a gap behind it.
            while len(self._recent) > 1 and _end(block) - self._recent[1][0] > KEPT_S * self.info.sample_rate_hz:
                self._recent.popleft()
            yield block

    def _blocks(self, first_s: float | None) -> Iterator[Block]:
        """Mono blocks with the position of their first sample, at `first_s` where the first frame has no time stamp."""
        self._is_moved = True
        rate_hz = self.info.sample_rate_hz
        for start_s, frames in groupby(self._frames(), key=_Clock(first_s, self._since_start_s)):
            position = round(start_s * rate_hz)
            for samples in _mono(frames, rate_hz):
                yield position, samples
                position += samples.size

    def _frames(self) -> Iterator[av.AudioFrame]:
        """The frames from here to the end."""
        try:
            yield from self._container.decode(self._stream)
        except IndexError:
            # PyAV trips over a stream that turned up on the way, when it is through with those that it knew.
            return

    def _since_start_s(self, time_s: float) -> float:
        """The container's clock need not start at 0."""
        return time_s - (self._container.start_time or 0) / av.time_base

    def close(self) -> None:
        self._container.close()


class _Clock:
    """In seconds, where the run of frames begins that a frame is of: after a gap in the time stamps comes a new one."""

    def __init__(self, first_s: float | None, since_start_s: Callable[[float], float]) -> None:
        self._run_s, self._since_start_s = first_s, since_start_s
        self._next_s: float | None = None

    def __call__(self, frame: av.AudioFrame) -> float:
        time_s = None if frame.time is None else self._since_start_s(frame.time)
        is_first = self._next_s is None
        if time_s is not None and (is_first or MIN_GAP_S < time_s - (self._next_s or 0.0) < MAX_GAP_S):
            self._run_s = self._next_s = time_s
        if self._run_s is None:
            raise DecoderError("a frame without a time stamp after a seek")
        begins_s = self._run_s if self._next_s is None else self._next_s
        self._next_s = begins_s + frame.samples / frame.sample_rate
        return self._run_s


def _first_known(container: av.container.InputContainer) -> av.AudioStream:
    """The first audio stream that can be decoded."""
    streams = container.streams.audio
    if not streams:
        raise ClipError(Reason.NO_AUDIO_STREAM, "the container holds no audio stream")
    # A stream whose codec FFmpeg doesn't know has no context; by its suffix alone it takes any file for raw AAC.
    known = [stream for stream in streams if stream.codec_context and stream.sample_rate and stream.channels]
    if not known:
        raise DecoderError("its audio stream's codec is unknown or its sample rate isn't given")
    return known[0]


def _mono(frames: Iterable[av.AudioFrame], rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """Frames as mono blocks at `rate_hz`: a stream may change its own rate, or its channels, on the way."""
    for (own_rate_hz, has_too_many_planes), run in groupby(frames, key=_handling):
        convert = _packed if has_too_many_planes else iter
        blocks = map(_averaged, convert(run))
        if own_rate_hz == rate_hz:
            yield from blocks
        elif not MIN_RATE_HZ <= own_rate_hz <= MAX_RATE_HZ:
            raise DecoderError(f"a sample rate of {own_rate_hz} Hz in mid-stream is not possible")
        else:
            resampler = soxr.ResampleStream(own_rate_hz, rate_hz, 1)
            yield from map(resampler.resample_chunk, blocks)
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _handling(frame: av.AudioFrame) -> tuple[int, bool]:
    return frame.sample_rate, frame.format.is_planar and frame.layout.nb_channels > MAX_PLANES


def _packed(frames: Iterable[av.AudioFrame]) -> Iterator[av.AudioFrame]:
    converter = av.AudioResampler(format="flt")
    for frame in frames:
        yield from converter.resample(frame)


def _averaged(frame: av.AudioFrame) -> NDArray[np.float32]:
    """A frame's mean over channels; integers become numbers in [-1, 1)."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    mono: NDArray[np.float32] = samples.mean(0, dtype=np.float32)
    if samples.dtype.kind == "f":
        return mono
    middle = 128 if samples.dtype.kind == "u" else 0
    return (mono - np.float32(middle)) / np.float32(2.0 ** (8 * samples.itemsize - 1))


def _end(block: Block) -> int:
    return block[0] + block[1].size


@contextmanager
def _own_errors() -> Iterator[None]:
    """Turns FFmpeg's errors into ours, without the path that it puts in: paths differ between machines."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise DecoderError(error.strerror or type(error).__name__) from error
