"""The command `featurestore`: look into a store, check it, cache teachers."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurestore.build import build_teacher
from featurestore.device import choose_device
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teachers.registry import load_teacher
from featurestore.verify import verify as find_problems
from ingest.layout import TEACHER_FOLDER, choose_store
from manifests.console import run
from manifests.errors import InputError

app = typer.Typer(
    help="Look into a store, check it, cache teachers' embeddings.\n\nExample: featurestore info",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

StoreArgument = Annotated[Path | None, typer.Argument(help="The store's folder. Default: the only store under ./data.")]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="The store's folder. Default: the only store under ./data.")
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
    opened = Store(choose_store(store))
    problems = find_problems(opened)
    for problem in problems[:MAX_PROBLEMS_SHOWN]:
        print(problem)
    if problems:
        print(f"{opened.root}: {len(problems)} problems; delete a damaged shard's .parquet and ingest again to mend it")
        raise typer.Exit(1)
    print(f"{opened.root}: {len(opened)} clips in {opened.file.num_shards} shards, all as they should be")


@app.command("build-teacher")
def build_teacher_command(
    model: Annotated[str, typer.Option(help="The teacher: efficientat, or checkpoint for a model of ours.")],
    checkpoint: Annotated[Path | None, typer.Option(help="The file with the teacher's weights.")] = None,
    name: Annotated[str | None, typer.Option(help="The cache's name. Default: the teacher's.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Keep each patch's embedding as well.")] = False,
    store: StoreOption = None,
    device: Annotated[str, typer.Option(help="Where the teacher runs: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Cache a teacher's embeddings of every clip; what is there already is kept.

    Example: featurestore build-teacher --model efficientat --checkpoint mn04_as_mAP_432.pt
    """
    opened = Store(choose_store(store))
    teacher = load_teacher(model, checkpoint).to(choose_device(device))
    result = build_teacher(opened, teacher, _cache_name(name or teacher.name), with_tokens=tokens)
    print(
        f"{result.cache.path}: {result.num_rows} of {len(opened)} clips, embedding of {result.cache.embedding_dim} "
        f"({', '.join(result.cache.outputs)})"
    )
    if result.failures:
        print(f"{len(result.failures)} clips have no row (NaN), for instance {result.failures[0]}")
        raise typer.Exit(1)


def main() -> None:
    """The console script."""
    run(app)


def _cache_name(name: str) -> str:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"--name {name!r} can't be a cache's name: use letters, digits, '-' and '_'")
    return name


def _print_info(store: Store) -> None:
    file, snapshot = store.file, store.snapshot
    table = Table(show_header=False, title=Text(str(store.root)))
    table.add_row("dataset", file.dataset)
    table.add_row("clips", f"{snapshot.num_clips} in shards, {file.num_clips_asked} asked for")
    table.add_row("shards", f"{file.num_shards} of {file.clips_per_shard} clips")
    table.add_row("fbank", f"{file.fbank.num_frames} frames x {file.fbank.num_mel_bins} mel, float16, not normalised")
    table.add_row("mean, std", f"{snapshot.mean:.4f}, {snapshot.std:.4f}")
    table.add_row("labels", f"{len(file.vocabulary)} classes, {'several' if store.is_multi_label else 'one'} a clip")
    table.add_row("splits", ", ".join(f"{name}: {len(store.rows(split=name))}" for name in store.splits) or "none")
    table.add_row("folds", ", ".join(f"{fold}: {len(store.rows(fold=fold))}" for fold in store.folds) or "none")
    table.add_row("snapshot", f"{snapshot.number}, fingerprint {snapshot.fingerprint}")
    for path in sorted((store.root / TEACHER_FOLDER).glob("*.zarr")):
        table.add_row(f"teacher {path.stem}", _teacher_line(store, path.stem))
    Console(markup=False).print(table)


def _teacher_line(store: Store, name: str) -> str:
    try:
        cache = TeacherCache(store, name)
    except InputError as error:
        return f"unusable: {error}"
    return f"{', '.join(cache.outputs)}; embedding of {cache.embedding_dim} by {cache.attributes.teacher}"
