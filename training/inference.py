"""A network's view of whole clips, however many of its windows they hold."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifests.geometry import PatchGrid
from training.inputs import Normalisation
from training.model.aft import AudioFeatureTransformer, pool
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
    tokens = _tokens(student.aft, student.grid, fbank, normalisation)  # (B, W, L, D)
    pooled = pool(tokens.flatten(0, 1))
    logits = student.classifier(pooled)
    each = tokens.shape[:2]
    return Inference(logits.float().reshape(*each, -1), pooled.float().reshape(*each, -1), tokens.float())


@torch.inference_mode()
def pooled_features(
    aft: AudioFeatureTransformer, grid: PatchGrid, fbank: Tensor, normalisation: Normalisation
) -> Tensor:
    """(B, D): the mean over tokens and windows of whole clips' features; `fbank` as :func:`infer` takes it."""
    return _tokens(aft, grid, fbank, normalisation).float().mean((1, 2))


def _tokens(aft: AudioFeatureTransformer, grid: PatchGrid, fbank: Tensor, normalisation: Normalisation) -> Tensor:
    """Features (B, W, L, D) of W windows."""
    num_clips, num_frames, num_mel_bins = fbank.shape
    num_windows = num_frames // grid.num_frames
    windows = fbank.reshape(num_clips * num_windows, grid.num_frames, num_mel_bins)
    tokens: Tensor = aft(patchify(normalisation(windows), grid))
    return tokens.reshape(num_clips, num_windows, *tokens.shape[1:])
