"""What changes when several processes train together: one a device, started by `torchrun`.

Without a process group each function does what is right for one process alone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from manifests.errors import InputError

# The first rank evaluates and builds caches while the others wait for it.
PATIENCE = timedelta(hours=12)
T = TypeVar("T")


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the group that torchrun has started this process for, if it has; gives the device of this process.

    Raises InputError where there are more processes on a machine than CUDA devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        local, num_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= num_devices:
            raise InputError(
                f"there are {num_devices} CUDA devices for {os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes; "
                f"start torchrun with --nproc-per-node {num_devices}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _is_group() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _is_group() else 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def on_first(work: Callable[[], T]) -> T:
    """Does `work` in the first process alone, while the others wait, and gives its result to all.

    An InputError of it is raised in all.
    """
    if world_size() == 1:
        return work()
    said: list[Any] = [None, None]
    if is_first():
        try:
            said[0] = work()
        except InputError as error:
            said[1] = str(error)
    dist.broadcast_object_list(said)
    if said[1] is not None:
        raise InputError(said[1])
    result: T = said[0]
    return result


def gather_objects(mine: T) -> list[T]:
    """What each process has, by rank."""
    if world_size() == 1:
        return [mine]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of the processes' tensors, without a gradient."""
    if world_size() == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed / world_size()


def batch_uniforms(num_clips: int, *shape: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers (num_clips, *shape) of this process's clips, on the generator's device.

    They are the rows that one process would draw for them in the whole batch.
    """
    drawn = torch.rand(num_clips * world_size(), *shape, generator=generator, device=generator.device)
    return drawn[rank() * num_clips : (rank() + 1) * num_clips]


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
    if world_size() == 1:
        return batch, 0
    gathered: Tensor = _GatherBatch.apply(batch)
    return gathered, dist.get_rank() * len(batch)


def _is_group() -> bool:
    return dist.is_available() and dist.is_initialized()
