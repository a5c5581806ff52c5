"""The command `featurestore`: look into a store, check it, cache teachers."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli_info import JsonOption, StoreArgument, info
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
app.command()(info)

MAX_PROBLEMS_SHOWN = 50


@app.command()
def verify(store: StoreArgument = None, as_json: JsonOption = False) -> None:
    """Check hashes, members, shapes, values, the index and the teacher caches. Exit status 1 when something is wrong.

    Example: featurestore verify data/esc50
    """
    from featurestore.verify import verify as find_problems

    location = choose_store(store)
    problems = find_problems(location)
    if as_json:
        print(json.dumps([asdict(problem) for problem in problems]))
        raise typer.Exit(1 if problems else 0)
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
    as_json: JsonOption = False,
) -> None:
    """Find recordings, and sounds that are equal, on both sides of a split. Exit status 1 when there are some.

    Example: featurestore leakage data/audioset
    """
    leaks = find_leaks([Store(choose_store(store)) for store in stores])
    if as_json:
        print(json.dumps([asdict(leak) for leak in leaks]))
        raise typer.Exit(1 if leaks else 0)
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
