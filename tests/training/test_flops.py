"""FLOPs, parameters and memory from shapes, against counts of what PyTorch does and keeps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from training.config import DistillConfig, ModelConfig, MultiSSLConfig, OptimiserConfig, load_config
from training.distill import Task, distill_losses
from training.flops import (
    StepFlops,
    distill_flops,
    distill_memory,
    multissl_flops,
    multissl_memory,
    multissl_parameters,
    num_masked,
    student_parameters,
)
from training.inputs import Inputs
from training.masks import inter_mask
from training.model.networks import MultiSSLNetwork, Student
from training.multissl import multissl_losses

MODEL = ModelConfig(num_frames=256, width=96, depth=3, num_heads=4, mae_width=24, mae_depth=2, mae_num_heads=3)
OPTIMISER = OptimiserConfig(epochs=1, batch_size=3, peak_lr=1e-3)
NUM_CLASSES, BATCH_SIZE = 5, 3
MULTISSL_SWITCHES = [
    # Nothing is compared with the raw view, which isn't encoded then.
    {"feature_mse": False, "feature_kl": False, "contrast": False},
    {"feature_mse": False, "feature_kl": False, "contrast": False, "intra": False},
    {},
    {"intra": False},
    {"inter": False},
    {"restore": False},
    {"feature_kl": False},
    {"contrast": False},
    {"mask_ratio": 0.3},
]
Loss = Callable[[], Tensor]


def batch(teacher_dim: int | None) -> Inputs:
    draw = torch.Generator().manual_seed(3)
    teacher = None if teacher_dim is None else torch.randn(BATCH_SIZE, teacher_dim, generator=draw)
    return Inputs(
        fbank=torch.randn(BATCH_SIZE, 256, 128, generator=draw),
        gradient_magnitude=torch.rand(BATCH_SIZE, 128, generator=draw),
        labels=torch.eye(NUM_CLASSES)[:BATCH_SIZE],
        teacher=teacher,
        teacher_logits=None,
    )


def multissl_step(model: ModelConfig, config: MultiSSLConfig) -> tuple[MultiSSLNetwork, Loss]:
    network, inputs = MultiSSLNetwork(model, torch.Generator().manual_seed(1)), batch(None)
    return network, lambda: multissl_losses(network, inputs, config, torch.Generator().manual_seed(2))["loss"]


def distill_step(model: ModelConfig, config: DistillConfig, teacher_dim: int | None) -> tuple[Student, Loss]:
    network = Student(model, NUM_CLASSES, teacher_dim, torch.Generator().manual_seed(1))
    inputs = batch(teacher_dim)
    return network, lambda: distill_losses(network, inputs, config, Task(one_label=True))["loss"]


def counted(loss: Loss) -> tuple[int, int]:
    """FLOPs of the forward pass, and of both; attention as plain products, since fused kernels aren't counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        value = loss()
        forward = counter.get_total_flops()
        torch.autograd.backward(value)
    return forward, counter.get_total_flops()


def assert_counted(flops: StepFlops, loss: Loss) -> None:
    assert (flops.forward, flops.hardware) == pytest.approx(counted(loss), rel=0.02)


@pytest.mark.parametrize("switches", MULTISSL_SWITCHES)
def test_multissl_flops(switches: dict[str, bool | float]) -> None:
    config = MultiSSLConfig(optimiser=OPTIMISER, **switches)
    assert_counted(multissl_flops(MODEL, config, BATCH_SIZE), multissl_step(MODEL, config)[1])


@pytest.mark.parametrize("teacher_dim", [None, 96, 20])
@pytest.mark.parametrize("classify", [True, False])
def test_distill_flops(teacher_dim: int | None, classify: bool) -> None:
    config = DistillConfig(optimiser=OPTIMISER, classify=classify)
    flops = distill_flops(MODEL, config, BATCH_SIZE, NUM_CLASSES, teacher_dim)
    assert_counted(flops, distill_step(MODEL, config, teacher_dim)[1])


def test_recomputing_costs_hardware_flops_only() -> None:
    config, again = MultiSSLConfig(optimiser=OPTIMISER), MODEL.model_copy(update={"recompute": True})
    flops = multissl_flops(again, config, BATCH_SIZE)
    assert flops.model == multissl_flops(MODEL, config, BATCH_SIZE).model
    assert flops.hardware > 1.2 * flops.model
    assert_counted(flops, multissl_step(again, config)[1])


def test_a_step_by_hand() -> None:
    """Two clips of 128 patches, one block of width 8, one view: all products written out."""
    model = ModelConfig(num_frames=256, width=8, depth=1, num_heads=2, mae_width=4, mae_depth=1, mae_num_heads=1)
    config = MultiSSLConfig(optimiser=OPTIMISER, inter=False)
    embedding = 2 * (2 * 2 * 128) * 256 * 8
    linear = 2 * (2 * 2 * 128) * 12 * 8 * 8
    attention = 2 * 2 * (2 * 2) * 128 * 128 * 8
    restore, contrast = 2 * (2 * 128) * 8 * 256, 2 * 2 * 2 * 8
    forward = embedding + linear + attention + restore + contrast
    flops = multissl_flops(model, config, 2)
    assert flops.forward == forward
    assert flops.model == 3 * forward - embedding


