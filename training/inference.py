"""A student's view of whole clips, however many of its windows they hold."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.inputs import Normalisation
from training.model.aft import pool
from training.model.networks import Student
from training.model.patches import patchify


@dataclass(frozen=True, slots=True)
class Inference:
    """Per clip and window: logits (B, W, C), pooled (B, W, D), tokens (B, W, L, D)."""

    logits: Tensor
    pooled: Tensor
    tokens: Tensor

    def probabilities(self, *, one_label: bool) -> Tensor:
        """(B, C): softmax where a clip has one label, else a sigmoid per class; the mean over windows."""
        return probabilities(self.logits, one_label=one_label).mean(1)


def probabilities(logits: Tensor, *, one_label: bool) -> Tensor:
    """What a classifier says of logits (..., C)."""
    return logits.float().softmax(-1) if one_label else torch.sigmoid(logits.float())


@torch.inference_mode()
def infer(student: Student, fbank: Tensor, normalisation: Normalisation) -> Inference:
    """`fbank`: (B, T, F), not normalised, T a multiple of the frames that the student takes: all windows are seen."""
    grid = student.grid
    num_clips, num_frames, num_mel_bins = fbank.shape
    num_windows = num_frames // grid.num_frames
    windows = fbank.reshape(num_clips * num_windows, grid.num_frames, num_mel_bins)
    tokens = student.aft(patchify(normalisation(windows), grid))
    pooled = pool(tokens)
    logits = student.classifier(pooled)
    each = (num_clips, num_windows)
    return Inference(*(values.float().reshape(*each, *values.shape[1:]) for values in (logits, pooled, tokens)))
