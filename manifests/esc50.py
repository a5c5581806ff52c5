"""ESC-50 (Piczak 2015) and its subset ESC-10, in the official layout: meta/esc50.csv and audio/."""

from collections.abc import Iterable
from pathlib import Path

from manifests.clips import Clip, Manifest, make_manifest
from manifests.errors import InputError
from manifests.tables import Row, existing_folder, read_table, require_files, source_within
from manifests.vocabulary import Label, Vocabulary

ESC50_URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
COLUMNS = ("filename", "fold", "target", "category", "esc10")
NUM_FOLDS = 5
NUM_CLASSES = 50


def esc50_manifest(root: Path, *, esc10: bool = False, seed: int = 0) -> Manifest:
    """The clips of ESC-50 under `root`, or with `esc10` those of ESC-10, with their official folds (1 to 5).

    Label ids are the official categories, ordered by target number, and names have spaces for underscores.
    Raises InputError for a wrong layout, a bad cell, or files that `audio/` lacks.
    """
    root = existing_folder(root)
    path = root / "meta" / "esc50.csv"
    if not path.is_file():
        raise InputError(f"no {path}; --root must be the folder that holds meta/esc50.csv and audio/ (ESC-50-master)")
    table = read_table(path)
    table.require(COLUMNS, f"expected the official table: download it again from {ESC50_URL}")
    # The whole table is checked, whichever part is kept: a damaged cell may be the one that says which.
    kept = [row for row in table.rows if row.boolean("esc10") or not esc10]
    if not kept:
        raise InputError(f"{path} has no row with esc10 True; leave --esc10 out")
    vocabulary = _vocabulary(kept)
    clips = [_clip(row, root) for row in kept]
    require_files(
        [(row.where, root / clip.source) for row, clip in zip(kept, clips, strict=True)],
        f"unpack the whole archive again (from {ESC50_URL})",
    )
    return make_manifest("esc10" if esc10 else "esc50", clips, vocabulary, root, seed=seed, where=str(path))


def _clip(row: Row, root: Path) -> Clip:
    filename = row.text("filename")
    source = source_within(root, f"audio/{filename}")
    if source is None or Path(filename).name != filename:
        raise row.error(f"filename is {filename!r}; expected the plain name of a file in audio/: correct the cell")
    return Clip(
        key=Path(filename).stem,
        source=source,
        labels=(row.text("category"),),
        fold=row.whole_number("fold", 1, NUM_FOLDS),
    )


def _vocabulary(rows: Iterable[Row]) -> Vocabulary:
    category_of: dict[int, str] = {}
    target_of: dict[str, int] = {}
    for row in rows:
        target, category = row.whole_number("target", 0, NUM_CLASSES - 1), row.text("category")
        known = category_of.setdefault(target, category), target_of.setdefault(category, target)
        if known != (category, target):
            raise row.error(
                f"target {target} with category {category!r}, but an earlier line has {known[0]!r} for target {target} "
                f"and {known[1]} for {category!r}; a target stands for one category: correct the cell"
            )
    return Vocabulary(
        labels=tuple(Label(id=category, name=category.replace("_", " ")) for _, category in sorted(category_of.items()))
    )
