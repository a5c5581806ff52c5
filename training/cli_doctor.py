"""The command `training doctor`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ingest.layout import choose_store
from manifests.findings import Finding, is_fit, print_findings
from training.cli_run import DeviceOption, SetOption
from training.config import load_config


def doctor(
    preset: Annotated[
        str | None, typer.Option(help="What is to be trained: a preset or a .toml file. Default: as `training run`.")
    ] = None,
    changes: SetOption = None,
    teacher: Annotated[str | None, typer.Option(help="none, own, or a cache's name: sets distill.teacher.")] = None,
    iterations: Annotated[int, typer.Option("--iter", min=1, help="How many iterations.")] = 1,
    store: Annotated[
        str | None, typer.Option(help="The store's folder or URL, to be looked at as well. Default: none.")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Without --store: how many clips to train on.")] = 20_000,
    folder: Annotated[Path, typer.Option("--run", help="Where the run's folder is to be.")] = Path("runs"),
    trial: Annotated[bool, typer.Option("--trial/--no-trial", help="Train some steps on noise to tell hours.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """What a training needs, what is missing here, and by a dry run of some twenty seconds its hours and memory.

    Exit status 1 when it can't do without something.

    Example: training doctor --preset base --iter 3 --store data/audioset
    """
    from featurestore.device import choose_device
    from featurestore.store import Store
    from training.doctor import Wish, examine

    chosen = choose_device(device)
    shortened = [] if teacher is None else [f"distill.teacher={json.dumps(teacher)}"]
    config = load_config(preset or ("base" if chosen.type == "cuda" else "tiny"), [*(changes or []), *shortened])
    opened = None if store is None else Store(choose_store(store))
    wish = Wish(config, iterations, chosen, opened, folder, clips)
    status = Console(stderr=True).status("examining")
    with status:
        findings = list[Finding]()
        for finding in examine(wish, with_trial=trial):
            findings.append(finding)
            status.update(f"examining: after {finding.name}")
    print_findings(findings, as_json=as_json)
    if not is_fit(findings):
        raise typer.Exit(1)
