"""The command `ingest`: corpora to shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ingest.fetch import fetch_archive
from ingest.job import IngestOptions
from ingest.job import ingest as run_ingest
from ingest.layout import choose_store
from ingest.segment import segment_manifest
from ingest.status import Status, read_status
from ingest.synthesis import write_demo_audio
from manifests.clips import Manifest
from manifests.console import run
from manifests.demo import demo_manifest
from manifests.errors import InputError
from manifests.esc50 import ESC50_URL, esc50_manifest
from manifests.folder import FolderOptions, folder_manifest

app = typer.Typer(
    help="Turn audio files into shards of fbanks and HOG statistics.\n\nExample: ingest demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[Path | None, typer.Option("--store", help="Where the store goes. Default: data/NAME.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the clips' order and of random crops.", min=0)]
FramesOption = Annotated[int, typer.Option("--num-frames", help="Frames of 10 ms per clip: 1024, 512 or 256.")]
ShardOption = Annotated[
    int | None, typer.Option(min=1, help="Clips a shard. Default: 1000, fewer for a corpus under 16,000 clips.")
]
KeepAudioOption = Annotated[bool, typer.Option("--keep-audio", help="Keep each clip's 16 kHz audio as KEY.flac.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Ray worker processes; 0: in this process, without Ray. Default: one a core.")
]
MaxFailuresOption = Annotated[float, typer.Option(min=0.0, max=1.0, help="Stop when a larger share of clips fails.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Make the shards that miss clips once more.")]
SegmentOption = Annotated[float | None, typer.Option(help="Cut every file into clips of so many seconds.")]


@app.command()
def esc50(
    root: Annotated[
        Path | None, typer.Option(help="The unpacked ESC-50, with meta/esc50.csv and audio/. Default: download it.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Where to download the archive from. Default: the official address.")
    ] = None,
    esc10: Annotated[bool, typer.Option("--esc10", help="Only the ten classes of ESC-10.")] = False,
    store: StoreOption = None,
    seed: SeedOption = 0,
    num_frames: FramesOption = 1024,
    clips_per_shard: ShardOption = None,
    keep_audio: KeepAudioOption = False,
    workers: WorkersOption = None,
    max_failures: MaxFailuresOption = 0.5,
    retry_failed: RetryOption = False,
) -> None:
    """ESC-50 or ESC-10, with its five folds.

    Example: ingest esc50 --root ~/ESC-50-master
    """
    options = _options(num_frames, clips_per_shard, keep_audio, workers, max_failures, retry_failed)

    if root is not None and url is not None:
        raise InputError("--root and --url are both given; choose one")

    def manifest(target: Path) -> Manifest:
        folder = root if root is not None else fetch_archive(url or ESC50_URL, target / "source")
        return esc50_manifest(folder, esc10=esc10, seed=seed)

    _ingest(manifest, store or Path("data", "esc10" if esc10 else "esc50"), options)


@app.command()
def folder(
    path: Annotated[Path, typer.Argument(help="A folder with audio or video files, at any depth.")],
    labels: Annotated[str, typer.Option(help="Where labels come from: parent (the file's folder) or none.")] = "parent",
    labels_csv: Annotated[Path | None, typer.Option(help="A CSV that lists the files and their labels.")] = None,
    vocabulary_file: Annotated[Path | None, typer.Option(help="The labels in their order, one a line.")] = None,
    file_column: Annotated[str | None, typer.Option(help="The CSV's column of file names.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The CSV's column of labels.")] = None,
    split_column: Annotated[str | None, typer.Option(help="The CSV's column of splits.")] = None,
    fold_column: Annotated[str | None, typer.Option(help="The CSV's column of folds.")] = None,
    split_pattern: Annotated[str | None, typer.Option(help="A regular expression; its group is the split.")] = None,
    fold_pattern: Annotated[str | None, typer.Option(help="A regular expression; its group is the fold.")] = None,
    segment: SegmentOption = None,
    store: StoreOption = None,
    seed: SeedOption = 0,
    num_frames: FramesOption = 1024,
    clips_per_shard: ShardOption = None,
    keep_audio: KeepAudioOption = False,
    workers: WorkersOption = None,
    max_failures: MaxFailuresOption = 0.5,
    retry_failed: RetryOption = False,
) -> None:
    """A folder of your own, labelled by its subfolders, a CSV or not at all.

    Example: ingest folder ~/birds --split-pattern '^(train|test)/'
    """
    if labels not in ("parent", "none"):
        raise InputError(f"--labels {labels!r} is not known; give parent or none, or a table with --labels-csv")
    described = FolderOptions(
        labels="none" if labels == "none" else "parent",
        labels_csv=labels_csv,
        vocabulary_file=vocabulary_file,
        file_column=file_column,
        label_column=label_column,
        split_column=split_column,
        fold_column=fold_column,
        split_pattern=split_pattern,
        fold_pattern=fold_pattern,
    )
    options = _options(num_frames, clips_per_shard, keep_audio, workers, max_failures, retry_failed)

    def manifest(_: Path) -> Manifest:
        found = folder_manifest(path, described, seed=seed)
        return found if segment is None else segment_manifest(found, segment)

    _ingest(manifest, store or Path("data", path.resolve().name or "root"), options)


@app.command()
def demo(
    num_clips: Annotated[int, typer.Option(min=1, help="How many clips to make.")] = 240,
    store: StoreOption = None,
    seed: SeedOption = 0,
    num_frames: FramesOption = 256,
    clips_per_shard: ShardOption = None,
    workers: WorkersOption = None,
) -> None:
    """The embedded demo corpus: procedural sound events, made on the spot.

    Example: ingest demo
    """
    options = _options(num_frames, clips_per_shard, False, workers, 0.0, False)

    def manifest(target: Path) -> Manifest:
        made = demo_manifest(target / f"source-{seed}", num_clips=num_clips, seed=seed)
        write_demo_audio(made, seed)
        return made

    _ingest(manifest, store or Path("data", "demo"), options)


@app.command()
def status(
    store: Annotated[
        Path | None, typer.Argument(help="The store's folder. Default: the only one under ./data.")
    ] = None,
) -> None:
    """Coverage per class and the reasons of failures, of a finished or unfinished store.

    Example: ingest status data/esc50
    """
    _print_status(read_status(choose_store(store)))


def main() -> None:
    """The console script."""
    run(app)


def _options(
    num_frames: int,
    clips_per_shard: int | None,
    keep_audio: bool,
    workers: int | None,
    max_failures: float,
    retry_failed: bool,
) -> IngestOptions:
    if num_frames not in (256, 512, 1024):
        raise InputError(f"--num-frames {num_frames} is not possible; give 1024, 512 or 256")
    return IngestOptions(num_frames, clips_per_shard, keep_audio, workers, max_failures, retry_failed)


def _ingest(manifest: Callable[[Path], Manifest], target: Path, options: IngestOptions) -> None:
    """Makes the manifest, ingests it, and says what came of it."""
    if "://" in str(target) or ":/" in str(target):
        raise InputError(f"--store {target}: object stores are not supported yet; give a folder")
    store = run_ingest(manifest(target), target, options)
    snapshot = store.snapshots[-1]
    failed = store.num_clips_asked - snapshot.num_clips
    print(
        f"{target}: {snapshot.num_clips} of {store.num_clips_asked} clips in {snapshot.num_shards} shards, "
        f"mean {snapshot.mean:.4f}, std {snapshot.std:.4f}, fingerprint {snapshot.fingerprint[:12]}"
    )
    if failed:
        print(f"{failed} clips failed: see `ingest status {target}`")


def _print_status(status: Status) -> None:
    console = Console(markup=False)  # names of classes and files may hold brackets
    store = status.store
    done = "finished"
    if not store.snapshots and status.num_shards_done == store.num_shards:
        done = "all made, but not closed: too many clips failed; see --retry-failed and --max-failures"
    elif not store.snapshots:
        done = "not finished: run the ingest command again to go on"
    console.print(f"{store.dataset}: {status.num_shards_done} of {store.num_shards} shards, {done}")
    console.print(f"clips: {status.num_ok} in shards, {status.num_failed} failed, {store.num_clips_asked} asked for")
    if status.reasons:
        reasons = Table("reason", "clips", "for instance")
        for reason, count in status.reasons.most_common():
            reasons.add_row(reason, str(count), status.examples[reason])
        console.print(reasons)
    if status.asked:
        coverage = Table("class", "in shards", "asked for", "coverage")
        for name, asked in sorted(status.asked.items()):
            present = status.present[name]
            coverage.add_row(name, str(present), str(asked), f"{present / asked:.1%}")
        console.print(coverage)
