"""The command `featurestore info`."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurestore.store import Store
from ingest.layout import choose_store
from manifests.errors import InputError

StoreArgument = Annotated[
    str | None, typer.Argument(help="The store's folder or URL. Default: the only store under ./data.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def info(store: StoreArgument = None, as_json: JsonOption = False) -> None:
    """What a store holds.

    Example: featurestore info data/esc50
    """
    opened = Store(choose_store(store))
    if as_json:
        print(json.dumps(_as_json(opened)))
    else:
        _print_info(opened)


def _as_json(store: Store) -> dict[str, Any]:
    file, snapshot = store.file, store.snapshot
    return {
        "dataset": file.dataset,
        "num_clips": snapshot.num_clips,
        "num_asked": len(store.rows(asked=True)),
        "num_shards": snapshot.num_shards,
        "fbank": file.fbank.model_dump(mode="json"),
        "mean": snapshot.mean,
        "std": snapshot.std,
        "labels": file.vocabulary.ids,
        "is_multi_label": store.is_multi_label,
        "splits": {name: len(store.rows(split=name)) for name in store.splits},
        "folds": {fold: len(store.rows(fold=fold)) for fold in store.folds},
        "snapshot": snapshot.number,
        "fingerprint": snapshot.fingerprint,
        "teachers": list(store.teachers),
    }


def _print_info(store: Store) -> None:
    file, snapshot = store.file, store.snapshot
    table = Table(show_header=False, title=Text(str(store.location)))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")  # a fingerprint is one long word
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
