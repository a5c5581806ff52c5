"""libsndfile as a source of audio."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from ingest.ledger import AudioInfo, DecoderError

# An MP3's frames lean on those before: right after a seek they come out as silence.
MP3_LEAD_S = 0.5
# What libsndfile logs where the header of a WAV's or AIFF's samples, or of a whole W64, tells of more than there is.
_CUT_CHUNK = re.compile(r"^ ?(?:data|SSND|riff) : (\d+) \(should be (\d+)\)", re.MULTILINE)
# Written before the length was known, to a pipe: it tells nothing.
_STREAMED_BYTES = 0x7FFF_0000
# An MP3's first frame, with a count of frames behind its side information: of mono or stereo, MPEG 1 or 2. Another one,
# VBRI's, libsndfile doesn't know.
_XING = re.compile(
    rb"\xff[\xe0-\xff]..(?:.{9}|.{17}|.{32})(?:Xing|Info)\0\0\0[\x01\x03\x05\x07\x09\x0b\x0d\x0f]", re.DOTALL
)
_BLOCK_VALUES = 1 << 22
_UNKNOWN_FRAMES = 2**63 - 1


class SoundFileSource:
    """A file open in libsndfile; raises its errors, and DecoderError where it can't be trusted with the file."""

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
        self.told_s: float | None = _told_s(file)

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
        # A tag's size comes in four times seven bits.
        tag_bytes = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:])))
        stream.seek(tag_bytes if head.startswith(b"ID3") else 0)
        start = stream.read(1 << 16)
    return _XING.search(start) is not None


def _told_s(file: soundfile.SoundFile) -> float:
    """libsndfile corrects what a header says, and logs it."""
    seconds: float = file.frames / file.samplerate
    if found := _CUT_CHUNK.search(file.extra_info):
        told, held = map(int, found.groups())
        if 0 < held < told < _STREAMED_BYTES:
            return seconds * told / held
    return seconds
