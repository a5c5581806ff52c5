"""Our own models as teachers: the entry points `checkpoint` and `spfa` of featurestore.teachers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput, WaveformInput
from ingest.sourcefile import file_sha256
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary
from training.checkpoint import Checkpoint, load_checkpoint, load_student
from training.inference import infer

SPFA = "spfa"


class CheckpointTeacher:
    """A student of a distillation stage, frozen: pooled features, logits and token features of the store's fbanks."""

    def __init__(self, checkpoint: Checkpoint, provenance: dict[str, Any], name: str = "checkpoint") -> None:
        about = checkpoint.about
        self.name = name
        self._student = load_student(checkpoint)
        self._normalisation = about.normalisation
        self.input: WaveformInput | FbankInput = FbankInput(about.fbank)
        self.embedding_dim = about.model.width
        self.vocabulary: Vocabulary | None = about.vocabulary if about.can_classify else None
        self.provenance = provenance

    def to(self, device: torch.device) -> "CheckpointTeacher":
        """Moves the network to the device."""
        self._student.to(device)
        return self

    def embed(self, batch: Tensor) -> TeacherOutput:
        """`batch`: (B, T, F) fbanks; the mean over the windows that the model takes, and the tokens of all."""
        device = next(self._student.parameters()).device
        said = infer(self._student, batch.to(device), self._normalisation)
        logits = None if self.vocabulary is None else said.logits.mean(1)
        return TeacherOutput(said.pooled.mean(1), logits, said.tokens.flatten(1, 2))


def load_checkpoint_teacher(path: Path) -> Teacher:
    """Loads a checkpoint of a distillation stage. Raises InputError for any other file."""
    return _teacher(path, load_checkpoint(path), "checkpoint")


def load_spfa_teacher(path: Path) -> Teacher:
    """As :func:`load_checkpoint_teacher`, of a model with parameter-free attention, such as the preset `spfa` trains.

    Raises InputError for any other.
    """
    checkpoint = load_checkpoint(path)
    if not checkpoint.about.model.parameter_free_attention:
        raise InputError(
            f"{path} holds a model without parameter-free attention, so no {SPFA}; give it as --model checkpoint, or "
            f"train one with `training run --preset {SPFA}`"
        )
    return _teacher(path, checkpoint, SPFA)


def _teacher(path: Path, checkpoint: Checkpoint, name: str) -> Teacher:
    about = checkpoint.about
    provenance = {
        "checkpoint_sha256": file_sha256(path),
        "iteration": about.iteration,
        "normalisation": {"mean": about.mean, "std": about.std},
        "trained_on": about.store_fingerprint,
    }
    return CheckpointTeacher(checkpoint, provenance, name)
