"""The command `ingest`: corpora to shards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ingest.cli_look import doctor, status
from ingest.download import YOUTUBE, video_url
from ingest.fetch import fetch_archive
from ingest.lists import open_lists
from ingest.location import Location, open_location
from ingest.options import COMMON, LISTED, Common, Listed, takes
from manifests.audioset import audioset_lists, audioset_manifest
from manifests.clips import Manifest, Sources
from manifests.console import run
from manifests.demo import demo_manifest
from manifests.errors import InputError
from manifests.esc50 import ESC50_URL, esc50_manifest
from manifests.folder import FolderOptions, folder_manifest, passed_over
from manifests.listing import Listing
from manifests.vggsound import VGGSOUND_LISTS, vggsound_manifest

app = typer.Typer(
    help="Turn audio files into shards of fbanks and HOG statistics.\n\nExample: ingest demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

app.command()(status)
app.command()(doctor)

SegmentOption = Annotated[float | None, typer.Option(help="Cut every file into clips of so many seconds.")]


@app.command()
@takes(**LISTED, **COMMON)
def audioset(
    listed: Listed,
    common: Common,
    split: Annotated[list[str], typer.Option(help="balanced, unbalanced or eval; may be given several times.")],
) -> None:
    """AudioSet, from YouTube or from files that you have.

    Example: ingest audioset --split balanced --source ~/audioset/balanced
    """

    def listing(metadata: Path, sources: Sources) -> Listing:
        return audioset_manifest(
            metadata,
            split,
            sources,
            selection=listed.selection,
            seed=common.seed,
            skip_bad_rows=listed.skip_bad_rows,
        )

    _ingest_listed("audioset", audioset_lists(split), listing, listed, common)


@app.command()
@takes(**LISTED, **COMMON)
def vggsound(
    listed: Listed,
    common: Common,
    split: Annotated[list[str], typer.Option(help="train or test; may be given several times.")],
) -> None:
    """VGGSound, from YouTube or from files that you have.

    Example: ingest vggsound --split test --source ~/vggsound/video
    """

    def listing(metadata: Path, sources: Sources) -> Listing:
        return vggsound_manifest(
            metadata,
            split,
            sources,
            selection=listed.selection,
            seed=common.seed,
            skip_bad_rows=listed.skip_bad_rows,
        )

    _ingest_listed("vggsound", VGGSOUND_LISTS, listing, listed, common)


@app.command()
@takes(**COMMON)
def esc50(
    common: Common,
    root: Annotated[
        Path | None, typer.Option(help="The unpacked ESC-50, with meta/esc50.csv and audio/. Default: download it.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Where to download the archive from. Default: the official address.")
    ] = None,
    esc10: Annotated[bool, typer.Option("--esc10", help="Only the ten classes of ESC-10.")] = False,
) -> None:
    """ESC-50 or ESC-10, with its five folds.

    Example: ingest esc50 --root ~/ESC-50-master
    """
    if root is not None and url is not None:
        raise InputError("--root and --url are both given; choose one")
    target = _target(common, "esc10" if esc10 else "esc50")
    if root is None:
        root = fetch_archive(url or ESC50_URL, _folder_beside(target, "source", "--root FOLDER"))
    _ingest(esc50_manifest(root, esc10=esc10, seed=common.seed), target, common)


@app.command()
@takes(**COMMON)
def folder(
    common: Common,
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
) -> None:
    """A folder of your own, labelled by its subfolders, a CSV or not at all.

    Example: ingest folder ~/birds --split-pattern '^(train|test)/'
    """
    from ingest.segment import segment_manifest

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
    found = folder_manifest(path, described, seed=common.seed)
    if labels_csv is None and (others := passed_over(path)):
        kinds = ", ".join(ending or "no extension" for ending, _ in others.most_common(5))
        print(f"{others.total()} files are no audio by their names ({kinds}); list them with --labels-csv if they are")
    if segment is not None:
        found = segment_manifest(found, segment)
    _ingest(found, _target(common, path.resolve().name or "root"), common)


@app.command()
@takes({"num_frames": 256, "max_failures": 0.0}, **COMMON)
def demo(common: Common, num_clips: Annotated[int, typer.Option(min=1, help="How many clips to make.")] = 240) -> None:
    """The embedded demo corpus: procedural sound events, made on the spot.

    Example: ingest demo
    """
    from ingest.synthesis import write_demo_audio

    target = _target(common, "demo")
    folder = _folder_beside(target, f"source/demo-{common.seed}", "--store FOLDER")
    made = demo_manifest(folder, num_clips=num_clips, seed=common.seed)
    write_demo_audio(made, common.seed)
    _ingest(made, target, common)


def main() -> None:
    """The console script."""
    run(app)


def _target(common: Common, name: str) -> Location:
    return open_location(common.store or str(Path("data", name)))


def _folder_beside(target: Location, name: str, remedy: str) -> Path:
    """A folder in the store for files that aren't part of it."""
    if target.folder is None:
        raise InputError(f"{target} is an object store, and these files need a folder on this machine: give {remedy}")
    return target.folder / name


def _ingest_listed(
    name: str,
    lists: dict[str, str],
    listing: Callable[[Path, Sources], Listing],
    listed: Listed,
    common: Common,
) -> None:
    target = _target(common, name)
    sources = _sources(listed, target)
    with open_lists(lists, target.child("lists"), listed.metadata) as folder:
        found = listing(folder, sources)
    if found.num_bad_rows:
        print(f"{found.num_bad_rows} bad rows left out, for instance:")
        for row in found.bad_rows:
            print(f"  {row}")
    silent = True if common.drop_silent is None else common.drop_silent
    common = replace(common, drop_silent=silent, ingest=replace(common.ingest, fetch=listed.fetch))
    _ingest(found.manifest, target, common, found.list_sha256)


def _sources(listed: Listed, target: Location) -> Sources:
    """Where the clips' files are: a folder of the user's, or the cache of downloads."""
    if listed.source != YOUTUBE and "://" not in listed.source:
        folder = Path(listed.source)
        if not folder.is_dir():
            raise InputError(
                f"--source {listed.source}: no such folder; give youtube, a folder of files named by their ids, or a "
                "URL such as http://host/{id}.m4a"
            )
        return Sources(kind="named_by_id", address=str(folder.resolve()))
    video_url(listed.source, "a" * 11)  # refuses a template that isn't one
    raw = open_location(listed.raw) if listed.raw else target.child("raw")
    return Sources(kind="raw_cache", address=str(raw.folder.resolve() if raw.folder is not None else raw))


def _ingest(manifest: Manifest, target: Location, common: Common, lists: dict[str, str] | None = None) -> None:
    """Ingests, and says what came of it."""
    from ingest.job import ingest as run_ingest

    options = replace(common.ingest, drop_silent=bool(common.drop_silent))
    store = run_ingest(manifest, target, options, lists)
    snapshot = store.snapshots[-1]
    failed = snapshot.num_clips_asked - snapshot.num_clips
    print(
        f"{target}: {snapshot.num_clips} of {snapshot.num_clips_asked} clips in {snapshot.num_shards} shards, snapshot "
        f"{snapshot.number}, mean {snapshot.mean:.4f}, std {snapshot.std:.4f}, fingerprint {snapshot.fingerprint[:12]}"
    )
    if failed:
        print(f"{failed} clips failed: see `ingest status {target}`")
