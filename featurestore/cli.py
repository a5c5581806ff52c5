"""The command `featurestore`: look into a store, check it, cache teachers."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurestore.cli_pages import figures, inspect
from featurestore.cli_probe import probe, verify_teacher
from featurestore.cli_teacher import build_teacher
from featurestore.leakage import find_leaks
from featurestore.selection import choose_rows
from featurestore.store import Store
from featurestore.verifyshard import Problem
from ingest.layout import choose_store, read_store_file
from ingest.location import open_location
from manifests.console import run
from manifests.errors import InputError

if TYPE_CHECKING:
    from featurestore.copying import Choice

app = typer.Typer(
    help="Look into a store, check it, cache teachers' embeddings.\n\nExample: featurestore info",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

app.command()(inspect)
app.command()(figures)
app.command()(probe)
app.command("verify-teacher")(verify_teacher)
app.command("build-teacher")(build_teacher)

StoreArgument = Annotated[
    str | None, typer.Argument(help="The store's folder or URL. Default: the only store under ./data.")
]
MAX_PROBLEMS_SHOWN = 50


@app.command()
def info(store: StoreArgument = None) -> None:
    """What a store holds.

    Example: featurestore info data/esc50
    """
    _print_info(Store(choose_store(store)))


@app.command()
def verify(store: StoreArgument = None) -> None:
    """Check hashes, members, shapes, values, the index and the teacher caches. Exit status 1 when something is wrong.

    Example: featurestore verify data/esc50
    """
    from featurestore.verify import verify as find_problems

    location = choose_store(store)
    problems = find_problems(location)
    _print_problems(problems)
    if problems:
        print(f"{location}: {len(problems)} problems; `featurestore repair {location}` mends what can be made anew")
        raise typer.Exit(1)
    opened = Store(location)
    print(f"{location}: {len(opened)} clips in {opened.snapshot.num_shards} shards, all as they should be")


@app.command()
def repair(
    store: StoreArgument = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Ray worker processes; 0: in this process. Default: one a core.")
    ] = None,
) -> None:
    """Make damaged shards and indexes anew, from the sources, to the same bytes. Exit status 1 when something is left.

    Example: featurestore repair data/esc50
    """
    from featurestore.repair import repair as repair_store
    from featurestore.repair import teachers_to_build

    location = choose_store(store)
    read_store_file(location)  # before a lock is left where there is no store
    result = repair_store(location, num_workers=workers)
    if not result.found:
        print(f"{location}: nothing to mend")
        return
    print(f"{location}: {len(result.found)} problems found; made anew: {', '.join(result.rebuilt) or 'no shard'}")
    if result.left:
        _print_problems(result.left)
        for name in teachers_to_build(result.left):
            print(f"the teacher cache {name} is mended by its `featurestore build-teacher` command, run again")
        raise typer.Exit(1)


@app.command()
def subset(
    to: Annotated[str, typer.Option(help="The new store's folder or URL.")],
    store: StoreArgument = None,
    label: Annotated[list[str] | None, typer.Option(help="A label's id or name; may be given several times.")] = None,
    keys: Annotated[Path | None, typer.Option(help="A file of keys, one a line.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    fold: Annotated[int | None, typer.Option(help="Only this fold.")] = None,
    name: Annotated[str | None, typer.Option(help="The new dataset's name. Default: the old one.")] = None,
) -> None:
    """Copy chosen clips into a store of their own; neither sources nor teachers are needed.

    Example: featurestore subset data/audioset --to data/dogs --label Dog --label Bark
    """
    from featurestore.copying import Choice

    opened = Store(choose_store(store))
    rows = choose_rows(opened, labels=label or (), keys_file=keys, split=split, fold=fold)
    _copy([Choice(opened, rows)], to, name or opened.file.dataset)


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(help="The stores to merge: folders or URLs.")],
    to: Annotated[str, typer.Option(help="The new store's folder or URL.")],
    name: Annotated[str | None, typer.Option(help="The new dataset's name. Default: the old ones, with '+'.")] = None,
) -> None:
    """Copy several stores into one; labels are joined by their ids.

    Example: featurestore merge data/audioset data/vggsound --to data/both
    """
    from featurestore.copying import Choice

    opened = [Store(choose_store(store)) for store in stores]
    dataset = name or "+".join(dict.fromkeys(one.file.dataset for one in opened))
    _copy([Choice(one, one.rows(asked=True)) for one in opened], to, dataset)


@app.command()
def leakage(
    stores: Annotated[list[str], typer.Argument(help="One store, to compare its splits or folds, or several.")],
    show_all: Annotated[
        bool, typer.Option("--all", help=f"Print all that is found, and not the first {MAX_PROBLEMS_SHOWN} alone.")
    ] = False,
) -> None:
    """Find recordings, and sounds that are equal, on both sides of a split. Exit status 1 when there are some.

    Example: featurestore leakage data/audioset
    """
    leaks = find_leaks([Store(choose_store(store)) for store in stores])
    for leak in leaks if show_all else leaks[:MAX_PROBLEMS_SHOWN]:
        print(leak)
    if leaks:
        kinds = ", ".join(f"{count} by {kind}" for kind, count in Counter(leak.kind for leak in leaks).items())
        more = "" if show_all or len(leaks) <= MAX_PROBLEMS_SHOWN else "; --all prints them all"
        print(f"{', '.join(stores)}: {len(leaks)} leaks, {kinds}{more}")
        raise typer.Exit(1)
    print(f"{', '.join(stores)}: no recording and no sound is on two sides")


def main() -> None:
    """The console script."""
    run(app)


def _copy(choices: "list[Choice]", to: str, name: str) -> None:
    from featurestore.copying import copy_clips

    target = open_location(to)
    store = copy_clips(choices, target, name)
    snapshot = store.snapshots[-1]
    print(f"{target}: {snapshot.num_clips} of {snapshot.num_clips_asked} clips in {snapshot.num_shards} shards")
    lost = {cache for choice in choices for cache in choice.store.teachers} - set(Store(target).teachers)
    if lost:
        why = "they differ, are not up to date, or are not in every store"
        print(f"teacher caches left behind: {', '.join(sorted(lost))} ({why}); `featurestore build-teacher` makes them")


def _print_problems(problems: list[Problem]) -> None:
    for problem in problems[:MAX_PROBLEMS_SHOWN]:
        print(problem)
    if len(problems) > MAX_PROBLEMS_SHOWN:
        print(f"... and {len(problems) - MAX_PROBLEMS_SHOWN} more")


def _print_info(store: Store) -> None:
    file, snapshot = store.file, store.snapshot
    table = Table(show_header=False, title=Text(str(store.location)))
    table.add_row("dataset", file.dataset)
    table.add_row("clips", f"{snapshot.num_clips} in shards, {len(store.rows(asked=True))} asked for")
    table.add_row("shards", f"{snapshot.num_shards} of up to {file.clips_per_shard} clips")
    table.add_row("fbank", f"{file.fbank.num_frames} frames x {file.fbank.num_mel_bins} mel, float16, not normalised")
    table.add_row("mean, std", f"{snapshot.mean:.4f}, {snapshot.std:.4f}")
    table.add_row("labels", f"{len(file.vocabulary)} classes, {'several' if store.is_multi_label else 'one'} a clip")
    table.add_row("splits", ", ".join(f"{name}: {len(store.rows(split=name))}" for name in store.splits) or "none")
    table.add_row("folds", ", ".join(f"{fold}: {len(store.rows(fold=fold))}" for fold in store.folds) or "none")
    table.add_row("snapshot", f"{snapshot.number}, fingerprint {snapshot.fingerprint}")
    for name in store.teachers:
        table.add_row(f"teacher {name}", _teacher_line(store, name))
    Console(markup=False).print(table)


def _teacher_line(store: Store, name: str) -> str:
    from featurestore.teachercache import TeacherCache

    try:
        cache = TeacherCache(store, name)
    except InputError as error:
        return f"unusable: {error}"
    return f"{', '.join(cache.outputs)}; embedding of {cache.embedding_dim} by {cache.attributes.teacher}"