def test_contrast_grows_with_the_ranks() -> None:
    config = MultiSSLConfig(optimiser=OPTIMISER)
    one, four = (multissl_flops(MODEL, config, 2, num_ranks).forward for num_ranks in (1, 4))
    assert four - one == 2 * (2 * 2 * 2 * 96) * 3


def test_the_published_size() -> None:
    """ViT-B has 17.5 GMAC at 197 tokens of 224x224 (timm); scaled to 512 tokens by hand."""
    base = load_config("base")
    of_aft = next(cost for cost in multissl_flops(base.model, base.multissl, 1).costs if cost.part == "AFT")
    macs_a_token = 12 * (12 * 768**2 + 2 * 512 * 768)
    assert of_aft.forward == 3 * 512 * 2 * macs_a_token
    at_197 = 12 * 197 * (12 * 768**2 + 2 * 197 * 768) + 196 * 768 * 768
    assert at_197 / 1e9 == pytest.approx(17.5, rel=0.01)


@pytest.mark.parametrize("mask_ratio", [0.001, 0.3, 0.75, 0.999])
def test_as_many_patches_are_masked_as_in_training(mask_ratio: float) -> None:
    drawn = inter_mask(torch.rand(1, 128), mask_ratio, "uniform", torch.Generator().manual_seed(0))
    assert num_masked(128, mask_ratio) == int(drawn.masked.sum())


def num_parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("preset", ["demo", "tiny", "small", "base"])
def test_parameters(preset: str) -> None:
    model = load_config(preset).model
    with torch.device("meta"):
        draw = torch.Generator()
        network, student = MultiSSLNetwork(model, draw), Student(model, 527, 999, draw)
        alone = Student(model, 527, None, draw)
    assert multissl_parameters(model) == num_parameters(network)
    assert student_parameters(model, 527, 999) == num_parameters(student)
    assert student_parameters(model, 527, None) == num_parameters(alone)


def kept_bytes(network: nn.Module, loss: Loss, *, autocast: bool) -> int:
    """What autograd keeps for the backward pass, each storage once, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss()
    assert value.requires_grad
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)


def gradients_in_a_block(num_views: int, *, autocast: bool) -> int:
    """What the estimate has besides: gradients of the stream, twice in float32, and of the hidden layer, twice."""
    return num_views * BATCH_SIZE * 128 * 96 * (2 * 4 + 2 * 4 * (2 if autocast else 4))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("switches", MULTISSL_SWITCHES)
def test_multissl_activations(switches: dict[str, bool | float], autocast: bool) -> None:
    config = MultiSSLConfig(optimiser=OPTIMISER, **switches)
    network, loss = multissl_step(MODEL, config)
    memory = multissl_memory(MODEL, config, BATCH_SIZE, autocast=autocast)
    kept = memory.activations - gradients_in_a_block(config.compares + config.intra + config.inter, autocast=autocast)
    # What the estimate has for every step weighs more in the small one of restoration alone.
    tolerance = 0.05 if config.compares else 0.15
    assert kept == pytest.approx(kept_bytes(network, loss, autocast=autocast), rel=tolerance)


@pytest.mark.parametrize("autocast", [False, True])
def test_distill_activations(autocast: bool) -> None:
    network, loss = distill_step(MODEL, DistillConfig(optimiser=OPTIMISER), 20)
    memory = distill_memory(MODEL, BATCH_SIZE, NUM_CLASSES, 20, autocast=autocast)
    kept = memory.activations - gradients_in_a_block(1, autocast=autocast)
    assert kept == pytest.approx(kept_bytes(network, loss, autocast=autocast), rel=0.07)


def test_weights_gradients_and_states() -> None:
    """float32 weights, gradients and AdamW's two states; autocast adds copies of half the size."""
    network, loss = distill_step(MODEL, DistillConfig(optimiser=OPTIMISER), 20)
    optimiser = torch.optim.AdamW(network.parameters())
    torch.autograd.backward(loss())
    optimiser.step()
    states = [value for state in optimiser.state.values() for value in state.values() if value.ndim]
    memory = distill_memory(MODEL, BATCH_SIZE, NUM_CLASSES, 20, autocast=False)
    assert memory.adamw == sum(value.nbytes for value in states)
    assert memory.gradients == sum(weight.nbytes for weight in network.parameters()) == memory.parameters
    half = distill_memory(MODEL, BATCH_SIZE, NUM_CLASSES, 20, autocast=True)
    assert half.parameters == 1.5 * memory.parameters


def test_recomputing_keeps_less() -> None:
    config, again = MultiSSLConfig(optimiser=OPTIMISER), MODEL.model_copy(update={"recompute": True})
    keeping = multissl_memory(MODEL, config, BATCH_SIZE, autocast=True)
    recomputing = multissl_memory(again, config, BATCH_SIZE, autocast=True)
    # Of 36 bytes a token, block and unit of width 4 are left, in all blocks but one.
    num_tokens = 3 * BATCH_SIZE * 128
    saved = num_tokens * ((MODEL.depth - 1) * (36 * 96 + 4 * (4 + 4)) - MODEL.depth * 4 * 96)
    assert keeping.activations - recomputing.activations == saved
