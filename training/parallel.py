"""A stage's network over several processes (DDP or FSDP2), and its whole state from and to every one of them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from manifests.errors import InputError, first_line
from training.distributed import is_first, world_size
from training.inputs import Inputs
from training.model.transformer import Block

Losses = Callable[[Inputs, torch.Generator], dict[str, Tensor]]
Parallel = Literal["ddp", "fsdp"]
# Their errors have no public base class.
COMPILERS = ("torch._dynamo.", "torch._inductor.")


class LossModule(nn.Module):
    """A network and the losses of a batch in it, as one module: what DDP and FSDP wrap."""

    def __init__(self, network: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.network = network
        self._losses = losses

    def forward(self, inputs: Inputs, generator: torch.Generator) -> dict[str, Tensor]:
        return self._losses(inputs, generator)


def compile_blocks(network: nn.Module) -> None:
    """torch.compile of each transformer block: they are alike, so that one compilation serves all of a width."""
    for part in network.modules():
        if isinstance(part, Block):
            part.compile()


@contextmanager
def compile_failures() -> Iterator[None]:
    """Turns what torch.compile raises, at the first step of each shape, into an InputError."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(COMPILERS):
            raise
        raise InputError(
            f"torch.compile can't compile the transformer here ({first_line(error)}); see `training doctor`, or --set "
            "compile=off"
        ) from error


def divides(parallel: Parallel) -> bool:
    """Whether weights are divided over processes: then no device ever holds all of them, but to evaluate them."""
    return parallel == "fsdp" and world_size() > 1


def distribute(network: nn.Module, losses: Losses, parallel: Parallel, device: torch.device) -> nn.Module:
    """The module whose forward pass gives the losses, over all processes; `network`'s weights are divided in place by
    fsdp, and moved to the device a block at a time, so the optimiser must be made afterwards.
    """
    module = LossModule(network, losses)
    if world_size() == 1:
        return module
    if not divides(parallel):
        # Which weights have a gradient is the same in each step: the perceptrons, for instance, have none in Multi-SSL.
        return DistributedDataParallel(module, static_graph=True, gradient_as_bucket_view=True)
    _shard(module, device)
    return module


def _shard(module: LossModule, device: torch.device) -> None:
    """FSDP2: each block's weights, and the rest, are divided over the processes, and gathered when they are needed.

    In float32, as are their gradients' sums: what bfloat16 there would save of traffic, losses would show.
    """
    # Imported here: it takes a second, and one process does without it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    for part in module.modules():
        if isinstance(part, Block):
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


class WholeNetwork:
    """The network as one process sees it, whether or not its weights are divided."""

    def __init__(self, network: nn.Module, parallel: Parallel) -> None:
        """To be made before the network is distributed."""
        self._network = network
        self._divided = divides(parallel)
        # For evaluation, which the first process does; on the host in between.
        self._copy = copy.deepcopy(network).cpu() if self._divided and is_first() else None

    def state(self, *, everywhere: bool = False) -> dict[str, Tensor]:
        """The state dict with whole tensors; every process must ask for it at the same time.

        Of divided weights it is on the host, and without `everywhere` the first process's alone.
        """
        keep = everywhere or is_first()
        gathered = {name: _whole(value, keep=keep) for name, value in self._network.state_dict().items()}
        return {name: value for name, value in gathered.items() if value is not None}

    def load(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict of whole tensors."""
        own = self._network.state_dict()
        self._network.load_state_dict({name: _like(value, own.get(name)) for name, value in state.items()})

    @contextmanager
    def network(self, device: torch.device) -> Iterator[nn.Module]:
        """The network with all of its weights on the device, in the first process; every process must ask for it."""
        if not self._divided:
            yield self._network
            return
        state = self.state()
        if self._copy is None:
            yield self._network
            return
        self._copy.load_state_dict(state)
        try:
            yield self._copy.to(device)
        finally:
            self._copy.cpu()


def whole_optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state dict with whole tensors; every process must ask for it at the same time.

    Of divided weights it is on the host, and the first process's alone.
    """
    content = optimiser.state_dict()
    state = {
        index: {
            name: _whole(value, keep=is_first()) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in content["state"].items()
    }
    return {**content, "state": state}


def load_optimiser_state(optimiser: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Loads an optimiser's state dict of whole tensors."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state = {
        index: {
            name: _like(value, weights[index]) if isinstance(value, Tensor) and value.ndim else value
            for name, value in values.items()
        }
        for index, values in content["state"].items()
    }
    optimiser.load_state_dict({**content, "state": state})


def _whole(value: Tensor, *, keep: bool) -> Tensor | None:
    """The whole of a tensor: of a divided one on the host, so that devices hold one whole tensor at a time."""
    if not _is_divided(value):
        return value
    whole: Tensor = value.full_tensor()  # type: ignore[attr-defined]
    return whole.cpu() if keep else None


def _like(value: Tensor, own: Tensor | None) -> Tensor:
    """`value`, divided as `own` is."""
    if own is None or not _is_divided(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)  # type: ignore[attr-defined]


def _is_divided(value: Tensor) -> bool:
    if world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
