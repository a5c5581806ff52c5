"""What a probe puts on frozen embeddings: a linear classifier, or the nearest neighbours.

Embeddings are (N, D), labels (N, C) multi-hot, all on one device. Scores (N, C) are the higher the likelier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# DINO's (Caron et al. 2021, section 4.1).
NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
# Weights of half the squared length of the classifier beside the mean loss of a clip.
PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
MAX_ITERATIONS = 200
# Entries of one block of scores or likenesses: 64 MiB of float32.
BLOCK_ENTRIES = 2**24


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of standardised embeddings: softmax, or with `is_multi_label` a sigmoid a class."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self, embeddings: Tensor) -> Tensor:
        """Logits (N, C)."""
        blocks = _blocks(embeddings, len(self.mean))
        return torch.cat([(block - self.mean) / self.scale @ self.weight + self.bias for block in blocks])


def fit_linear(
    embeddings: Tensor, labels: Tensor, penalty: float, *, is_multi_label: bool, start: LinearProbe | None = None
) -> LinearProbe:
    """The minimum of mean cross-entropy + penalty / 2 x |weight|^2, by L-BFGS over all clips; the bias is free.

    `is_multi_label`: the cross-entropies of a clip's classes are summed. `start`: where to begin, another penalty's
    probe of the same clips.
    """
    if start is None:
        scale = embeddings.std(0, correction=0)
        mean, scale = embeddings.mean(0), torch.where(scale > 0, scale, 1.0)
        weight = embeddings.new_zeros(embeddings.shape[1], labels.shape[1])
        bias = embeddings.new_zeros(labels.shape[1])
    else:
        mean, scale, weight, bias = start.mean, start.scale, start.weight.clone(), start.bias.clone()
    inputs = (embeddings - mean) / scale
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=MAX_ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = mean_loss(inputs @ weight + bias, labels, is_multi_label) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return LinearProbe(mean, scale, weight.detach(), bias.detach())


def choose_penalty(
    embeddings: Tensor,
    labels: Tensor,
    is_validation: Tensor,
    *,
    is_multi_label: bool,
    penalties: Sequence[float] = PENALTIES,
) -> float:
    """The penalty whose probe of the other clips has the least mean loss on those of `is_validation` (N,) bool."""
    train, held_out = ~is_validation, is_validation
    probe, losses = None, {}
    # From strong to weak, so that each begins near its end.
    for penalty in sorted(penalties, reverse=True):
        probe = fit_linear(embeddings[train], labels[train], penalty, is_multi_label=is_multi_label, start=probe)
        losses[penalty] = float(mean_loss(probe.scores(embeddings[held_out]), labels[held_out], is_multi_label))
    return min(losses, key=losses.__getitem__)


def mean_loss(logits: Tensor, labels: Tensor, is_multi_label: bool) -> Tensor:
    """Mean over clips of the cross-entropy, which is summed over the classes of a multi-label clip."""
    if is_multi_label:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()
    return F.cross_entropy(logits, labels.argmax(1))


def knn_scores(train: Tensor, labels: Tensor, embeddings: Tensor, *, num_neighbours: int = NUM_NEIGHBOURS) -> Tensor:
    """Mean label (N, C) of the clips of `train` nearest by cosine, weighted by the softmax of cosine / .07.

    There are as many neighbours as asked, or as `train` has clips.
    """
    k = min(num_neighbours, len(train))
    unit = F.normalize(train, dim=1)
    scores = []
    for block in _blocks(embeddings, max(len(train), k * labels.shape[1])):
        cosine, nearest = (F.normalize(block, dim=1) @ unit.T).topk(k, dim=1)
        weights = (cosine / TEMPERATURE).softmax(1)
        scores.append((weights[:, None] @ labels[nearest]).squeeze(1))
    return torch.cat(scores)


def _blocks(rows: Tensor, entries_a_row: int) -> Sequence[Tensor]:
    return torch.split(rows, max(1, BLOCK_ENTRIES // entries_a_row))
