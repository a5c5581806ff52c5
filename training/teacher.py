"""Our own models as teachers: the entry point `checkpoint` of featurestore.teachers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput, WaveformInput
from ingest.featurise import file_sha256
from manifests.vocabulary import Vocabulary
from training.checkpoint import Checkpoint, load_checkpoint, load_student
from training.model.aft import pool
from training.model.patches import patchify


class CheckpointTeacher:
    """A student of a distillation stage, frozen: pooled features, logits and token features of the store's fbanks."""

    name = "checkpoint"

    def __init__(self, checkpoint: Checkpoint, provenance: dict[str, Any]) -> None:
        about = checkpoint.about
        self._student = load_student(checkpoint)
        self._normalisation = about.normalisation
        self.input: WaveformInput | FbankInput = FbankInput(about.fbank)
        self.embedding_dim = about.model.width
        self.vocabulary: Vocabulary | None = about.vocabulary
        self.provenance = provenance

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        """`batch`: (B, T, F) fbanks; the first frames that the model takes are seen."""
        grid = self._student.grid
        fbank = self._normalisation(batch[:, : grid.num_frames])
        features = self._student.aft(patchify(fbank, grid))
        pooled = pool(features)
        return TeacherOutput(embedding=pooled, logits=self._student.classifier(pooled), tokens=features)


def load_checkpoint_teacher(path: Path) -> Teacher:
    """Loads a checkpoint of a distillation stage. Raises InputError for any other file."""
    checkpoint = load_checkpoint(path)
    about = checkpoint.about
    provenance = {
        "checkpoint_sha256": file_sha256(path),
        "iteration": about.iteration,
        "normalisation": {"mean": about.mean, "std": about.std},
        "trained_on": about.store_fingerprint,
    }
    return CheckpointTeacher(checkpoint, provenance)
