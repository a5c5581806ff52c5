"""The command `training`: iterations, evaluation, tags."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from featurestore.device import choose_device
from featurestore.store import Store
from ingest.layout import choose_store
from ingest.ledger import ClipError
from manifests.console import run as run_app
from manifests.errors import InputError
from training.checkpoint import load_checkpoint, load_student
from training.config import load_config
from training.evaluate import check_fits
from training.evaluate import evaluate as evaluate_student
from training.iterations import EVAL_FILE, IterationResult, run_iterations
from training.loop import LAST
from training.predict import Predictor
from training.run import choose_run, open_recorded_snapshot, open_run, recorded_store
from training.splits import choose_split

app = typer.Typer(
    help="Train, evaluate and use models of Multi-SSL and distillation.\n\nExample: training run --iter 2",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[
    str | None, typer.Option("--store", help="The store's folder or URL. Default: the only store under ./data.")
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
    address = choose_store(store)
    chosen = choose_device(device)
    name = preset or ("base" if chosen.type == "cuda" else "tiny")
    shortcuts = {"distill.teacher": teacher, "data.eval_fold": eval_fold, "seed": seed}
    shortened = [f"{key}={json.dumps(value)}" for key, value in shortcuts.items() if value is not None]
    config = load_config(name, [*(changes or []), *shortened])
    target = folder or Path("runs") / f"{address.name}-{Path(name).stem}"
    opened = open_recorded_snapshot(target, address)
    with open_run(opened, config, target, chosen) as training_run:
        print(
            f"{target}: preset {name} on {chosen.type}, {len(training_run.split.train)} clips to train on, "
            f"{training_run.split.name} held out"
        )
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
    about = checkpoint.about
    opened = Store(choose_store(store or recorded_store(path)))
    check_fits(about, opened)
    data = about.data
    if split is not None or fold is not None:
        data = data.model_copy(update={"eval_split": split, "eval_fold": fold})
    part = choose_split(opened, data, about.seed, for_training=False)
    known = {snapshot.fingerprint for snapshot in opened.file.snapshots}
    if about.store_fingerprint in known and part.name != about.held_out:
        _warn(f"the model was trained with {about.held_out} held out; it has seen clips of {part.name}")
    result = evaluate_student(
        load_student(checkpoint).to(chosen), opened, part, about.normalisation, chosen, one_label=about.one_label
    )
    print(json.dumps({"checkpoint": str(path), **result.as_dict()}) if as_json else f"{path}: {result}")


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="Audio or video files.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="A run's folder, or a checkpoint file. Default: the run in ./runs.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many tags a file.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Tag audio files. Exit status 1 when one of them can't be read.

    Example: training predict bark.wav --model runs/esc50-tiny
    """
    predictor = Predictor(load_checkpoint(_checkpoint_path(choose_run(model))), choose_device(device))
    failed = False
    for file in files:
        try:
            tags = predictor.tags(file)[:top]
        except ClipError as error:
            _warn(f"error: {file}: {error}")
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
    """A checkpoint file, or that of a run's last finished iteration: the last that has its evaluation."""
    if not model.is_dir():
        return model
    numbers = [path.parent.name.removeprefix("iter") for path in model.glob(f"iter*/{EVAL_FILE}")]
    finished = [int(number) for number in numbers if number.isdigit()]
    if not finished:
        raise InputError(f"{model} has no finished iteration (no iterK/{EVAL_FILE}); finish one with `training run`")
    return model / f"iter{max(finished)}" / "distill" / LAST


def _warn(message: str) -> None:
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(message)


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
