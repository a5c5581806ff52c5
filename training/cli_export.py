"""The command `training export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.export.kinds import Format

if TYPE_CHECKING:
    from training.export.save import Export


def export(
    out: Annotated[Path, typer.Option("--out", help="The folder for the files; it must be new or empty.")],
    model: Annotated[
        Path | None,
        typer.Argument(help="A run's folder, an iteration's, or a checkpoint. Default: the run in ./runs."),
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="May be repeated. Default: all that can be had here."),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            help="An audio file to compare outputs on. May be repeated. Default: clips of the store that the model "
            "was trained on, or synthetic sounds where that is gone.",
        ),
    ] = None,
) -> None:
    """Export a model for use without this project: waveform in, tags and embedding out, with a model card.

    safetensors is the weights alone, torch a torch.export program (.pt2), onnx a file for onnxruntime, and folder a
    Hugging Face-style one, which --model of `training predict` reads as well.

    Each file is run and compared with the model before it is kept.

    Example: training export runs/esc50-tiny --format onnx --format folder --out exports/esc50-tiny
    """
    from training.export.save import export_model
    from training.modelfile import find_checkpoint
    from training.runfolder import choose_run

    path = find_checkpoint(choose_run(model), either_stage=True)
    _print_export(export_model(path, formats or [], out, check or []), path, out)


def _print_export(done: "Export", path: Path, out: Path) -> None:
    from training.export.card import said_size

    table = Table("file", "size", "probabilities differ by", "embedding by")
    for file in done.files:
        found = file.difference
        tags = "" if found is None or found.probabilities is None else f"{found.probabilities:.1e}"
        table.add_row(file.name, said_size(file.num_bytes), tags, "" if found is None else f"{found.embedding:.1e}")
    Console().print(table)
    for reason in done.left_out:
        print(reason)
    print(f"{path} was exported to {out}; checked on {done.checked_on}")
