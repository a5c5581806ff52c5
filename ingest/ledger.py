"""The ledger: one row per clip asked for, in or not in the shard, with a typed reason where it is not."""

from dataclasses import dataclass, replace
from enum import StrEnum

import pyarrow as pa


class Reason(StrEnum):
    """Why a clip is not in its shard. TRANSIENT ones may pass, and are tried again in later runs."""

    MISSING = "missing"  # no such file
    UNREADABLE = "unreadable"  # the file can't be opened: permission, a folder, an I/O error
    NOT_AUDIO = "not_audio"  # no decoder knows the format
    NO_AUDIO_STREAM = "no_audio_stream"  # a container without sound
    DECODE = "decode"  # the decoder failed inside the file
    TOO_SHORT = "too_short"  # less than one analysis frame of audio in the part wanted
    NON_FINITE = "non_finite"  # NaN or Inf among the samples
    SILENT = "silent"  # nothing but digital silence, where the corpus doesn't want it
    # while fetching
    PRIVATE = "private"  # a private video
    REMOVED = "removed"  # deleted, or never there
    TERMINATED = "terminated"  # its account is closed
    GEO_BLOCKED = "geo_blocked"  # not to be had in this country
    AGE_GATED = "age_gated"  # only for viewers who signed in
    UNAVAILABLE = "unavailable"  # any other definite no: members only, paid, an upcoming live stream
    FORBIDDEN = "forbidden"  # HTTP 403, which is often a passing mood of the server
    DAMAGED = "damaged"  # the file in the raw cache is no longer the one that was downloaded
    RATE_LIMITED = "rate_limited"  # HTTP 429 or a sign-in wall: the server wants fewer requests
    NETWORK = "network"  # the connection, the server or the name service failed
    TIMEOUT = "timeout"  # not done within the time limit
    DOWNLOADER = "downloader"  # yt-dlp failed, or could make nothing of the answer: a newer one may


TRANSIENT = frozenset(
    {
        *(Reason.FORBIDDEN, Reason.DAMAGED, Reason.RATE_LIMITED),
        *(Reason.NETWORK, Reason.TIMEOUT, Reason.DOWNLOADER),
    }
)


class ClipError(Exception):
    """A clip can't be had; becomes a ledger row."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DecoderError(Exception):
    """A decoder can't go on with a file."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file says of itself; `duration_s` is None where its container doesn't tell."""

    codec: str
    sample_rate_hz: int
    num_channels: int
    duration_s: float | None


SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("ok", pa.bool_(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        # absolute offsets in the tar of the arrays' data, behind the tar and npy headers
        pa.field("fbank_offset", pa.int64()),
        pa.field("hog_offset", pa.int64()),
        pa.field("audio_offset", pa.int64()),
        pa.field("audio_size", pa.int64()),
        # the bytes of all the clip's members, headers and padding among them, and their CRC-32
        pa.field("sample_offset", pa.int64()),
        pa.field("sample_size", pa.int64()),
        pa.field("sample_crc32", pa.int64()),
        # of the fbank's values alone: equal for equal audio
        pa.field("fbank_sha256", pa.string()),
        # frames of the clip itself; the rest of the fbank is its repetition
        pa.field("num_frames", pa.int32()),
        # where in the source file the window begins, and where the clip itself does
        pa.field("crop_start_ms", pa.int64()),
        pa.field("clip_start_ms", pa.int64()),
        pa.field("source_sha256", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("source_rate_hz", pa.int32()),
        pa.field("num_channels", pa.int32()),
        pa.field("duration_s", pa.float64()),
        pa.field("peak", pa.float64()),
        pa.field("rms", pa.float64()),
        pa.field("silent", pa.bool_()),
        pa.field("short", pa.bool_()),
        pa.field("clipped", pa.bool_()),
        # sums over the fbank, from which the store's mean and standard deviation come
        pa.field("fbank_sum", pa.float64()),
        pa.field("fbank_sum_sq", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row of a shard's sidecar; fields as in SCHEMA."""

    key: str
    ok: bool
    reason: str | None = None
    detail: str | None = None
    fbank_offset: int | None = None
    hog_offset: int | None = None
    audio_offset: int | None = None
    audio_size: int | None = None
    sample_offset: int | None = None
    sample_size: int | None = None
    sample_crc32: int | None = None
    fbank_sha256: str | None = None
    num_frames: int | None = None
    crop_start_ms: int | None = None
    clip_start_ms: int | None = None
    source_sha256: str | None = None
    codec: str | None = None
    source_rate_hz: int | None = None
    num_channels: int | None = None
    duration_s: float | None = None
    peak: float | None = None
    rms: float | None = None
    silent: bool | None = None
    short: bool | None = None
    clipped: bool | None = None
    fbank_sum: float | None = None
    fbank_sum_sq: float | None = None


def moved(row: LedgerRow, sample_offset: int) -> LedgerRow:
    """The row of a clip whose members were copied, as they are, to another place of a tar."""
    by = sample_offset - (row.sample_offset or 0)

    def there(offset: int | None) -> int | None:
        return None if offset is None else offset + by

    return replace(
        row,
        fbank_offset=there(row.fbank_offset),
        hog_offset=there(row.hog_offset),
        audio_offset=there(row.audio_offset),
        sample_offset=sample_offset,
    )
