"""What the page knows of each clip, as plain values for its script."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.pages.survey import Failure, Survey
from featurestore.pages.taught import Taught
from featurestore.store import Store
from manifests.clips import Clip

# Of clips that all sound the same: silence that is not digital, a jingle.
MAX_KEYS_SHOWN = 20


def picture_name(row: int) -> str:
    """The stem of a clip's files: its row, since no name from data becomes a path."""
    return f"{row:09d}"


def clip_records(
    store: Store, rows: NDArray[np.int64], survey: Survey, taught: Taught, audio: dict[int, str | None]
) -> list[dict[str, Any]]:
    """A record for each of `rows`. `audio`: why a clip has no sound on the page, None where it has."""
    labels = _label_indices(store, rows)
    records = []
    for position, row in enumerate(rows.tolist()):
        clip, entry = store.clip(row), survey.ledger[row]
        near = zip(taught.similar.neighbours[position].tolist(), taught.similar.cosines[position].tolist(), strict=True)
        records.append(
            {
                "key": clip.key,
                "labels": labels[position],
                "split": clip.split,
                "file": picture_name(row),
                "repeats": entry["num_frames"] / store.file.fbank.num_frames,
                "silence": audio[row],
                "tags": [[name, round(score, 3)] for name, score in taught.tags[position]],
                "near": [[other, round(cosine, 4)] for other, cosine in near if other >= 0],
                "about": _provenance(store, row, clip, entry),
            }
        )
    return records


def failure_records(store: Store, failures: list[Failure]) -> list[dict[str, Any]]:
    """A record for each failed clip."""
    labels = _label_indices(store, np.array([failure.row for failure in failures], np.int64))
    return [
        {
            "key": clip.key,
            "labels": labels[position],
            "split": clip.split,
            "source": clip.source,
            "reason": failure.reason,
            "detail": failure.detail,
        }
        for position, failure in enumerate(failures)
        for clip in [store.clip(failure.row)]
    ]


def duplicate_records(store: Store, rows: NDArray[np.int64], survey: Survey, taught: Taught) -> list[dict[str, Any]]:
    """Groups of clips that may be one sound: those with equal fbanks, in all the store, then the page's close pairs."""
    records: list[dict[str, Any]] = []
    group_of: dict[int, int] = {}
    for number, group in enumerate(survey.equal):
        group_of |= dict.fromkeys(group, number)
        keys = store.keys(np.array(group[:MAX_KEYS_SHOWN], np.int64))
        records.append({"cosine": None, "keys": keys, "more": len(group) - len(keys)})
    for i, j, cosine in taught.similar.pairs:
        one, other = int(rows[i]), int(rows[j])
        if one not in group_of or group_of[one] != group_of.get(other):
            records.append({"cosine": round(cosine, 4), "keys": store.keys(rows[[i, j]]), "more": 0})
    return records


def _label_indices(store: Store, rows: NDArray[np.int64]) -> list[list[int]]:
    """Of each row the positions of its labels in the vocabulary."""
    return [np.flatnonzero(labels).tolist() for labels in store.labels(rows)]


def _provenance(store: Store, row: int, clip: Clip, entry: dict[str, Any]) -> list[list[str]]:
    shard = int(store.shard_of(np.array([row]))[0])
    spec = store.file.fbank
    audible_s = entry["num_frames"] * spec.frame_shift_ms / 1000
    about = {
        "source": clip.source,
        "part asked for": _span(clip.start_ms, clip.end_ms),
        "window": f"from {entry['crop_start_ms'] / 1000:g} s of the source, {audible_s:g} s of sound",
        "fold": clip.fold,
        "source format": f"{entry['codec']}, {entry['source_rate_hz']} Hz, {entry['num_channels']} channels",
        "source length": None if entry["duration_s"] is None else f"{entry['duration_s']:.2f} s",
        "level": f"rms {_dbfs(entry['rms'])}, peak {_dbfs(entry['peak'])}",
        "flags": ", ".join(name for name in ("silent", "short", "clipped") if entry[name]),
        "shard": f"{store.tar_name(shard)}, byte {entry['sample_offset']}",
        "row": row,
        "source sha256": entry["source_sha256"],
        "fbank sha256": entry["fbank_sha256"],
    }
    return [[name, str(value)] for name, value in about.items() if value not in (None, "")]


def _span(start_ms: int | None, end_ms: int | None) -> str | None:
    if start_ms is None and end_ms is None:
        return None
    return f"{(start_ms or 0) / 1000:g} s to {'the end' if end_ms is None else f'{end_ms / 1000:g} s'}"


def _dbfs(amplitude: float) -> str:
    return f"{20 * np.log10(amplitude):.1f} dBFS" if amplitude > 0 else "none"
