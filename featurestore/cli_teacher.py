"""The command `featurestore build-teacher`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featurestore.store import Store
from ingest.layout import choose_store
from ingest.options import RayOption
from manifests.errors import InputError

if TYPE_CHECKING:
    from featurestore.build import BuildResult
    from featurestore.cacheplan import CachePlan

MAX_FAILURES_SHOWN = 50


def build_teacher(
    model: Annotated[
        list[str],
        typer.Option(
            help="The teacher: beats, ast, ast-fbank, efficientat, spfa, or checkpoint for ours; several: an ensemble."
        ),
    ],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="The file of its weights; one for each --model, in their order."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The cache's name. Default: the teachers'.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Keep each patch's embedding as well.")] = False,
    from_fbank: Annotated[
        bool, typer.Option("--from-fbank", help="Feed AST the store's fbanks, where no audio is at hand (ast-fbank).")
    ] = False,
    views: Annotated[
        int, typer.Option(min=0, help="Augmented views of each clip to keep as well, for consistent distillation.")
    ] = 0,
    views_seed: Annotated[int, typer.Option(min=0, help="Seed of the augmented views.")] = 0,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="auto: bfloat16 on CUDA, else float32.")
    ] = "auto",
    store: Annotated[
        str | None, typer.Option("--store", help="The store's folder or URL. Default: the only store under ./data.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the teacher runs: auto, cpu, cuda, or cuda:N with --workers 0.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray workers beside the GPUs, or on cores; 0: in this process. Default: one a core."),
    ] = None,
    ray_address: RayOption = None,
) -> None:
    """Cache a teacher's embeddings of every clip; what is there already is kept.

    Example: featurestore build-teacher --model efficientat --checkpoint mn04_as_mAP_432.pt
    """
    from featurestore.build import build_cache
    from featurestore.cacheplan import CacheOptions, plan_cache
    from featurestore.teacherpool import open_pool
    from featurestore.teachers.registry import load_teachers

    opened = Store(choose_store(store))
    names = [f"{one.removesuffix('-fbank')}-fbank" for one in model] if from_fbank else model
    ensemble = load_teachers(names, checkpoint or [])
    options = CacheOptions(with_tokens=tokens, precision=precision, num_views=views, views_seed=views_seed)
    plan = plan_cache(opened, ensemble, _cache_name(name or ensemble.name), options)
    if tokens:
        print(_size_of_tokens(plan))
    with open_pool(workers, ray_address, device) as pool:
        result = build_cache(plan, pool)
    _print_result(opened, result)
    if result.failures:
        raise typer.Exit(1)


def _cache_name(name: str) -> str:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"--name {name!r} can't be a cache's name: use letters, digits, '-' and '_'")
    return name


def _size_of_tokens(plan: "CachePlan") -> str:
    num_tokens, width = plan.row_shapes["tokens"]
    size = f"{plan.num_bytes('tokens') / 1e9:.3g} GB"
    return f"tokens: {len(plan.store)} clips x {num_tokens} x {width} of 2 bytes, up to {size} on disk"


def _print_result(store: Store, result: "BuildResult") -> None:
    cache, failures = result.cache, result.failures
    print(
        f"{cache.path}: {result.num_rows} of {len(store)} clips, embedding of {cache.embedding_dim} "
        f"({', '.join(cache.outputs)})"
    )
    if failures:
        print(f"{len(failures)} clips have no row (NaN):")
        for failure in failures[:MAX_FAILURES_SHOWN]:
            print(f"  {failure}")
    if len(failures) > MAX_FAILURES_SHOWN:
        print(f"  ... and {len(failures) - MAX_FAILURES_SHOWN} more; the same command tries them again")
