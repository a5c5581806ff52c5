"""The command `training`: iterations, evaluation, tags."""

import typer

from manifests.console import run as run_app
from training.cli_doctor import doctor
from training.cli_eval import ensemble, evaluate, probe
from training.cli_experiments import ablate, finetune
from training.cli_export import export
from training.cli_plan import plan
from training.cli_predict import embed, predict
from training.cli_report import report
from training.cli_run import run

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
app.command()(predict)
app.command()(embed)
app.command()(plan)
app.command()(export)
app.command()(doctor)


def main() -> None:
    """The console script."""
    run_app(app)
