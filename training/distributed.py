"""What changes when several processes train together."""

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherBatch(torch.autograd.Function):
    """Concatenates the ranks' batches; the gradient of a rank's part is the sum over all ranks."""

    @staticmethod
    def forward(ctx: object, batch: Tensor) -> Tensor:
        parts = [torch.empty_like(batch) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, batch.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_batch(batch: Tensor) -> tuple[Tensor, int]:
    """All ranks' batches (W B, D), with gradient, and the position of this rank's first row among them.

    Without a process group: the batch itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return batch, 0
    gathered: Tensor = _GatherBatch.apply(batch)
    return gathered, dist.get_rank() * len(batch)
