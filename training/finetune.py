"""Fine-tuning: a model that was trained before, on the labels of a store, over its folds and several seeds."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from featurestore.store import Store
from ingest.atomic import atomic_write
from manifests.errors import InputError
from training.checkpoint import load_checkpoint
from training.choices import Keep
from training.config import ModelConfig, RunConfig, load_config
from training.distributed import on_first
from training.evaluate import Evaluation
from training.experiment import (
    Figure,
    Spread,
    Trial,
    check_trials,
    choose_figure,
    choose_folds,
    run_trial,
    spread_of,
    value_of,
)
from training.iterations import RANDOM
from training.model.pretrained import TIMM
from training.modelfile import find_checkpoint

SUMMARY_FILE = "summary.json"
# What a model of ours takes from the preset: its weights fit either way.
FREE_SIZES = ("num_frames", "recompute")


@dataclass(frozen=True)
class Finetuned:
    """The figures by the trial's place (foldF-seedS), and their mean and spread."""

    by_trial: dict[str, Evaluation]
    figure: Figure
    spread: Spread
    heard: dict[str, str]  # by held-out part: how many of its clips the model was trained on before, where on any


def starting_from(source: str, preset: str, changes: Sequence[str] = ()) -> RunConfig:
    """The preset's configuration, to start from `source`: random, timm:NAME, a run, a checkpoint of ours, another file.

    A model of ours keeps its sizes, but for the frames that it takes: its positions are resampled to the preset's.
    Raises InputError for a source that isn't there, and for changes of sizes that a checkpoint has already.
    """
    config = load_config(preset, [*changes])
    if source == RANDOM or source.startswith(f"{TIMM}:"):
        return config.model_copy(update={"initialise": source})
    path = find_checkpoint(Path(source), either_stage=True)
    if not path.is_file():
        raise InputError(
            f"there is no model {source}{'' if Path(source) == path else f' (no {path})'}; expected a run's folder, a "
            f"checkpoint, a file of weights, {TIMM}:NAME, or {RANDOM}"
        )
    ours = _model_of(path)
    if ours is None:
        return config.model_copy(update={"initialise": str(path)})
    for change in changes:
        section, _, key = change.partition("=")[0].strip().partition(".")
        if section == "model" and key not in FREE_SIZES:
            raise InputError(f"--set {change}: the model's sizes are those of {path}; leave it out")
    model = ours.model_copy(update={name: getattr(config.model, name) for name in FREE_SIZES})
    return config.model_copy(update={"initialise": str(path), "model": model})


def _model_of(path: Path) -> ModelConfig | None:
    """The sizes of a checkpoint of ours; None of another file, which is read when a model starts from it."""
    try:
        return load_checkpoint(path).about.model
    except InputError:
        return None


def finetune(
    config: RunConfig,
    stores: Sequence[Store],
    folder: Path,
    device: torch.device,
    *,
    folds: str | None = None,
    num_seeds: int = 1,
    keep: Keep = "all",
) -> Finetuned:
    """Trains on each fold from each seed, and keeps a summary; what is done already is read.

    `folds` as :func:`training.experiment.choose_folds` takes them. All that can be refused is refused first.
    """
    # By seed first: one that is stopped has whole seeds of all folds.
    trials = [
        Trial(".", config).at(fold, config.seed + number)
        for number in range(num_seeds)
        for fold in choose_folds(stores[0], folds)
    ]
    on_first(lambda: _refuse_another(config, folder))
    on_first(lambda: check_trials(trials, stores, folder))
    by_trial = {trial.place: run_trial(trial, stores, folder, device, keep)[-1] for trial in trials}
    figure = choose_figure(by_trial.values())
    spread = spread_of([value_of(found, figure) for found in by_trial.values()])
    heard = {found.split: found.heard for found in by_trial.values() if found.heard is not None}
    result = Finetuned(by_trial, figure, spread, heard)
    on_first(lambda: _write_summary(result, config, stores, folder))
    return result


def _refuse_another(config: RunConfig, folder: Path) -> None:
    """Raises InputError where the folder has the summary of another start: it would be replaced."""
    try:
        before = json.loads((folder / SUMMARY_FILE).read_bytes())["initialised"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if before != config.initialise:
        raise InputError(f"{folder} has the figures of {before}, and this is {config.initialise}; choose another --run")


def _write_summary(result: Finetuned, config: RunConfig, stores: Sequence[Store], folder: Path) -> None:
    content = {
        "stores": [str(store.location) for store in stores],
        "initialised": config.initialise,
        "recipe": config.source,
        "figure": result.figure,
        **asdict(result.spread),
        "heard": result.heard,
        "runs": {place: evaluation.as_dict() for place, evaluation in result.by_trial.items()},
    }
    atomic_write(folder / SUMMARY_FILE, json.dumps(content, indent=1) + "\n")
