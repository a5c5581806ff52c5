"""The losses of Multi-SSL and distillation, one function an equation (docs/equations.md)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.distributed import gather_batch, mean_over_ranks, world_size


def restoration(prediction: Tensor, target: Tensor, weight: Tensor, counted: Tensor | None = None) -> Tensor:
    """Weighted mean squared error of restored patches, equation (2).

    `prediction`, `target`: (B, L, P) pixels of patches; `weight`: (B, L), S or ones; `counted`: (B, L) bool, the
    patches that count (None: all). Weights are scaled to mean 1 over the counted patches of each clip, so that the loss
    keeps its scale whatever the weights.
    """
    error = (prediction.float() - target.float()).square().mean(2)
    if counted is not None:
        weight = weight * counted
    return ((error * weight).sum(1) / weight.sum(1).clamp(min=torch.finfo(weight.dtype).tiny)).mean()


def feature_mse(features: Tensor, raw: Tensor) -> Tensor:
    """Mean squared error of a view's token features to the raw view's, equations (4) and (5).

    Both (B, L, D); no gradient flows into `raw`.
    """
    return F.mse_loss(features.float(), raw.detach().float())


def feature_kl(features: Tensor, raw: Tensor) -> Tensor:
    """KL(softmax(raw) || softmax(features)) over the width, mean over tokens, equations (6) and (7).

    Both (B, L, D); no gradient flows into `raw`. Computed in float32.
    """
    log_raw = raw.detach().float().log_softmax(-1)
    log_features = features.float().log_softmax(-1)
    return (log_raw.exp() * (log_raw - log_features)).sum(-1).mean()


def contrast(pooled: Tensor, raw_pooled: Tensor, temperature: float) -> Tensor:
    """-log InfoNCE over cosine / temperature, equations (8) and (9).

    `pooled`, `raw_pooled`: (B, D), a view's and the raw view's pooled features; the pair of one clip is positive, the
    raw views of all other clips, on all ranks, are negative. Gradient flows through both sides.
    """
    with torch.autocast(pooled.device.type, enabled=False):  # which would take the product in bfloat16
        queries = F.normalize(pooled.float(), dim=1)
        keys, first = gather_batch(F.normalize(raw_pooled.float(), dim=1))
        logits = queries @ keys.T / temperature
    return F.cross_entropy(logits, first + torch.arange(len(queries), device=logits.device))


def classification(logits: Tensor, labels: Tensor, *, one_label: bool) -> Tensor:
    """Supervised loss, equation (11), over the clips that have a label.

    `logits`, `labels`: (B, C); labels are multi-hot, or probabilities. With `one_label` the cross-entropy of the
    softmax, else the binary one, mean over classes.
    """
    logits = logits.float()
    if one_label:
        losses = -(labels * logits.log_softmax(1)).sum(1)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    return _mean_over(losses, labels.sum(1) > 0)


def mixed_target(labels: Tensor, teacher: Tensor, weight: float) -> Tensor:
    """(1 - weight) labels + weight teacher's probabilities, the second target of equation (11); all (B, C).

    A clip whose teacher row is missing (NaN) keeps its labels, and one without a label stays without a target.
    """
    present = teacher.isfinite().all(1, keepdim=True) & (labels.sum(1, keepdim=True) > 0)
    return torch.where(present, (1.0 - weight) * labels + weight * teacher.nan_to_num(), labels)


def feature_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of layer-normed pooled features, equation (12).

    `student`, `teacher`: (B, D); clips whose teacher row is missing (NaN) don't count.
    """
    present = teacher.isfinite().all(1)
    target = _layer_normed(torch.where(present[:, None], teacher.float(), 0.0))
    errors = (_layer_normed(student.float()) - target).square().mean(1)
    return _mean_over(errors, present)


def spread(pooled: Tensor) -> Tensor:
    """How far features (N, D) are from having collapsed: no loss, but watched.

    Mean standard deviation over clips of the unit-length features, times sqrt(D): about 1 for features in all
    directions, 0 for one point.
    """
    unit = F.normalize(pooled.float(), dim=1)
    return unit.std(0, correction=0).mean() * math.sqrt(pooled.shape[1])


def batch_spread(pooled: Tensor) -> Tensor:
    """The spread of a batch's features (B, D) over all ranks, without a gradient."""
    return spread(gather_batch(pooled.detach())[0])


def _layer_normed(features: Tensor) -> Tensor:
    return F.layer_norm(features, features.shape[-1:])


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values (B,), 0 where none is.

    Over several ranks it is a part of which the ranks' mean is the mean over all that they chose.
    """
    num_chosen = mean_over_ranks(chosen.sum().to(values.dtype))
    return (values * chosen).sum() / num_chosen.clamp(min=1.0 / world_size())
