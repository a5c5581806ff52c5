"""The two networks that are trained: one for each stage, with the AFT in common."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.model.aft import AudioFeatureTransformer, pool
from training.model.mae import MaskedEncoder
from training.model.transformer import initialise


class MultiSSLNetwork(nn.Module):
    """AFT, MAE encoder and the linear map from features back to pixels."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.grid = config.grid
        self.aft = AudioFeatureTransformer(config)
        self.mae = MaskedEncoder(
            config.grid, config.mae_width, config.mae_depth, config.mae_num_heads, out_width=config.width
        )
        self.restore = nn.Linear(config.width, config.grid.patch_dim)
        initialise(self, generator)
        nn.init.trunc_normal_(self.mae.mask_token, std=0.02, generator=generator)


@dataclass(frozen=True, slots=True)
class StudentOutput:
    """pooled (B, D), logits (B, C), regressed (B, D of the teacher) or None where there is no teacher."""

    pooled: Tensor
    logits: Tensor
    regressed: Tensor | None


class _Classifier(nn.Linear):
    def reset_parameters(self) -> None:
        """The student sets the weights; without labels there are none, of which torch would warn."""


class Student(nn.Module):
    """AFT, classifier and, where a teacher's embedding is another width, a projection to it."""

    def __init__(
        self, config: ModelConfig, num_classes: int, teacher_dim: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.grid = config.grid
        self.aft = AudioFeatureTransformer(config)
        self.classifier = _Classifier(config.width, num_classes)
        self.teacher_dim = teacher_dim
        self.projection: nn.Module = nn.Identity()
        if teacher_dim is not None and teacher_dim != config.width:
            self.projection = nn.Linear(config.width, teacher_dim)
        initialise(self, generator)

    def forward(self, patches: Tensor) -> StudentOutput:
        """`patches`: (B, L, 256) of the normalised fbank."""
        pooled = pool(self.aft(patches))
        regressed = None if self.teacher_dim is None else self.projection(self.aft.perceptrons(pooled))
        return StudentOutput(pooled, self.classifier(pooled), regressed)
