"""What of the clips asked for is in a store: counts per class and split, and the lists of keys."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.csvtext import csv_lines
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Vocabulary

_UNSAFE = re.compile(r"[^A-Za-z0-9_+=,@-]")
_MAX_NAME_LENGTH = 64


@dataclass(frozen=True)
class StoreFacts:
    """What a store's description is made of.

    `tar_names`, `tar_sizes` (bytes) and `tar_sha256` go by shard; `lists` gives the sha256 of the lists that the clips
    were taken from, by file name. `clips` has a row per clip asked for: key, labels (ids), split and fold (nullable),
    ok, and reason (null where ok).
    """

    dataset: str
    vocabulary: Vocabulary
    fbank: FbankSpec
    hog: HogSpec
    clips_per_shard: int
    num_shards: int
    num_clips: int
    num_clips_asked: int
    mean: float
    std: float
    snapshot: int
    fingerprint: str
    keep_audio: bool
    tar_names: tuple[str, ...]
    tar_sizes: tuple[int, ...]
    tar_sha256: tuple[str, ...]
    clips: pa.Table
    lists: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Coverage:
    """Clips asked for and present, by split and by class.

    `splits` are those of :func:`splits_of`; the arrays are int64, (num_splits,) for clips and
    (num_splits, num_classes) for classes, where a clip counts in each of its classes.
    """

    splits: tuple[str | None, ...]
    clips_asked: NDArray[np.int64]
    clips_present: NDArray[np.int64]
    classes_asked: NDArray[np.int64]
    classes_present: NDArray[np.int64]


def splits_of(facts: StoreFacts) -> tuple[str | None, ...]:
    """The splits of the clips asked for, sorted, None last."""
    found = pc.unique(facts.clips["split"]).to_pylist()
    named = sorted(name for name in found if name is not None)
    return (*named, None) if None in found else tuple(named)


def count_coverage(facts: StoreFacts) -> Coverage:
    """Counts the clips of `facts`, by columns; raises InputError for a label that the vocabulary lacks."""
    splits = splits_of(facts)
    split = _numpy(pc.index_in(facts.clips["split"], pa.array(splits, pa.string())))
    ok = _numpy(facts.clips["ok"])
    row, label = _rows_and_labels(facts)
    num_classes = len(facts.vocabulary)
    cell = split[row] * num_classes + label

    def by_class(cells: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(cells, minlength=len(splits) * num_classes).reshape(len(splits), num_classes)

    return Coverage(
        splits=splits,
        clips_asked=np.bincount(split, minlength=len(splits)),
        clips_present=np.bincount(split[ok], minlength=len(splits)),
        classes_asked=by_class(cell),
        classes_present=by_class(cell[ok[row]]),
    )


def coverage_csv(facts: StoreFacts, coverage: Coverage) -> str:
    """id, name, split, asked, present: a row per class and split, in the vocabulary's order."""
    rows = (
        (label.id, label.name, name or "", coverage.classes_asked[s, c], coverage.classes_present[s, c])
        for s, name in enumerate(coverage.splits)
        for c, label in enumerate(facts.vocabulary.labels)
    )
    return csv_lines([("id", "name", "split", "asked", "present"), *rows])


def missing_csv(facts: StoreFacts, coverage: Coverage) -> str:
    """key, split, reason of every clip that is not in the store, by split and key."""
    missing = facts.clips.filter(pc.invert(facts.clips["ok"])).select(["key", "split", "reason"])
    tables = [_of_split(missing, split) for split in coverage.splits]
    rows = (row for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True))
    return csv_lines([("key", "split", "reason"), *rows])


def present_lists(facts: StoreFacts, coverage: Coverage) -> dict[str, str]:
    """File name -> the keys present in a split, one a line, in the order of `LC_ALL=C sort`."""
    present = facts.clips.filter(facts.clips["ok"]).select(["key", "split"])
    return {
        name: "".join(f"{key}\n" for key in _of_split(present, split)["key"].to_pylist())
        for name, split in zip(present_names(coverage.splits), coverage.splits, strict=True)
    }


def present_names(splits: tuple[str | None, ...]) -> list[str]:
    """The file names of the splits' lists: plain characters only, different even where case doesn't count."""
    names: list[str] = []
    taken: set[str] = set()
    for split in splits:
        text = split if split is not None else "all" if len(splits) == 1 else "without_split"
        safe = _UNSAFE.sub("_", text)[:_MAX_NAME_LENGTH] or "_"
        digest = hashlib.sha256(repr(split).encode()).hexdigest()
        # The longest can't be taken: it is longer than any safe name.
        name = next(name for name in (safe, f"{safe}-{digest[:8]}", f"{safe}-{digest}") if name.casefold() not in taken)
        taken.add(name.casefold())
        names.append(f"present_{name}.txt")
    return names


def _rows_and_labels(facts: StoreFacts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and class of every label of every clip; a label that a clip names twice counts once."""
    ids = pc.list_flatten(facts.clips["labels"])
    position = pc.index_in(ids, pa.array(facts.vocabulary.ids, pa.string()))
    if position.null_count:
        facts.vocabulary.indices(pc.unique(ids).to_pylist())  # names the one that is unknown
    num_classes = max(1, len(facts.vocabulary))
    pairs = np.sort(_numpy(pc.list_parent_indices(facts.clips["labels"])) * num_classes + _numpy(position))
    return np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], num_classes)


def _of_split(clips: pa.Table, split: str | None) -> pa.Table:
    """The clips of a split, by key."""
    wanted = pc.is_null(clips["split"]) if split is None else pc.equal(clips["split"], split)
    chosen = clips.filter(wanted).combine_chunks()
    return chosen.take(pc.sort_indices(chosen["key"]))


def _numpy(column: Any) -> NDArray[Any]:
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return values if values.dtype == np.bool_ else values.astype(np.int64)
