"""The command `training run`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ingest.layout import choose_store
from training.config import load_config

if TYPE_CHECKING:
    from training.iterations import IterationResult

StoresOption = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        help="The store's folder or URL. May be repeated: the first has the labels, the others are trained on as well. "
        "Default: the only store under ./data.",
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key: --set multissl.mask_ratio=0.5. May be repeated.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def run(
    iterations: Annotated[int, typer.Option("--iter", min=1, help="How many iterations; those done are kept.")],
    preset: Annotated[
        str | None,
        typer.Option(help="demo, tiny, small, base, spfa ... or a .toml file. Default: base on CUDA, else tiny."),
    ] = None,
    changes: SetOption = None,
    teacher: Annotated[str | None, typer.Option(help="none, own, or a cache's name: sets distill.teacher.")] = None,
    initialise: Annotated[
        str | None, typer.Option("--init", help="random, a file, or timm:NAME, to start from: sets initialise.")
    ] = None,
    proportions: Annotated[
        str | None,
        typer.Option(help="Of several stores, like 1,3: sets multissl.proportions and distill.proportions."),
    ] = None,
    eval_fold: Annotated[int | None, typer.Option(help="The fold held out: sets data.eval_fold.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Sets seed.")] = None,
    folder: Annotated[Path | None, typer.Option("--run", help="The run's folder. Default: runs/STORE-PRESET.")] = None,
    stores: StoresOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train iterations of Multi-SSL and distillation. Stopped anywhere, the same command goes on.

    On several GPUs: torchrun --nproc-per-node 8 -m -- training run ...

    Example: training run --iter 2 --preset tiny --teacher efficientat
    """
    from featurestore.device import choose_device
    from training.distributed import is_first, on_first, process_group
    from training.experiment import check_start
    from training.iterations import run_iterations
    from training.run import open_run
    from training.runfolder import CONFIG_FILE, open_recorded_snapshots

    addresses = [choose_store(store) for store in stores] if stores else [choose_store(None)]
    with process_group(choose_device(device)) as chosen:
        name = preset or ("base" if chosen.type == "cuda" else "tiny")
        shares = None if proportions is None else [_number(share) for share in proportions.split(",")]
        shortcuts = {
            "distill.teacher": teacher,
            "initialise": initialise,
            "multissl.proportions": shares,
            "distill.proportions": shares,
            "data.eval_fold": eval_fold,
            "seed": seed,
        }
        shortened = [f"{key}={json.dumps(value)}" for key, value in shortcuts.items() if value is not None]
        config = load_config(name, [*(changes or []), *shortened])
        target = folder or Path("runs") / f"{addresses[0].name}-{Path(name).stem}"
        if not (target / CONFIG_FILE).exists():
            on_first(lambda: check_start(config))
        with open_run(open_recorded_snapshots(target, addresses), config, target, chosen) as training_run:
            if is_first():
                print(
                    f"{target}: preset {name} on {chosen.type}, {training_run.num_clips} clips to train on, "
                    f"{training_run.split.name} held out"
                )
            results = run_iterations(training_run, iterations)
        if is_first():
            _print_results(results, target, learns_labels=training_run.config.distill.classify)


def _number(text: str) -> float | str:
    """A proportion; what is no number is left to the configuration, which says so."""
    try:
        return float(text)
    except ValueError:
        return text


def _print_results(results: "list[IterationResult]", folder: Path, *, learns_labels: bool) -> None:
    from training.loop import LAST

    table = Table("iteration", "teacher", "accuracy", "mAP", "clips evaluated")
    for result in results:
        figures = result.evaluation
        if figures is None:
            why = "no labels learned" if result.checkpoint is None or not learns_labels else "nothing held out"
            table.add_row(str(result.iteration), result.teacher or "none", "", "", why)
            continue
        table.add_row(
            str(result.iteration),
            result.teacher or "none",
            "" if figures.accuracy is None else f"{figures.accuracy:.1%}",
            f"{figures.mean_average_precision:.3f}",
            f"{figures.num_evaluated} of {figures.num_listed}",
        )
    Console().print(table)
    stage = "multissl" if results[-1].checkpoint is None else "distill"
    print(f"model: {folder / f'iter{results[-1].iteration}' / stage / LAST}")
