"""Models of ours as commands name them: where they lie, and whether they fit a store."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from featurestore.store import Store
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary
from training.checkpoint import WEIGHTS_FILE, About, Checkpoint, load_checkpoint
from training.iterations import EVAL_FILE
from training.loop import LAST
from training.predictions import FILE_NAME
from training.splits import Split, choose_split


def find_checkpoint(model: Path, *, either_stage: bool = False) -> Path:
    """A checkpoint file; or that of an iteration's folder, of an exported one, or of a run's last evaluated iteration.

    With `either_stage`, that of a Multi-SSL stage, or of a run's last one, will do where no iteration is finished.
    Raises InputError for a folder without any, and for an export that is heard otherwise.
    """
    if not model.is_dir():
        _refuse_graph(model)
        return model
    if (model / WEIGHTS_FILE).exists():
        return model / WEIGHTS_FILE
    if (model / EVAL_FILE).exists():
        return model / "distill" / LAST
    finished = [path.parent for path in model.glob(f"iter*/{EVAL_FILE}") if _number(path.parent) > 0]
    if finished:
        return max(finished, key=_number) / "distill" / LAST
    if either_stage and (stage := next((one for one in (model / "multissl", model) if (one / LAST).exists()), None)):
        return stage / LAST
    pretrained = [path.parent for path in model.glob(f"iter*/multissl/{LAST}") if _number(path.parent.parent) > 0]
    if either_stage and pretrained:
        return max(pretrained, key=lambda stage: _number(stage.parent)) / LAST
    for graph in sorted(model.glob("model.*")):
        _refuse_graph(graph)
    raise InputError(f"{model} has no finished iteration (no iterK/{EVAL_FILE}); finish one with `training run`")


def _refuse_graph(path: Path) -> None:
    """Raises InputError for an exported graph, which holds no checkpoint."""
    if path.suffix == ".onnx":
        raise InputError(f"{path} is a graph without a checkpoint; `training predict` and `embed` take it as --onnx")
    if path.suffix == ".pt2":
        raise InputError(
            f"{path} is a graph for torch.export.load; export onnx or folder as well, which commands of ours take"
        )


def _number(iteration: Path) -> int:
    """The number of an iteration's folder; 0 of another folder."""
    number = iteration.name.removeprefix("iter")
    return int(number) if number.isdigit() else 0


def own_predictions_file(path: Path, about: About, store: Store, part: Split) -> Path | None:
    """Where an iteration's predictions lie, beside its evaluation.

    None for another checkpoint, store or part, and where the run's folder isn't ours to write to.
    """
    folder = path.parent.parent
    is_iteration = path.name == LAST and path.parent.name == "distill" and (folder / EVAL_FILE).exists()
    same_clips = part.name == about.held_out and store.snapshot.fingerprint == about.store_fingerprint
    return folder / FILE_NAME if is_iteration and same_clips and os.access(folder, os.W_OK) else None


def load_fitting(path: Path, store: Store) -> Checkpoint:
    """A checkpoint to use on a store: its classes in the store's order, and no optimiser.

    Raises InputError when its labels or features are not the store's.
    """
    checkpoint = replace(load_checkpoint(path), optimiser=None)
    check_fits(checkpoint.about, store)
    return reorder(checkpoint, store.file.vocabulary)


def check_classifies(about: About, path: Path) -> None:
    """Raises InputError for a model whose classifier was not trained."""
    if not about.classifies:
        raise InputError(
            f"{path} learned from a teacher alone (distill.classify=false), and no labels: its classifier is as it was "
            "initialised; fine-tune it with `training finetune`, or judge its features with `training probe`"
        )


def check_fits(about: About, store: Store) -> None:
    """Raises InputError when a checkpoint's labels, by their ids, or features are not the store's."""
    if set(about.vocabulary.ids) != set(store.file.vocabulary.ids):
        raise InputError(
            f"the checkpoint knows {len(about.vocabulary)} labels ({', '.join(about.vocabulary.ids[:3])} ...), "
            f"{store.location} has {store.num_classes} others; evaluate it on a store of the same labels"
        )
    check_frames(about, store)


def check_frames(about: About, store: Store) -> None:
    """Raises InputError when a store's clips are shorter than what a checkpoint takes."""
    if about.model.num_frames > store.file.fbank.num_frames:
        raise InputError(
            f"the checkpoint takes {about.model.num_frames} frames and {store.location} holds "
            f"{store.file.fbank.num_frames}; ingest with --num-frames {about.model.num_frames}"
        )


def reorder(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Checkpoint:
    """The same model with its classes in the order of `vocabulary`, which has the same label ids."""
    about = checkpoint.about
    if about.stage != "distill" or about.vocabulary.ids == vocabulary.ids:
        return checkpoint
    order = torch.tensor(about.vocabulary.indices(vocabulary.ids))
    classifier = {name: checkpoint.network[name][order] for name in ("classifier.weight", "classifier.bias")}
    return Checkpoint(about.model_copy(update={"vocabulary": vocabulary}), {**checkpoint.network, **classifier})


def choose_part(about: About, store: Store, split: str | None, fold: int | None) -> Split:
    """The split or fold of the store that is named; else the one that the model's run held out."""
    data = about.data
    if split is not None or fold is not None:
        data = data.model_copy(update={"eval_split": split, "eval_fold": fold})
    return choose_split(store, data, about.seed, for_training=False)
