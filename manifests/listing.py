"""Published lists of clips of videos, a clip a line: read as a stream, every complaint naming file and line."""

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from manifests.clips import Clip, Manifest, Sources, make_manifest
from manifests.errors import InputError
from manifests.subset import Selection
from manifests.vocabulary import Vocabulary

NUM_EXAMPLES = 5
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]+)?")
# Made once: a reader is made for every line.
_DIALECT = csv.reader([], skipinitialspace=True, strict=True).dialect
# Some programs put a byte order mark at the front.
_PADDING = "\ufeff \t\r\n"


@dataclass(frozen=True)
class Listing:
    """What lists gave: the manifest, the sha256 of each list by its file's name, and what was left out of it.

    `bad_rows` are the first few of the `num_bad_rows`, each with file and line.
    """

    manifest: Manifest
    list_sha256: dict[str, str]
    num_bad_rows: int
    bad_rows: tuple[str, ...]


class ListReader:
    """Reads the lists of one manifest, and keeps account of their hashes and bad rows."""

    def __init__(self, *, skip_bad_rows: bool) -> None:
        self.sha256: dict[str, str] = {}
        self._skip_bad_rows = skip_bad_rows
        self._num_bad_rows = 0
        self._examples: list[str] = []
        self._keys: set[str] = set()

    def read(self, path: Path, parse: Callable[[list[str]], Clip]) -> Iterator[Clip]:
        """The clips of the list at `path`; `parse` makes one of a row's cells, or raises InputError with what is wrong.

        Comments ('# ...') and empty lines are passed over. Raises InputError for a file that can't be read, is a web
        page or holds no row, and for a bad row, or a clip that was listed before, unless those are to be skipped.
        """
        num_rows = 0
        for line, raw in self._lines(path):
            try:
                cells = _cells(raw)
                if not cells:
                    continue
                clip = self._new(parse(cells))
            except InputError as error:
                self.bad_rows([f"{path}, line {line}: {error}"])
            else:
                yield clip
            num_rows += 1
        if not num_rows:
            raise InputError(f"{path} lists no clip; expected one a line: is it the right file?")

    def bad_rows(self, complaints: Sequence[str]) -> None:
        """Counts rows, each with what is wrong with it; raises InputError unless bad rows are to be skipped."""
        if not self._skip_bad_rows:
            more = f"; and {len(complaints) - NUM_EXAMPLES} more" if len(complaints) > NUM_EXAMPLES else ""
            named = "; ".join(complaints[:NUM_EXAMPLES])
            raise InputError(f"{named}{more}; correct the file, or leave such rows out with --skip-bad-rows")
        self._num_bad_rows += len(complaints)
        self._examples += complaints[: NUM_EXAMPLES - len(self._examples)]

    def listing(
        self,
        dataset: str,
        clips: Iterable[Clip],
        vocabulary: Vocabulary,
        sources: Sources,
        *,
        selection: Selection,
        seed: int,
        where: str,
    ) -> Listing:
        """The manifest of what `selection` takes of `clips`, which this reader reads."""
        chosen = selection.choose(clips, seed, self.bad_rows)
        manifest = make_manifest(dataset, chosen, vocabulary, sources, seed=seed, where=where)
        return Listing(manifest, self.sha256, self._num_bad_rows, tuple(self._examples))

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """The lines of a file with their numbers; its hash is kept."""
        try:
            with path.open("rb") as file:
                self.sha256[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                for line, raw in enumerate(file, start=1):
                    if line == 1 and is_web_page(raw):
                        raise InputError(f"{path} is a web page, not a list; put the list itself in its place")
                    yield line, raw
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror}); make it readable") from error

    def _new(self, clip: Clip) -> Clip:
        if clip.key in self._keys:
            raise InputError(f"the clip {clip.key} is in the lists for the second time")
        self._keys.add(clip.key)
        return clip


def chosen_splits(splits: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """`splits`, each once and in the order of `known`; raises InputError when there is none, or one not known."""
    unknown = [split for split in splits if split not in known]
    if unknown or not splits:
        given = f"--split {unknown[0]!r} is not known" if unknown else "no split is asked for"
        raise InputError(f"{given}; give {', '.join(known[:-1])} or {known[-1]}")
    return tuple(split for split in known if split in splits)


def require_list(path: Path, url: str) -> Path:
    """`path`; raises InputError, with the official address of the list, when there is no such file."""
    if not path.is_file():
        raise InputError(f"no {path.name} in {path.parent}; copy it there from {url}, or leave --metadata out")
    return path


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins with `head` is HTML: what servers and proxies send in place of what they lack."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def youtube_id(text: str) -> str:
    """`text`; raises InputError unless it has the form of a YouTube id."""
    if not _YOUTUBE_ID.fullmatch(text):
        raise InputError(
            f"{text!r} is no YouTube id; expected 11 of A-Z, a-z, 0-9, '_' and '-' "
            "(spreadsheets turn some into #NAME? or a number)"
        )
    return text


@lru_cache(maxsize=100_000)
def milliseconds(text: str) -> int:
    """Seconds such as '30' or '30.000', rounded to ms; raises InputError for anything else."""
    if not _SECONDS.fullmatch(text):
        raise InputError(f"the time {text!r} is no number of seconds; expected one such as 30 or 30.000")
    return round(float(text) * 1000)


def _cells(raw: bytes) -> list[str]:
    """The cells of one line, none for a comment. A row is one line, so that a lost quote costs its own row alone."""
    try:
        text = raw.decode().strip(_PADDING)
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8") from error
    # An id that a spreadsheet spoilt begins with '#' too, without a space.
    if not text or (text[0] == "#" and not text[1:2].strip()):
        return []
    try:
        return [cell.strip() for cell in next(csv.reader([text], _DIALECT))]
    except csv.Error as error:
        raise InputError(f"not CSV ({error}); check its quotes") from error
