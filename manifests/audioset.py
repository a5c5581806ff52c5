"""AudioSet (Gemmeke et al., "Audio Set: An ontology and human-labeled dataset for audio events", ICASSP 2017).

Its lists of segments and `audioset_labels.csv`, which is its `class_labels_indices.csv` unchanged (527 classes in the
order of the logits of models trained on it), are by Google Inc. under CC BY 4.0:
https://research.google.com/audioset/download.html
"""

import csv
import hashlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain
from pathlib import Path

from manifests.clips import Clip, Sources
from manifests.errors import InputError
from manifests.listing import Listing, ListReader, chosen_splits, milliseconds, require_list, youtube_id
from manifests.subset import EVERYTHING, Selection
from manifests.tables import read_table
from manifests.vocabulary import Label, Vocabulary

SPLITS = ("balanced", "unbalanced", "eval")
_FILES = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
_LABELS_FILE = "class_labels_indices.csv"
_ADDRESS = "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
_NUM_CELLS = 4


@cache
def audioset_vocabulary() -> Vocabulary:
    """The 527 classes: ids are MIDs (``/m/09x0r``), names are display names (``Speech``)."""
    text = (files("manifests") / "audioset_labels.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return Vocabulary(labels=tuple(Label(id=row["mid"], name=row["display_name"]) for row in rows))


def audioset_lists(splits: Sequence[str]) -> dict[str, str]:
    """The official addresses of the lists that `splits` need, by file name; raises InputError for an unknown split."""
    names = [_LABELS_FILE, *(_FILES[split] for split in chosen_splits(splits, SPLITS))]
    return {name: f"{_ADDRESS}/{name}" for name in names}


def audioset_manifest(
    metadata: Path,
    splits: Sequence[str],
    sources: Sources,
    *,
    selection: Selection = EVERYTHING,
    seed: int = 0,
    skip_bad_rows: bool = False,
) -> Listing:
    """The clips of AudioSet's `splits` (balanced, unbalanced, eval), from the official lists in the folder `metadata`.

    Google's own layout is read, and the one of common copies, without spaces and needless quotes. A clip's key is
    as_ID_START (ms, nine digits), its source the YouTube id, its labels are MIDs, its split is the list's.

    Raises InputError for a list that is missing or of other labels, for a bad row or one listed twice (with
    `skip_bad_rows` those are left out and counted), and for a selection that can't be had.
    """
    splits = chosen_splits(splits, SPLITS)
    selection.check("audioset", splits)
    path_of = {name: require_list(metadata / name, url) for name, url in audioset_lists(splits).items()}
    vocabulary = audioset_vocabulary()
    _check_labels(path_of[_LABELS_FILE], vocabulary)
    reader = ListReader(skip_bad_rows=skip_bad_rows)
    reader.sha256[_LABELS_FILE] = hashlib.sha256(path_of[_LABELS_FILE].read_bytes()).hexdigest()
    clips = chain.from_iterable(reader.read(path_of[_FILES[split]], _segment(split, vocabulary)) for split in splits)
    where = " and ".join(str(path_of[_FILES[split]]) for split in splits)
    return reader.listing("audioset", clips, vocabulary, sources, selection=selection, seed=seed, where=where)


def _segment(split: str, vocabulary: Vocabulary) -> Callable[[list[str]], Clip]:
    """What makes a clip of a row of cells."""

    # Millions of rows have far fewer sets of labels.
    @lru_cache(maxsize=100_000)
    def mids(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(mid.strip() for mid in text.split(",")))
        for mid in found:
            if mid not in vocabulary.position:
                raise InputError(f"the label {mid!r} is none of AudioSet's {len(vocabulary)} MIDs, such as '/m/09x0r'")
        return found

    def parse(cells: list[str]) -> Clip:
        if len(cells) != _NUM_CELLS:
            raise InputError(
                f"{len(cells)} cells; expected {_NUM_CELLS}: YouTube id, start and end in seconds, MIDs "
                "(several in quotes)"
            )
        source, start_ms, end_ms = youtube_id(cells[0]), milliseconds(cells[1]), milliseconds(cells[2])
        if end_ms <= start_ms:
            raise InputError(f"the clip ends at {cells[2]} s, which is not after its start at {cells[1]} s")
        return Clip(
            key=f"as_{source}_{start_ms:09d}",
            source=source,
            start_ms=start_ms,
            end_ms=end_ms,
            labels=mids(cells[3]),
            split=split,
        )

    return parse


def _check_labels(path: Path, vocabulary: Vocabulary) -> None:
    """Refuses a list of labels other than the bundled one, by which models and stores are joined."""
    remedy = f"take AudioSet's own list from {_ADDRESS}/{_LABELS_FILE}"
    table = read_table(path)
    table.require(("index", "mid"), remedy)
    seen: set[int] = set()
    for row in table.rows:
        index, mid = row.whole_number("index"), row.text("mid")
        if vocabulary.position.get(mid) != index or index in seen:
            expected = f"{vocabulary.ids[index]} there" if index < len(vocabulary) else f"{len(vocabulary)} labels"
            raise row.error(f"index {index} is {mid}, but AudioSet has {expected}; {remedy}")
        seen.add(index)
    if len(seen) != len(vocabulary):
        raise InputError(f"{path} has {len(seen)} labels, but AudioSet has {len(vocabulary)}; {remedy}")
