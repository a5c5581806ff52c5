"""The commands `training finetune` and `training ablate`: several runs as one experiment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ingest.layout import choose_store
from manifests.errors import InputError
from training.choices import Keep
from training.cli_run import DeviceOption, SetOption, StoresOption
from training.config import load_config

if TYPE_CHECKING:
    from training.finetune import Finetuned

FoldsOption = Annotated[str | None, typer.Option(help="all, or like 1,3. Default: what a run holds out by itself.")]
FolderOption = Annotated[Path | None, typer.Option("--run", help="The folder of all its runs. Default: in ./runs.")]
SeedsOption = Annotated[int, typer.Option(min=1, help="How many seeds, from the preset's on.")]
KeepOption = Annotated[
    Keep,
    typer.Option(help="Checkpoints of finished runs: all, the last (the last iteration's model), or none of them."),
]


def finetune(
    source: Annotated[str, typer.Argument(help="A run, a checkpoint, a file of weights, timm:NAME, or random.")],
    preset: Annotated[str, typer.Option(help="finetune-esc50, -as20k, -audioset, -vggsound, or a .toml file.")],
    changes: SetOption = None,
    folds: FoldsOption = None,
    seeds: SeedsOption = 1,
    keep: KeepOption = "all",
    folder: FolderOption = None,
    stores: StoresOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a model on a store's labels, and evaluate it: per fold and seed, with mean and spread.

    Stopped anywhere, the same command goes on.

    Example: training finetune runs/audioset-base --preset finetune-esc50 --folds all --store data/esc50
    """
    from featurestore.device import choose_device
    from training.distributed import is_first, process_group
    from training.finetune import SUMMARY_FILE, starting_from
    from training.finetune import finetune as finetune_model
    from training.runfolder import open_recorded_snapshots

    addresses = [choose_store(store) for store in stores] if stores else [choose_store(None)]
    target = folder or Path("runs") / f"{addresses[0].name}-{Path(preset).stem}"
    config = starting_from(source, preset, changes or [])
    with process_group(choose_device(device)) as chosen:
        opened = open_recorded_snapshots(target, addresses)
        result = finetune_model(config, opened, target, chosen, folds=folds, num_seeds=seeds, keep=keep)
        if is_first():
            _print_finetuned(result)
            print(f"all figures: {target / SUMMARY_FILE}")


def _print_finetuned(result: "Finetuned") -> None:
    from training.experiment import value_of

    table = Table("run", result.figure, "clips evaluated")
    for name, evaluation in result.by_trial.items():
        table.add_row(
            name, f"{value_of(evaluation, result.figure):.1%}", f"{evaluation.num_evaluated} of {evaluation.num_listed}"
        )
    table.add_section()
    num = result.spread.num
    table.add_row("mean ± standard deviation", str(result.spread), f"{num} {'run' if num == 1 else 'runs'}")
    Console().print(table)
    for part, heard in result.heard.items():
        print(f"beware: the model that it starts from was trained on clips of {part}: {heard}")


def ablate(
    number: Annotated[int, typer.Option("--table", help="The paper's table, 1 to 9.")],
    preset: Annotated[str, typer.Option(help="What all rows have in common: a preset or a .toml file.")] = "tiny",
    changes: SetOption = None,
    given: Annotated[
        list[str] | None, typer.Option("--with", help="What a row asks for: --with image=vit.safetensors.")
    ] = None,
    folds: FoldsOption = None,
    seeds: SeedsOption = 1,
    paper: Annotated[
        Path | None, typer.Option(help="The paper's figures, a CSV: table,row,dataset,metric,value.")
    ] = None,
    keep: KeepOption = "all",
    folder: FolderOption = None,
    stores: StoresOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Run one of the paper's tables: each row a configuration, with the same budget, folds and seeds.

    Stopped anywhere, the same command goes on. Rows that can't be run here are listed with the reason.

    Example: training ablate --table 2 --preset tiny --folds all --seeds 3 --store data/esc50
    """
    from featurestore.device import choose_device
    from training.ablations import Ablation, load_table, read_paper, run_table
    from training.distributed import is_first, process_group
    from training.experiment import choose_folds
    from training.runfolder import open_recorded_snapshots
    from training.tabletext import write_table

    addresses = [choose_store(store) for store in stores] if stores else [choose_store(None)]
    target = folder or Path("runs") / f"{addresses[0].name}-table{number}"
    table = load_table(number)
    theirs, values, first = read_paper(paper, number, table), _pairs(given or []), load_config(preset, changes).seed
    with process_group(choose_device(device)) as chosen:
        opened = open_recorded_snapshots(target, addresses)
        places, numbers = choose_folds(opened[0], folds), range(first, first + seeds)
        ablation = Ablation(preset, changes or [], values, places, numbers, keep)
        results = run_table(table, ablation, opened, target, chosen)
        if is_first():
            print()
            print(write_table(number, table, results, ablation, opened, theirs, target))
            print(f"written to {target / f'table{number}.md'} and {target / f'table{number}.json'}")


def _pairs(given: list[str]) -> dict[str, str]:
    """NAME=VALUE by name."""
    for text in given:
        if not text.partition("=")[2] or text.startswith("="):
            raise InputError(f"--with {text!r} is not of the form NAME=VALUE, like image=vit.safetensors")
    return dict(text.split("=", 1) for text in given)
