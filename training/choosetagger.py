"""Which model is meant: a run or checkpoint of ours, a teacher by name, or an exported file."""

from importlib.metadata import entry_points
from pathlib import Path

import torch

from featurestore.teachers.registry import GROUP, load_teacher
from manifests.errors import InputError
from training.checkpointtagger import load_checkpoint_tagger
from training.modelfile import find_checkpoint
from training.runfolder import choose_run
from training.tagger import Tagger
from training.teacher import CheckpointTeacher
from training.teachertagger import TeacherTagger


def choose_tagger(
    model: str | None, checkpoint: Path | None, onnx: Path | None, device: torch.device, *, needs_labels: bool
) -> Tagger:
    """The model that the options name.

    `model`: with a `checkpoint` the name of a teacher, else the path of a run, an iteration or a checkpoint of ours;
    None for the only run under ./runs. `onnx`: an exported file instead of both. Raises InputError where they name
    nothing that can be used, or where labels are needed and the model has none.
    """
    if onnx is not None:
        if model is not None or checkpoint is not None:
            raise InputError("--onnx names a model already; leave out --model and --checkpoint")
        return _with_labels(_load_onnx(onnx), str(onnx), needed=needs_labels)
    if checkpoint is not None:
        if model is None:
            raise InputError(
                f"--checkpoint {checkpoint} holds the weights of a teacher; name it with --model ({_teachers()}), or "
                f"give a checkpoint of ours as --model {checkpoint}"
            )
        return _with_labels(_load_teacher(model, checkpoint, device), model, needed=needs_labels)
    tagger = _load_own(model, device, needs_labels=needs_labels)
    return _with_labels(tagger, model or "the model", needed=needs_labels)


def _load_own(model: str | None, device: torch.device, *, needs_labels: bool) -> Tagger:
    path = choose_run(None if model is None else Path(model))
    if not path.exists():
        if str(path) in entry_points(group=GROUP).names:
            load_teacher(str(path), None)  # says what it lacks
        raise InputError(
            f"--model {path} is neither a file or folder nor the name of a teacher; give a run's folder (RUN), a "
            f"checkpoint (RUN/iter1/distill/last.pt), or one of {_teachers()} with its weights as --checkpoint"
        )
    return load_checkpoint_tagger(find_checkpoint(path, either_stage=not needs_labels), device)


def _load_teacher(name: str, checkpoint: Path, device: torch.device) -> Tagger:
    teacher = load_teacher(name, checkpoint)
    # Only the checkpoint knows whether its clips had one label, and how long its own windows are.
    if isinstance(teacher, CheckpointTeacher):
        return load_checkpoint_tagger(checkpoint, device)
    return TeacherTagger(teacher, device)


def _load_onnx(path: Path) -> Tagger:
    # Imported here: onnxruntime is an extra.
    from training.onnxtagger import load_onnx

    inside = path / "model.onnx"
    return load_onnx(inside if inside.is_file() else path)


def _with_labels(tagger: Tagger, model: str, *, needed: bool) -> Tagger:
    if needed and tagger.vocabulary is None:
        raise InputError(
            f"{model} gives embeddings, but knows no labels; take a model with a classifier (of ours "
            "RUN/iter1/distill/last.pt; of a teacher's a fine-tuned file), or use `training embed`"
        )
    return tagger


def _teachers() -> str:
    return ", ".join(sorted(entry_points(group=GROUP).names))
