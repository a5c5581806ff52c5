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
from training.config import ModelConfig, RunConfig
from training.evaluate import Evaluation
from training.experiment import Spread, Trial, choose_folds, main_figure, run_trial, spread_of
from training.iterations import RANDOM
from training.modelfile import find_checkpoint

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Finetuned:
    """The figures by the trial's name (foldF-seedS), and their mean and spread."""

    by_trial: dict[str, Evaluation]
    figure: str  # accuracy or mAP
    spread: Spread


def starting_from(config: RunConfig, source: str) -> RunConfig:
    """The configuration that starts from `source`: random, timm:NAME, a run, a checkpoint of ours, or another file.

    A model of ours keeps its sizes, but for the frames that it takes: its positions are resampled to the preset's.
    """
    if source == RANDOM or source.startswith("timm:"):
        return config.model_copy(update={"initialise": source})
    path = find_checkpoint(Path(source), either_stage=True)
    model = config.model
    ours = _model_of(path)
    if ours is not None:
        model = ours.model_copy(update={"num_frames": model.num_frames, "recompute": model.recompute})
    return config.model_copy(update={"initialise": str(path), "model": model})


def _model_of(path: Path) -> ModelConfig | None:
    """The sizes of a checkpoint of ours; None of another file, which is read when a model starts from it."""
    try:
        return load_checkpoint(path).about.model
    except InputError:
        return None


def finetune(
    config: RunConfig, stores: Sequence[Store], folder: Path, device: torch.device, folds: str | None, num_seeds: int
) -> Finetuned:
    """Trains on each fold from each seed, and keeps a summary; what is done already is read."""
    trials = [
        Trial(".", config).at(fold, config.seed + number)
        for fold in choose_folds(stores[0], folds)
        for number in range(num_seeds)
    ]
    figures = {}
    for trial in trials:
        (evaluation,) = run_trial(trial, stores, folder, device)
        if evaluation is not None:
            figures[Path(trial.name).name] = evaluation
    spread = spread_of([main_figure(evaluation) for evaluation in figures.values()])
    first = next(iter(figures.values()))
    name = "mAP" if first.accuracy is None else "accuracy"
    content = {
        "initialised": config.initialise,
        "figure": name,
        **asdict(spread),
        "runs": {trial: evaluation.as_dict() for trial, evaluation in figures.items()},
    }
    atomic_write(folder / SUMMARY_FILE, json.dumps(content, indent=1) + "\n")
    return Finetuned(figures, name, spread)
