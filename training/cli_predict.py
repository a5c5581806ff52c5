"""The commands `training predict` and `training embed`: tags and embeddings of audio files."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from manifests.errors import InputError

if TYPE_CHECKING:
    from training.filewindows import Windows
    from training.hearing import HearingOptions
    from training.parts import Failure, Parts
    from training.tagfiles import Tagging
    from training.tagger import Tagger

MAX_WORKERS = 8
DEFAULT_EVENT_THRESHOLD = 0.5
FORMAT_OF_SUFFIX: dict[str, Literal["table", "json", "csv"]] = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "table",
}

PathsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...", help="Audio or video files, or folders with all below them; -: a list on standard input."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="A run's folder or a checkpoint of ours; or, with --checkpoint, a teacher: efficientat, beats, ast, ... "
        "Default: the run in ./runs."
    ),
]
CheckpointOption = Annotated[Path | None, typer.Option(help="The file of a teacher's weights.")]
OnnxOption = Annotated[Path | None, typer.Option(help="An exported model instead (training export --format onnx).")]
HopOption = Annotated[
    float | None, typer.Option("--hop-s", help="Seconds from one window to the next. Default: the window's length.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help=f"Files decoded at a time. Default: one a core, at most {MAX_WORKERS}.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Windows, also of several files, that the model takes at once.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def predict(
    paths: PathsArgument,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    onnx: OnnxOption = None,
    top: Annotated[int, typer.Option(min=1, help="At most so many tags a file, or a window.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="No tags or events below this.", show_default="0, for --events 0.5"),
    ] = None,
    aggregate: Annotated[
        Literal["mean", "max"], typer.Option(help="What a file's windows together say of a label.")
    ] = "mean",
    windows: Annotated[bool, typer.Option("--windows", help="Each window's tags, too.")] = False,
    events: Annotated[
        bool, typer.Option("--events", help="From when to when a label reaches the threshold, too.")
    ] = False,
    hop_s: HopOption = None,
    format_: Annotated[
        Literal["table", "json", "csv"] | None,
        typer.Option("--format", help="json: an object a line. Default: by the name of --out, else table."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="A .csv, .json, .jsonl or .txt, written when all is done; what failed: OUT.failures.csv."),
    ] = None,
    workers: WorkersOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
) -> None:
    """Tag audio files of any length, window by window. Exit status 1 when one of them can't be read.

    Example: training predict ~/recordings --model efficientat --checkpoint mn04_as_mAP_432.pt --out tags.csv
    """
    chosen = _choose_format(format_, out, as_json=as_json)
    if chosen == "csv" and windows and events:
        raise InputError("the rows of a CSV are windows or events; leave out --windows or --events, or use json")
    # Imported here, as in all commands: torch takes seconds, and `--help` does without it.
    from training.audiofiles import find_audio
    from training.outplace import check_out
    from training.predict import TagOptions
    from training.tagfiles import Tagging, write_tags

    if out is not None:
        check_out(out, tuple(FORMAT_OF_SUFFIX))
    files = find_audio(paths)
    tagger = _load(model, checkpoint, onnx, device, needs_labels=True)
    event_threshold = (DEFAULT_EVENT_THRESHOLD if threshold is None else threshold) if events else None
    options = TagOptions(top, threshold, aggregate, with_windows=windows, event_threshold=event_threshold)
    tagging = Tagging(tagger, _windows(tagger, hop_s), _hearing(workers, batch_size, len(files)), options, chosen)
    if out is None:
        any_failed = _print_tags(files, tagging)
    else:
        with _Progress(len(files)) as progress:
            failures = write_tags(files, tagging, out, progress.begin)
        _print_written(out, f"tags of {len(files) - len(failures)} of {len(files)} files", failures)
        any_failed = bool(failures)
    if any_failed:
        raise typer.Exit(1)


def embed(
    paths: PathsArgument,
    out: Annotated[
        Path, typer.Option(help="A .parquet or a .zarr, written when all is done; what failed: OUT.failures.csv.")
    ],
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    onnx: OnnxOption = None,
    per_window: Annotated[
        bool, typer.Option("--per-window", help="A row a window, not the mean over a file's windows.")
    ] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="The features of each patch as well; a row a window.")
    ] = False,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="What numbers are kept as.")] = "float32",
    hop_s: HopOption = None,
    workers: WorkersOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
) -> None:
    """Write embeddings of audio files. Stopped anywhere, the same command goes on. Exit status 1 when a file failed.

    Example: training embed ~/recordings --model runs/birds-tiny --out birds.parquet
    """
    from training.audiofiles import find_audio
    from training.embedfiles import SUFFIXES, Embedding, write_embeddings
    from training.outplace import check_out

    check_out(out, SUFFIXES)
    files = find_audio(paths)
    tagger = _load(model, checkpoint, onnx, device, needs_labels=False)
    hearing = _hearing(workers, batch_size, len(files))
    wanted = Embedding(tagger, _windows(tagger, hop_s), hearing, dtype, per_window=per_window, with_tokens=tokens)
    with _Progress(len(files)) as progress:
        num_rows, failures = write_embeddings(files, wanted, out, progress.begin)
    what = f"{num_rows} embeddings of {tagger.embedding_dim}, of {len(files) - len(failures)} of {len(files)} files"
    _print_written(out, what, failures)
    if failures:
        raise typer.Exit(1)


def _choose_format(
    format_: Literal["table", "json", "csv"] | None, out: Path | None, *, as_json: bool
) -> Literal["table", "json", "csv"]:
    if as_json and format_ not in (None, "json"):
        raise InputError(f"--json and --format {format_} contradict each other; leave out one of them")
    asked = "json" if as_json else format_
    named = None if out is None else FORMAT_OF_SUFFIX.get(out.suffix.lower())
    if asked is not None and named is not None and asked != named:
        raise InputError(f"--out {out} is by its name {named}, and {asked} is asked for; change one of them")
    return asked or named or "table"


def _load(
    model: str | None, checkpoint: Path | None, onnx: Path | None, device: str, *, needs_labels: bool
) -> "Tagger":
    from featurestore.device import choose_device
    from training.choosetagger import choose_tagger

    if onnx is not None and device not in ("auto", "cpu"):
        raise InputError(f"--onnx is run on the CPU, not on {device}; leave out --device")
    return choose_tagger(model, checkpoint, onnx, choose_device(device), needs_labels=needs_labels)


def _windows(tagger: "Tagger", hop_s: float | None) -> "Windows":
    from training.filewindows import windows_of

    return windows_of(tagger, hop_s)


def _hearing(workers: int | None, batch_size: int, num_files: int) -> "HearingOptions":
    from training.hearing import HearingOptions

    num_workers = workers or min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    return HearingOptions(min(num_workers, num_files), batch_size)


def _print_tags(files: list[Path], tagging: "Tagging") -> bool:
    """Prints each file's tags as soon as they are known; returns whether a file failed."""
    from training.predict import FileTags
    from training.tagfiles import tag_files
    from training.tagtext import print_tags, printable

    console = Console(soft_wrap=True)
    pretty = tagging.format == "table" and console.is_terminal
    sys.stdout.write(tagging.header)
    failed = []

    def tell(said: "FileTags | Failure") -> None:
        if not isinstance(said, FileTags):
            _warn(printable(f"error: {said.file}: {said.reason}: {said.message}"))
            failed.append(said)
        elif pretty:
            print_tags(console, said, with_events=tagging.options.event_threshold is not None)
        else:
            sys.stdout.write(tagging.text(said))
            sys.stdout.flush()

    tag_files(files, tagging, tell)
    return bool(failed)


def _print_written(out: Path, what: str, failures: "list[Failure]") -> None:
    print(f"{out}: {what}")
    if failures:
        from training.parts import failures_path
        from training.tagtext import printable

        first = failures[0]
        _warn(printable(f"{len(failures)} failed, first {first.file}: {first.message}; all: {failures_path(out)}"))


class _Progress:
    """Counts files on stderr from where an earlier call ended."""

    def __init__(self, num_files: int) -> None:
        self._num_files = num_files
        self._shown = ExitStack()

    def begin(self, parts: "Parts") -> Callable[[int, str], None]:
        """Says what is there already, and returns what counts the rest."""
        from ingest.progress import ProgressDisplay

        if parts.num_files == self._num_files:
            return lambda count, note: None
        if parts.num_dropped:
            _warn(
                f"{parts.num_dropped} files that an earlier call had finished are done again: its files, model or "
                "options were others"
            )
        if parts.num_files:
            _warn(f"going on after {parts.num_files} of {self._num_files} files, which an earlier call finished")
        return self._shown.enter_context(ProgressDisplay("files", self._num_files - parts.num_files)).advance

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shown.__exit__(kind, error, traceback)


def _warn(message: str) -> None:
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(message)
