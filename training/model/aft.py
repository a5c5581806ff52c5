"""The audio feature transformer (AFT): a ViT over all patches, and the two perceptrons."""

from torch import Tensor, nn

from training.config import ModelConfig
from training.model.patches import PatchEmbedding
from training.model.transformer import Perceptron, Transformer


class AudioFeatureTransformer(nn.Module):
    """Patches (B, L, 256) to token features (B, L, D).

    The perceptrons, width - 2 width - width each, map pooled features to what is compared with a teacher,
    equation (12).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = PatchEmbedding(config.grid, config.width)
        self.transformer = Transformer(
            config.width,
            config.depth,
            config.num_heads,
            recompute=config.recompute,
            gated=config.parameter_free_attention,
        )
        self.perceptrons = nn.Sequential(*(Perceptron(config.width, 2 * config.width) for _ in range(2)))

    def place(self, tokens: Tensor) -> Tensor:
        """Adds the positions to tokens (B, L, D)."""
        return tokens + self.embedding.positions

    def encode(self, tokens: Tensor) -> Tensor:
        """Placed tokens (B, L, D) to features (B, L, D)."""
        features: Tensor = self.transformer(tokens)
        return features

    def forward(self, patches: Tensor) -> Tensor:
        return self.encode(self.place(self.embedding(patches)))


def pool(features: Tensor) -> Tensor:
    """The mean over tokens: (B, L, D) to (B, D)."""
    return features.mean(1)
