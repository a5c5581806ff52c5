"""The MAE encoder: a small transformer over the visible patches only (He et al. 2022)."""

import torch
from torch import Tensor, nn

from manifests.geometry import PatchGrid
from training.model.patches import PatchEmbedding
from training.model.transformer import Transformer


class MaskedEncoder(nn.Module):
    """Encodes the visible patches and puts mask tokens in the places of the others."""

    def __init__(self, grid: PatchGrid, width: int, depth: int, num_heads: int, out_width: int) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(grid, width)
        self.transformer = Transformer(width, depth, num_heads)
        self.project = nn.Linear(width, out_width)
        self.mask_token = nn.Parameter(torch.zeros(out_width))

    def forward(self, patches: Tensor, ids_keep: Tensor) -> Tensor:
        """`patches` (B, L, 256), `ids_keep` (B, K): tokens (B, L, out_width), without positions."""
        num_clips, num_patches, patch_dim = patches.shape
        visible = patches.gather(1, ids_keep[..., None].expand(-1, -1, patch_dim))
        tokens = self.embedding(visible) + self.embedding.positions[ids_keep]
        encoded = self.project(self.transformer(tokens))  # (B, K, out_width)
        places = ids_keep[..., None].expand(-1, -1, encoded.shape[2])
        everywhere = self.mask_token.to(encoded.dtype).expand(num_clips, num_patches, -1)
        return everywhere.scatter(1, places, encoded)
