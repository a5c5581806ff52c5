"""A folder of the user's own: clips found in it, or listed in a CSV file, with labels, folds and splits."""

import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from manifests.clips import MAX_KEY_BYTES, Clip, Manifest, make_manifest
from manifests.errors import InputError
from manifests.tables import (
    Row,
    Table,
    existing_folder,
    find_files,
    read_table,
    read_text,
    require_files,
    source_within,
    whole_number,
)
from manifests.vocabulary import Label, Vocabulary

AUDIO_EXTENSIONS = (
    *("wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "mp4"),
    *("aac", "webm", "mkv", "mov", "aif", "aiff", "wma", "amr", "wv", "caf", "avi", "flv", "ape", "au", "ac3"),
    *("m4b", "3gp", "ts", "mpg", "mpeg", "w64", "tta"),
)
_HASH_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What a folder's clips, labels, folds and splits are taken from.

    `labels` is the name of the file's own folder ("parent") or nothing ("none"). With `labels_csv` only the files
    listed there count, and its columns give the labels (unless "none"): `file`, `filename` or `path`, relative to the
    root; `label`, taken whole, or `labels`, separated by ';' (as in any other `label_column`); and optionally `split`,
    `fold`, `key`, `start_s`, `end_s`. A pattern is searched for in the relative path and its first group taken, in
    place of a column. `vocabulary_file` fixes the labels and their order, one a line.
    """

    dataset: str | None = None
    labels: Literal["parent", "none"] = "parent"
    labels_csv: Path | None = None
    vocabulary_file: Path | None = None
    file_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    fold_column: str | None = None
    split_pattern: str | None = None
    fold_pattern: str | None = None

    def __post_init__(self) -> None:
        columns = (self.file_column, self.label_column, self.split_column, self.fold_column)
        if self.labels_csv is None and any(columns):
            raise InputError("a column was named, but no table that has it; give its CSV file with --labels-csv")


DEFAULTS = FolderOptions()


class _Entry(NamedTuple):
    """A clip, whose key is empty until it is given one, and where the user named it."""

    where: str
    clip: Clip


def folder_manifest(root: Path, options: FolderOptions = DEFAULTS, *, seed: int = 0) -> Manifest:
    """The clips of the folder `root`.

    Hidden files and folders are skipped. A link to a folder within `root` is not followed (its files are found where
    they lie); a link out of `root` is refused, since the files of a store must be found again under its root.

    A clip's key is the CSV's, or else its path without extension, other characters than letters, digits and _+=,@-
    turned into '_', and _START_MS for a cut; where two would be the same, or one too long, a hash of the path follows.

    Raises InputError for an empty folder, and for a path, cell, column or pattern that doesn't fit, saying where.
    """
    root = existing_folder(root)
    entries = _listed(root, options, options.labels_csv) if options.labels_csv else _found(root, options)
    remedy = f"paths start from {root}: correct it, or restore the files"
    require_files([(where, root / clip.source) for where, clip in entries], remedy)
    entries = _with_patterns(entries, options)
    vocabulary = _vocabulary(entries, options.vocabulary_file)
    where = str(options.labels_csv or root)
    dataset = options.dataset or _safe(root.name) or "folder"
    return make_manifest(dataset, _with_keys(entries), vocabulary, root, seed=seed, where=where)


def passed_over(root: Path) -> Counter[str]:
    """How many files below `root` are no audio by their extensions (with the dot, lower case), hidden ones aside."""
    names = (name for _, _, files in os.walk(root) for name in files if not name.startswith("."))
    endings = (Path(name).suffix.lower() for name in names)
    return Counter(ending for ending in endings if ending.removeprefix(".") not in AUDIO_EXTENSIONS)


def _found(root: Path, options: FolderOptions) -> list[_Entry]:
    sources = find_files(root, AUDIO_EXTENSIONS)
    if not sources:
        raise InputError(
            f"{root} has no audio files; looked for {', '.join(AUDIO_EXTENSIONS)}: is it the right folder?"
        )
    labelled = options.labels == "parent"
    return [
        _Entry(source, Clip(key="", source=source, labels=(_parent(root, source),) if labelled else ()))
        for source in sources
    ]


def _parent(root: Path, source: str) -> str:
    label = PurePosixPath(source).parent.name
    if not label:
        raise InputError(
            f"{root / source} lies in no folder that could be its label; put it in one, or use --labels none"
        )
    return label


def _listed(root: Path, options: FolderOptions, path: Path) -> list[_Entry]:
    table = read_table(path)
    file_column = _column(table, options.file_column, ("file", "filename", "path"), "--file-column")
    labelled = options.labels != "none"
    label_column = _column(table, options.label_column, ("label", "labels"), "--label-column") if labelled else None
    split_column = _optional(table, options.split_column, "split", "--split-column")
    fold_column = _optional(table, options.fold_column, "fold", "--fold-column")
    entries = [
        _Entry(
            row.where,
            Clip(
                key=row.cells.get("key", ""),
                source=_source(row, file_column, root),
                start_ms=row.milliseconds("start_s") if "start_s" in table.columns else None,
                end_ms=row.milliseconds("end_s") if "end_s" in table.columns else None,
                labels=_labels(row, label_column),
                split=row.cells[split_column] or None if split_column else None,
                fold=row.whole_number(fold_column) if fold_column and row.cells[fold_column] else None,
            ),
        )
        for row in table.rows
    ]
    _check_listed(entries)
    return entries


def _column(table: Table, chosen: str | None, usual: Sequence[str], option: str) -> str:
    return table.choose([chosen] if chosen else usual, f"name the column that is meant with {option}")


def _optional(table: Table, chosen: str | None, usual: str, option: str) -> str | None:
    return _column(table, chosen, (usual,), option) if chosen or usual in table.columns else None


def _source(row: Row, column: str, root: Path) -> str:
    source = source_within(root, row.text(column))
    if source is None:
        raise row.error(f"{row.cells[column]!r} leads out of {root}; expected a path in it: move the file")
    return source


def _labels(row: Row, column: str | None) -> tuple[str, ...]:
    if column is None:
        return ()
    names = [row.text(column)] if column == "label" else row.cells[column].split(";")
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _check_listed(entries: Sequence[_Entry]) -> None:
    for where, clip in entries:
        if clip.end_ms is not None and clip.end_ms <= (clip.start_ms or 0):
            raise InputError(f"{where}: the clip ends at {clip.end_ms} ms, which is not after its start; correct it")
    _refuse_repeats(entries, lambda clip: clip.key or None, "key")
    _refuse_repeats(entries, lambda clip: (clip.source, clip.start_ms, clip.end_ms), "clip")
    for what, values in (("fold", [e.clip.fold for e in entries]), ("split", [e.clip.split for e in entries])):
        if None in values and any(value is not None for value in values):
            raise InputError(
                f"{entries[values.index(None)].where}: no {what}, which other lines have; give all lines one, or none"
            )


def _refuse_repeats(entries: Sequence[_Entry], identity: Callable[[Clip], Hashable], what: str) -> None:
    first: dict[Hashable, str] = {}
    for where, clip in entries:
        same = identity(clip)
        if same is not None and first.setdefault(same, where) != where:
            raise InputError(f"{where}: the same {what} as {first[same]} ({clip.key or clip.source}); remove one")


def _with_patterns(entries: Sequence[_Entry], options: FolderOptions) -> list[_Entry]:
    clips = [clip for _, clip in entries]
    if options.split_pattern:
        splits = _captured(entries, options.split_pattern, "--split-pattern")
        clips = [replace(clip, split=split) for clip, split in zip(clips, splits, strict=True)]
    if options.fold_pattern:
        folds = _captured(entries, options.fold_pattern, "--fold-pattern")
        clips = [
            replace(clip, fold=whole_number(fold, f"{clip.source}: the group of --fold-pattern"))
            for clip, fold in zip(clips, folds, strict=True)
        ]
    return [_Entry(where, clip) for (where, _), clip in zip(entries, clips, strict=True)]


def _captured(entries: Sequence[_Entry], pattern: str, option: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{option} {pattern!r} is no regular expression: {error}; correct it") from error
    if not compiled.groups:
        raise InputError(f"{option} {pattern!r} has no group; put (...) around the part that is meant")
    matches = [compiled.search(clip.source) for _, clip in entries]
    for (where, clip), match in zip(entries, matches, strict=True):
        if not (match and match[1]):
            raise InputError(f"{where}: {option} {pattern!r} finds nothing in {clip.source!r}; correct the pattern")
    return [match[1] for match in matches if match]


def _vocabulary(entries: Sequence[_Entry], path: Path | None) -> Vocabulary:
    if path is None:
        return Vocabulary.from_names(label for _, clip in entries for label in clip.labels)
    line_of: dict[str, int] = {}
    for line, name in enumerate(map(str.strip, read_text(path).splitlines()), start=1):
        if name and line_of.setdefault(name, line) != line:
            raise InputError(f"{path}, line {line}: {name!r} is on line {line_of[name]} already; remove one")
    for where, clip in entries:
        if unknown := next((label for label in clip.labels if label not in line_of), None):
            raise InputError(
                f"{where}: the label {unknown!r} is none of the {len(line_of)} in {path}; add it there, or correct it"
            )
    return Vocabulary(labels=tuple(Label(id=name, name=name) for name in line_of))


def _with_keys(entries: Sequence[_Entry]) -> list[Clip]:
    keys = [clip.key or _automatic_key(clip) for _, clip in entries]
    count = Counter(keys)
    return [
        clip
        if clip.key
        else replace(clip, key=_hashed(key, clip) if count[key] > 1 or len(key) > MAX_KEY_BYTES else key)
        for key, (_, clip) in zip(keys, entries, strict=True)
    ]


def _automatic_key(clip: Clip) -> str:
    key = _safe(posixpath.splitext(clip.source)[0])
    return f"{key}_{clip.start_ms or 0:09d}" if _is_cut(clip) else key


def _hashed(key: str, clip: Clip) -> str:
    identity = f"{clip.source}:{clip.start_ms}:{clip.end_ms}" if _is_cut(clip) else clip.source
    digest = hashlib.sha256(identity.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{key[: MAX_KEY_BYTES - 1 - _HASH_DIGITS]}_{digest}"


def _is_cut(clip: Clip) -> bool:
    return clip.start_ms is not None or clip.end_ms is not None


def _safe(name: str) -> str:
    return re.sub(r"^-|[^A-Za-z0-9_+=,@-]+", "_", name)
