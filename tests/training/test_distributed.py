"""Two processes over gloo give the loss and the gradients of one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.distributed import gather_batch
from training.losses import contrast

NUM_RANKS, PER_RANK = 2, 3
RANK = """
import sys
import torch
import torch.distributed as dist
from training.losses import contrast
rank, num_ranks, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks)
weight, pooled, raw = torch.load(f"{folder}/inputs.pt", weights_only=True)
size = len(pooled) // num_ranks
part = slice(rank * size, (rank + 1) * size)
weight.requires_grad_()
pooled, raw = pooled[part].requires_grad_(), raw[part].requires_grad_()
loss = contrast(pooled @ weight, raw @ weight, 0.1)
loss.backward()
# As DistributedDataParallel does.
dist.all_reduce(weight.grad)
torch.save((loss.detach(), weight.grad / num_ranks, pooled.grad, raw.grad), f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture
def features() -> tuple[Tensor, Tensor, Tensor]:
    """Weights of a shared layer, and what it maps: a view's and the raw view's features."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 5, generator=draw)
    pooled, raw = torch.randn(2, NUM_RANKS * PER_RANK, 8, generator=draw)
    return weight, pooled.clone(), raw.clone()


def test_contrast_over_two_ranks(features: tuple[Tensor, Tensor, Tensor], tmp_path: Path) -> None:
    torch.save(features, tmp_path / "inputs.pt")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(NUM_RANKS), str(tmp_path)],
            stderr=subprocess.PIPE,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},  # else it asks for this machine's name
        )
        for rank in range(NUM_RANKS)
    ]
    for process in ranks:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(NUM_RANKS)]
    weight, pooled, raw = (tensor.requires_grad_() for tensor in features)
    loss = contrast(pooled @ weight, raw @ weight, 0.1)
    loss.backward()
    torch.testing.assert_close(torch.stack([rank[0] for rank in found]).mean(), loss.detach())
    assert pooled.grad is not None
    assert raw.grad is not None
    for rank, (_, weight_grad, pooled_grad, raw_grad) in enumerate(found):
        part = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
        torch.testing.assert_close(weight_grad, weight.grad)
        # The mean over ranks is still to be taken.
        torch.testing.assert_close(pooled_grad / NUM_RANKS, pooled.grad[part])
        torch.testing.assert_close(raw_grad / NUM_RANKS, raw.grad[part])


def test_alone_the_batch_is_all_there_is() -> None:
    batch = torch.ones(3, 2)
    gathered, first = gather_batch(batch)
    assert gathered is batch
    assert first == 0
