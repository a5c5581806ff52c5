"""The command `training`: iterations, evaluation, tags."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from featurestore.store import Store, choose_store
from ingest.atomic import exclusive
from ingest.ledger import ClipError
from manifests.console import run as run_app
from manifests.errors import InputError
from training.checkpoint import load_checkpoint, load_student
from training.config import DataConfig, RunConfig, load_config
from training.evaluate import check_fits
from training.evaluate import evaluate as evaluate_student
from training.iterations import IterationResult, run_iterations
from training.loop import LAST
from training.predict import Predictor
from training.run import choose_device, open_run, read_config
from training.splits import choose_split

app = typer.Typer(
    help="Train, evaluate and use models of Multi-SSL and distillation.\n\nExample: training run --iter 2",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="The store's folder. Default: the only store under ./data.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
RunOrCheckpoint = Annotated[Path, typer.Argument(help="A run's folder (its last iteration), or a checkpoint file.")]


@app.command()
def run(
    iterations: Annotated[int, typer.Option("--iter", min=1, help="How many iterations; those done are kept.")],
    preset: Annotated[
        str | None, typer.Option(help="demo, tiny, small, base, or a .toml file. Default: base on CUDA, else tiny.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key: --set multissl.mask_ratio=0.5. May be repeated.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="none, own, or a cache's name: sets distill.teacher.")] = None,
    eval_fold: Annotated[int | None, typer.Option(help="The fold held out: sets data.eval_fold.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Sets seed.")] = None,
    folder: Annotated[Path | None, typer.Option("--run", help="The run's folder. Default: runs/STORE-PRESET.")] = None,
    store: StoreOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train iterations of Multi-SSL and distillation. Stopped anywhere, the same command goes on.

    Example: training run --iter 2 --preset tiny --teacher efficientat
    """
    opened = Store(choose_store(store))
    chosen = choose_device(device)
    name = preset or ("base" if chosen.type == "cuda" else "tiny")
    shortcuts = {"distill.teacher": teacher, "data.eval_fold": eval_fold, "seed": seed}
    shortened = [f"{key}={value}" for key, value in shortcuts.items() if value is not None]
    config = load_config(name, [*(changes or []), *shortened])
    target = folder or Path("runs") / f"{opened.root.resolve().name}-{Path(name).stem}"
    training_run = open_run(opened, config, target, chosen)
    print(
        f"{target}: preset {name} on {chosen.type}, {len(training_run.split.train)} clips to train on, "
        f"{training_run.split.name} held out"
    )
    with exclusive(target, "training"):
        results = run_iterations(training_run, iterations)
    _print_results(results, target)


@app.command("eval")
def evaluate(
    model: RunOrCheckpoint,
    store: StoreOption = None,
    split: Annotated[str | None, typer.Option(help="The split to evaluate. Default: the run's.")] = None,
    fold: Annotated[int | None, typer.Option(help="The fold to evaluate. Default: the run's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate a model on held-out clips; the number of clips evaluated of those listed is always said.

    Example: training eval runs/esc50-tiny
    """
    chosen = choose_device(device)
    path = _checkpoint_path(model)
    checkpoint = load_checkpoint(path)
    opened = Store(choose_store(store))
    check_fits(checkpoint.about, opened)
    config = _run_config(path)
    data = DataConfig() if config is None else config.data
    if split is not None or fold is not None:
        data = data.model_copy(update={"eval_split": split, "eval_fold": fold})
    part = choose_split(opened, data, 0 if config is None else config.seed)
    about = checkpoint.about
    result = evaluate_student(
        load_student(checkpoint).to(chosen), opened, part, about.normalisation, chosen, one_label=about.one_label
    )
    print(json.dumps({"checkpoint": str(path), **result.as_dict()}) if as_json else f"{path}: {result}")


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="Audio or video files.")],
    model: Annotated[Path, typer.Option("--model", help="A run's folder, or a checkpoint file.")],
    top: Annotated[int, typer.Option(min=1, help="How many tags a file.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Tag audio files. Exit status 1 when one of them can't be read.

    Example: training predict bark.wav --model runs/esc50-tiny
    """
    predictor = Predictor(load_checkpoint(_checkpoint_path(model)), choose_device(device))
    failed = False
    for file in files:
        try:
            tags = predictor.tags(file)[:top]
        except ClipError as error:
            Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"error: {file}: {error}")
            failed = True
            continue
        if as_json:
            listed = [{"id": tag.label_id, "name": tag.name, "probability": tag.probability} for tag in tags]
            print(json.dumps({"file": str(file), "tags": listed}))
        else:
            print(f"{file}: " + ", ".join(f"{tag.name} {tag.probability:.1%}" for tag in tags))
    if failed:
        raise typer.Exit(1)


def main() -> None:
    """The console script."""
    run_app(app)


def _checkpoint_path(model: Path) -> Path:
    """A checkpoint file, or the last finished iteration's of a run."""
    if not model.is_dir():
        return model
    found = [path for path in model.glob(f"iter*/distill/{LAST}") if path.parts[-3].removeprefix("iter").isdigit()]
    if not found:
        raise InputError(f"{model} has no trained iteration (no iterK/distill/{LAST}); make one with `training run`")
    return max(found, key=lambda path: int(path.parts[-3].removeprefix("iter")))


def _run_config(checkpoint: Path) -> RunConfig | None:
    """The configuration of the run that a checkpoint lies in, if it does."""
    folder = checkpoint.resolve().parent.parent.parent
    return read_config(folder) if (folder / "config.json").exists() else None


def _print_results(results: list[IterationResult], folder: Path) -> None:
    table = Table("iteration", "teacher", "accuracy", "mAP", "clips evaluated")
    for result in results:
        figures = result.evaluation
        if figures is None:
            table.add_row(str(result.iteration), "", "", "", "")
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
