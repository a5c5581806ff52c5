"""A CUDA device that isn't there: tensors on it have shapes and no values, so that an operation of two devices is an
error, and so is a value that the host would have to wait for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda:0")


class FakeGenerator(torch.Generator):
    """Says that it draws on the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


class _Unpinned(TorchFunctionMode):
    """Without a driver no memory can be page-locked."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return args[0] if func is torch.Tensor.pin_memory else func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within, whatever is made on CUDA, or moved there, is a tensor without values."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Unpinned():
        yield


def move(network: nn.Module) -> None:
    """As network.to("cuda") does, within :func:`fake_cuda`: its parameters and buffers, and nothing else."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(weight, device=CUDA), weight.requires_grad))
        for name, values in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(values, device=CUDA))
