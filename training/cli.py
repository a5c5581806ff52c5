"""The command `training`: iterations, evaluation, tags."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from featurestore.device import choose_device
from ingest.ledger import ClipError
from manifests.console import run as run_app
from training.checkpoint import load_checkpoint
from training.cli_eval import ensemble, evaluate, probe
from training.cli_experiments import ablate, finetune
from training.cli_plan import plan
from training.cli_report import report
from training.cli_run import DeviceOption, run
from training.modelfile import find_checkpoint
from training.predict import Predictor
from training.runfolder import choose_run

app = typer.Typer(
    help="Train, evaluate and use models of Multi-SSL and distillation.\n\nExample: training run --iter 2",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

app.command()(run)
app.command()(finetune)
app.command()(ablate)
app.command()(report)

app.command("eval")(evaluate)
app.command()(ensemble)
app.command()(probe)
app.command()(plan)


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
    predictor = Predictor(load_checkpoint(find_checkpoint(choose_run(model))), choose_device(device))
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


def _warn(message: str) -> None:
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(message)
