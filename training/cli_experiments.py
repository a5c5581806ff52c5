"""The commands `training finetune` and `training ablate`: several runs as one experiment."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from featurestore.device import choose_device
from featurestore.store import Store
from ingest.layout import choose_store
from manifests.errors import InputError
from training.ablations import Ablation, load_table, read_paper, run_table, write_table
from training.cli_run import DeviceOption, SetOption, StoresOption
from training.config import load_config
from training.distributed import is_first, process_group
from training.experiment import choose_folds, main_figure
from training.finetune import SUMMARY_FILE, Finetuned, starting_from
from training.finetune import finetune as finetune_model

FoldsOption = Annotated[str | None, typer.Option(help="all, or like 1,3. Default: what a run holds out by itself.")]
FolderOption = Annotated[Path | None, typer.Option("--run", help="The folder of all its runs. Default: in ./runs.")]
SeedsOption = Annotated[int, typer.Option(min=1, help="How many seeds, from the preset's on.")]


def finetune(
    source: Annotated[str, typer.Argument(help="A run, a checkpoint, a file of weights, timm:NAME, or random.")],
    preset: Annotated[str, typer.Option(help="finetune-esc50, -as20k, -audioset, -vggsound, or a .toml file.")],
    changes: SetOption = None,
    folds: FoldsOption = None,
    seeds: SeedsOption = 1,
    folder: FolderOption = None,
    stores: StoresOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a model on a store's labels, and evaluate it: per fold and seed, with mean and spread.

    Stopped anywhere, the same command goes on.

    Example: training finetune runs/audioset-base --preset finetune-esc50 --folds all --store data/esc50
    """
    addresses = [choose_store(store) for store in stores] if stores else [choose_store(None)]
    target = folder or Path("runs") / f"{addresses[0].name}-{Path(preset).stem}"
    config = starting_from(load_config(preset, changes), source)
    with process_group(choose_device(device)) as chosen:
        result = finetune_model(config, [Store(address) for address in addresses], target, chosen, folds, seeds)
        if is_first():
            _print_finetuned(result)
            print(f"all figures: {target / SUMMARY_FILE}")


def _print_finetuned(result: Finetuned) -> None:
    table = Table("run", result.figure, "clips evaluated")
    for name, evaluation in result.by_trial.items():
        table.add_row(name, f"{main_figure(evaluation):.1%}", f"{evaluation.num_evaluated} of {evaluation.num_listed}")
    table.add_section()
    table.add_row("mean ± standard deviation", str(result.spread), f"{result.spread.num} runs")
    Console().print(table)


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
    folder: FolderOption = None,
    stores: StoresOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Run one of the paper's tables: each row a configuration, with the same budget, folds and seeds.

    Stopped anywhere, the same command goes on. Rows that can't be run here are listed with the reason.

    Example: training ablate --table 2 --preset tiny --folds all --seeds 3 --store data/esc50
    """
    addresses = [choose_store(store) for store in stores] if stores else [choose_store(None)]
    target = folder or Path("runs") / f"{addresses[0].name}-table{number}"
    table, theirs = load_table(number), read_paper(paper, number)
    with process_group(choose_device(device)) as chosen:
        opened = [Store(address) for address in addresses]
        first = load_config(preset, changes).seed
        ablation = Ablation(
            preset, changes or [], _pairs(given or []), choose_folds(opened[0], folds), range(first, first + seeds)
        )
        results = run_table(table, ablation, opened, target, chosen, theirs)
        if is_first():
            about = {
                "data set": ", ".join(f"{store.file.dataset} ({len(store)} clips)" for store in opened),
                "preset": " ".join([preset, *(changes or [])]),
                "folds": folds or "the default",
                "seeds": seeds,
            }
            print(write_table(table, number, results, about, target))
            print(f"written to {target / f'table{number}.md'}")


def _pairs(given: list[str]) -> dict[str, str]:
    """NAME=VALUE by name."""
    for text in given:
        if "=" not in text:
            raise InputError(f"--with {text!r} is not of the form NAME=VALUE, like image=vit.safetensors")
    return dict(text.split("=", 1) for text in given)
