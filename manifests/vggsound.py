"""VGGSound (Chen et al., "VGGSound: A Large-scale Audio-Visual Dataset", ICASSP 2020).

`vggsound_labels.csv` has the names of its 309 classes, from the authors' `stat.csv`, under CC BY 4.0:
https://www.robots.ox.ac.uk/~vgg/data/vggsound/
"""

import csv
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path

from manifests.clips import Clip, Sources
from manifests.errors import InputError
from manifests.listing import Listing, ListReader, chosen_splits, milliseconds, require_list, youtube_id
from manifests.subset import EVERYTHING, Selection
from manifests.vocabulary import Vocabulary

SPLITS = ("train", "test")
CLIP_MS = 10_000
VGGSOUND_LISTS = {"vggsound.csv": "https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv"}
_FILE_NAME = re.compile(r"(.*)_([0-9]{6})(\.[A-Za-z0-9]+)?", re.DOTALL)


@cache
def vggsound_vocabulary() -> Vocabulary:
    """The 309 classes, sorted; ids and names are the authors' names (``playing piano``)."""
    text = (files("manifests") / "vggsound_labels.csv").read_text(encoding="utf-8")
    return Vocabulary.from_names(row["name"] for row in csv.DictReader(text.splitlines()))


def vggsound_manifest(
    metadata: Path,
    splits: Sequence[str],
    sources: Sources,
    *,
    selection: Selection = EVERYTHING,
    seed: int = 0,
    skip_bad_rows: bool = False,
) -> Listing:
    """The clips of VGGSound's `splits` (train, test), from the lists in the folder `metadata`.

    The list is the official vggsound.csv (id, start in seconds, label, split); where there is none, vggsound_train.csv
    and vggsound_test.csv (or train.csv and test.csv), whose rows may also be a file's name, ID_START.mp4, and a label.
    A clip lasts 10 s; its key is vgg_ID_START (ms, nine digits), its source the YouTube id. The vocabulary is always
    the whole.

    Raises InputError for a list that is missing, for a bad row or one listed twice (with `skip_bad_rows` those are left
    out and counted), and for a selection that can't be had.
    """
    splits = chosen_splits(splits, SPLITS)
    selection.check("vggsound", splits)
    paths = _list_paths(metadata, splits)
    vocabulary = vggsound_vocabulary()
    reader = ListReader(skip_bad_rows=skip_bad_rows)
    listed = chain.from_iterable(reader.read(path, _row(split, vocabulary)) for path, split in paths.items())
    # The whole list is checked, whichever part is kept: a damaged cell may be the one that says which.
    clips = (clip for clip in listed if clip.split in splits)
    where = f"{' and '.join(map(str, paths))} ({' and '.join(splits)})"
    return reader.listing("vggsound", clips, vocabulary, sources, selection=selection, seed=seed, where=where)


def _list_paths(metadata: Path, splits: Sequence[str]) -> dict[Path, str | None]:
    """The lists to read, each with the split that its name tells."""
    ((official, url),) = VGGSOUND_LISTS.items()
    if not (metadata / official).exists():
        names = [(name, split) for split in splits for name in (f"vggsound_{split}.csv", f"{split}.csv")]
        found = {split: metadata / name for name, split in reversed(names) if (metadata / name).is_file()}
        if len(found) == len(splits):
            return {path: split for split, path in found.items()}
    return {require_list(metadata / official, url): None}


def _row(split: str | None, vocabulary: Vocabulary) -> Callable[[list[str]], Clip]:
    """What makes a clip of a row of cells, in a list of one `split`, or of all (None)."""

    def parse(cells: list[str]) -> Clip:
        name, start, label, its_split = _fields(cells, split)
        source, start_ms = youtube_id(name), milliseconds(start)
        if label not in vocabulary.position:
            raise InputError(
                f"the label {label!r} is none of VGGSound's {len(vocabulary)} classes, such as 'playing piano'"
            )
        if its_split not in SPLITS:
            raise InputError(f"the split is {its_split!r}; expected train or test")
        return Clip(
            key=f"vgg_{source}_{start_ms:09d}",
            source=source,
            start_ms=start_ms,
            end_ms=start_ms + CLIP_MS,
            labels=(label,),
            split=its_split,
        )

    return parse


def _fields(cells: list[str], split: str | None) -> tuple[str, str, str, str]:
    """Id, start in seconds, label and split; `split` is the list's own, where its name tells one."""
    match cells:
        case [source, start, label, its_split]:
            return source, start, label, its_split
        case [file_name, label] if split is not None:
            parts = _FILE_NAME.fullmatch(file_name)
            if parts is None:
                raise InputError(f"{file_name!r} is no file name such as glLQrEijrKg_000300.mp4 (id and start second)")
            return parts[1], parts[2], label, split
    or_two = "" if split is None else ", or 2: ID_START.mp4, label"
    raise InputError(f"{len(cells)} cells; expected 4: YouTube id, start second, label (in quotes), split{or_two}")
