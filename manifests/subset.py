"""Subsets of lists: named ones, seeded draws, files of keys. They depend on the set of clips, not on its order."""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from manifests.clips import Clip
from manifests.errors import InputError
from manifests.tables import read_text

SubsetName = Literal["as20k", "paper20k"]
NUM_PAPER20K = 20_000
# Told, for each line that fits nothing, where it is and what is wrong; may raise InputError.
Complain = Callable[[Sequence[str]], None]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which clips of the lists are asked for; where several are given, each takes from what the one before left.

    keys_file: those named in a text file, a key or a YouTube id (all its clips) a line, '#' before comments. subset:
    as20k, AudioSet's official balanced list, or paper20k, 20,000 clips drawn by the seed. limit: so many clips, drawn
    by the seed; what a smaller limit draws is part of what a larger one draws.

    Raises InputError for an unknown subset or a limit under 1.
    """

    keys_file: Path | None = None
    subset: SubsetName | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.subset not in (None, *get_args(SubsetName)):
            raise InputError(f"--subset {self.subset!r} is not known; give {' or '.join(get_args(SubsetName))}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit {self.limit} takes nothing; give 1 or more, or leave it out")

    def check(self, dataset: str, splits: Sequence[str]) -> None:
        """Raises InputError when the named subset isn't one of these splits of this dataset."""
        if self.subset == "as20k" and (dataset, *splits) != ("audioset", "balanced"):
            raise InputError(
                f"--subset as20k is AudioSet's balanced list, but {dataset}'s {' and '.join(splits)} was asked for; "
                "use it with ingest audioset --split balanced alone, or leave it out"
            )

    def choose(self, clips: Iterable[Clip], seed: int, complain: Complain) -> Iterable[Clip]:
        """The clips taken, in no order that matters; `complain` is told the lines of the key file that name none.

        Raises InputError when there are too few for the subset.
        """
        if self.keys_file is not None:
            clips = _named(clips, self.keys_file, complain)
        if self.subset == "paper20k":
            clips = _drawn(clips, NUM_PAPER20K, seed)
            if len(clips) < NUM_PAPER20K:
                raise InputError(
                    f"--subset paper20k draws {NUM_PAPER20K} clips, but only {len(clips)} are listed; ask for more "
                    "splits, or leave it out"
                )
        return clips if self.limit is None else _drawn(clips, self.limit, seed)


EVERYTHING = Selection()


def _drawn(clips: Iterable[Clip], num_clips: int, seed: int) -> list[Clip]:
    # A clip's rank is its own, whatever else is listed: that makes draws of all sizes parts of each other.
    def rank(clip: Clip) -> bytes:
        return hashlib.blake2b(f"{seed}:{clip.key}".encode(), digest_size=16).digest()

    return heapq.nsmallest(num_clips, clips, key=rank)


def _named(clips: Iterable[Clip], path: Path, complain: Complain) -> Iterator[Clip]:
    line_of = _lines_of_names(path)
    found: set[str] = set()
    for clip in clips:
        if names := line_of.keys() & {clip.key, clip.source}:
            found |= names
            yield clip
    missing = [f"{path}, line {line}: {name!r} is in no list" for name, line in line_of.items() if name not in found]
    if missing:
        complain(missing)


def _lines_of_names(path: Path) -> dict[str, int]:
    """The line on which each name of a key file stands first."""
    line_of: dict[str, int] = {}
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if name := text.partition("#")[0].strip():
            line_of.setdefault(name, line)
    if not line_of:
        raise InputError(f"{path} names no clip; write one key or YouTube id a line")
    return line_of
