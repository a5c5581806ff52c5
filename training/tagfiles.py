"""`training predict` behind the command line: files to tags, printed one by one or written as one file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from ingest.atomic import move_in
from manifests.csvtext import csv_lines
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary
from training.audiofiles import shown
from training.filewindows import Windows
from training.hearing import FileEnd, HeardWindow, HearingOptions, hear_files
from training.parts import Failure, Parts, open_parts, write_failures
from training.predict import FileTagger, FileTags, TagOptions
from training.tagger import Tagger
from training.tagtext import CSV_COLUMNS, Format, as_csv, as_json_line, as_lines


@dataclass(frozen=True)
class Tagging:
    """A model, how it is shown files, and what is wanted of what it says."""

    tagger: Tagger
    windows: Windows
    hearing: HearingOptions
    options: TagOptions
    format: Format

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's labels; raises InputError where it has none."""
        if self.tagger.vocabulary is None:
            raise InputError(f"{self.tagger.name} knows no labels; use `training embed`")
        return self.tagger.vocabulary

    def hear(self, files: Sequence[Path]) -> AbstractContextManager[Iterator[HeardWindow | FileEnd]]:
        """See :func:`training.hearing.hear_files`."""
        return hear_files(files, self.tagger, self.windows, self.hearing)

    def text(self, said: FileTags) -> str:
        """A file's tags in the format asked for."""
        wanted = {
            "with_windows": self.options.with_windows,
            "with_events": self.options.event_threshold is not None,
        }
        if self.format == "json":
            return as_json_line(said, **wanted)
        return as_csv(said, **wanted) if self.format == "csv" else as_lines(said)

    @property
    def header(self) -> str:
        """What comes before the first file."""
        return csv_lines([CSV_COLUMNS]) if self.format == "csv" else ""


def tag_files(files: Sequence[Path], tagging: Tagging, tell: Callable[[FileTags | Failure], None]) -> None:
    """Tells what is to be said of each file, in their order, as soon as it is known."""
    collected = FileTagger(tagging.vocabulary, tagging.options)
    with tagging.hear(files) as items:
        for item in items:
            if isinstance(item, HeardWindow):
                collected.add(item)
                continue
            name, error = shown(files[item.file]), item.error
            tell(collected.result(name) if error is None else Failure(name, str(error.reason), error.detail))
            collected = FileTagger(tagging.vocabulary, tagging.options)


def write_tags(
    files: Sequence[Path], tagging: Tagging, out: Path, began: Callable[[Parts], Callable[[int, str], None]]
) -> list[Failure]:
    """Writes the tags of all files that can be read to `out`, whole or absent, and the ledger of the others beside it.

    `began` is told what an earlier call left, and returns what counts files. Raises InputError where `out` can't be
    written.
    """
    job = {
        "what": "tags",
        "model": tagging.tagger.provenance,
        "windows": asdict(tagging.windows),
        "options": asdict(tagging.options),
        "format": tagging.format,
    }
    with open_parts(out, job, files) as parts:
        parts.write(files, tagging.hear, lambda path: _open_part(path, tagging), began(parts))
        place = parts.empty_place("result")
        with place.open("w", encoding="utf-8", newline="") as file:
            file.write(tagging.header)
            for path in parts.paths():
                with path.open(encoding="utf-8", newline="") as part:
                    file.writelines(part)
        move_in(place, out)
        write_failures(out, parts.failures)
    return parts.failures


class _TextPart:
    """A :class:`training.parts.PartWriter` of text."""

    def __init__(self, file: TextIO, tagging: Tagging) -> None:
        self._file, self._tagging = file, tagging
        self._collected = FileTagger(tagging.vocabulary, tagging.options)

    def add(self, file: str, window: HeardWindow) -> None:
        self._collected.add(window)

    def end(self, file: str, *, ok: bool) -> None:
        if ok:
            self._file.write(self._tagging.text(self._collected.result(file)))
        self._collected = FileTagger(self._tagging.vocabulary, self._tagging.options)


@contextmanager
def _open_part(path: Path, tagging: Tagging) -> Iterator[_TextPart]:
    with path.open("w", encoding="utf-8", newline="") as file:
        yield _TextPart(file, tagging)
