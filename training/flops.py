"""What a training step costs, by arithmetic on shapes: FLOPs of the matrix products, and bytes of memory.

A multiply-add is two FLOPs. Norms, GELU, softmax, losses, masks and the optimiser are left out: their FLOPs are few
beside those of the matrix products, though not their time. A backward pass takes twice the forward pass, once for the
inputs' gradient and once for the weights'; the first layers need no gradient of their inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from training.config import DistillConfig, ModelConfig, MultiSSLConfig
from training.model.transformer import MLP_RATIO

FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of a part of a step. `recomputed`: the forward pass again, where activations are not kept."""

    part: str
    forward: int
    backward: int
    recomputed: int = 0


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of one step of one process, part by part."""

    costs: tuple[Cost, ...]

    @property
    def forward(self) -> int:
        return sum(cost.forward for cost in self.costs)

    @property
    def model(self) -> int:
        """Forward and backward: what the mathematics asks for, and what a share of a device's peak is taken of."""
        return sum(cost.forward + cost.backward for cost in self.costs)

    @property
    def hardware(self) -> int:
        """The same with what `model.recompute` computes a second time."""
        return self.model + sum(cost.recomputed for cost in self.costs)


def multissl_flops(model: ModelConfig, config: MultiSSLConfig, batch_size: int, num_ranks: int = 1) -> StepFlops:
    """One Multi-SSL step over `batch_size` clips a rank, equations (1)-(10); the switches decide what is computed."""
    num_patches, patch_dim = model.grid.num_patches, model.grid.patch_dim
    num_views = config.intra + config.inter
    tokens = batch_size * num_patches
    costs = [
        _first("embedding", _linear((config.compares + config.intra) * tokens, patch_dim, model.width)),
        _aft(model, (config.compares + num_views) * batch_size),
    ]
    if config.inter:
        costs += _mae(model, batch_size, num_patches - num_masked(num_patches, config.mask_ratio))
    if config.restore:
        costs.append(_inner("restore", _linear(num_views * tokens, model.width, patch_dim)))
    if config.contrast:
        costs.append(_inner("contrast", _linear(num_views * batch_size, model.width, num_ranks * batch_size)))
    return StepFlops(tuple(costs))


def distill_flops(
    model: ModelConfig, config: DistillConfig, batch_size: int, num_classes: int, teacher_dim: int | None
) -> StepFlops:
    """One step on labels and, where `teacher_dim` is given, on a teacher's cached embeddings; equations (11)-(13)."""
    width = model.width
    classifier = _linear(batch_size, width, num_classes)
    is_trained = config.classify or teacher_dim is None
    costs = [
        _first("embedding", _linear(batch_size * model.grid.num_patches, model.grid.patch_dim, width)),
        _aft(model, batch_size),
        _inner("classifier", classifier) if is_trained else Cost("classifier", classifier, 0),
    ]
    if teacher_dim is not None:
        costs.append(_inner("perceptrons", 4 * _linear(batch_size, width, 2 * width)))
        if teacher_dim != width:
            costs.append(_inner("projection", _linear(batch_size, width, teacher_dim)))
    return StepFlops(tuple(costs))


def num_masked(num_patches: int, mask_ratio: float) -> int:
    """Patches that the inter mask hides: at least one, and never all (:func:`training.masks.inter_mask`)."""
    return min(max(round(mask_ratio * num_patches), 1), num_patches - 1)


def _linear(num_rows: int, num_inputs: int, num_outputs: int) -> int:
    return 2 * num_rows * num_inputs * num_outputs


def _transformer(num_clips: int, num_tokens: int, width: int, depth: int) -> int:
    """Per block: queries, keys, values and output (4 D^2 a token), the perceptron (8 D^2), QK^T and AV (2 L D)."""
    products = _linear(num_clips * num_tokens, width, (4 + 2 * MLP_RATIO) * width)
    return depth * (products + 2 * _linear(num_clips * num_tokens, num_tokens, width))


def _aft(model: ModelConfig, num_clips: int) -> Cost:
    num_tokens, width = num_clips * model.grid.num_patches, model.width
    forward = _transformer(num_clips, model.grid.num_patches, width, model.depth)
    # A block is computed again up to the last product, whose output the backward pass doesn't need.
    again = forward - model.depth * _linear(num_tokens, MLP_RATIO * width, width)
    return Cost("AFT", forward, 2 * forward, again if model.recompute else 0)


def _mae(model: ModelConfig, batch_size: int, num_visible: int) -> Iterator[Cost]:
    tokens = batch_size * num_visible
    yield _first("MAE embedding", _linear(tokens, model.grid.patch_dim, model.mae_width))
    yield _inner("MAE", _transformer(batch_size, num_visible, model.mae_width, model.mae_depth))
    yield _inner("MAE projection", _linear(tokens, model.mae_width, model.width))


def _inner(part: str, forward: int) -> Cost:
    return Cost(part, forward, 2 * forward)


def _first(part: str, forward: int) -> Cost:
    """A layer of pixels, whose gradient nobody wants."""
    return Cost(part, forward, forward)


def multissl_parameters(model: ModelConfig) -> int:
    """Parameters of :class:`training.model.networks.MultiSSLNetwork`."""
    patch_dim = model.grid.patch_dim
    mae = _embedding_parameters(model, model.mae_width) + _transformer_parameters(model.mae_width, model.mae_depth)
    projection_and_mask_token = _linear_parameters(model.mae_width, model.width) + model.width
    return _aft_parameters(model) + mae + projection_and_mask_token + _linear_parameters(model.width, patch_dim)


def student_parameters(model: ModelConfig, num_classes: int, teacher_dim: int | None) -> int:
    """Parameters of :class:`training.model.networks.Student`."""
    has_projection = teacher_dim is not None and teacher_dim != model.width
    projection = _linear_parameters(model.width, teacher_dim or 0) if has_projection else 0
    return _aft_parameters(model) + _linear_parameters(model.width, num_classes) + projection


def _linear_parameters(num_inputs: int, num_outputs: int) -> int:
    return (num_inputs + 1) * num_outputs


def _embedding_parameters(model: ModelConfig, width: int) -> int:
    return _linear_parameters(model.grid.patch_dim, width) + model.grid.num_patches * width


def _perceptron_parameters(width: int, hidden: int) -> int:
    return _linear_parameters(width, hidden) + _linear_parameters(hidden, width)


def _transformer_parameters(width: int, depth: int) -> int:
    norm, attention = 2 * width, _linear_parameters(width, 3 * width) + _linear_parameters(width, width)
    return depth * (2 * norm + attention + _perceptron_parameters(width, MLP_RATIO * width)) + norm


def _aft_parameters(model: ModelConfig) -> int:
    blocks = _transformer_parameters(model.width, model.depth)
    return _embedding_parameters(model, model.width) + blocks + 2 * _perceptron_parameters(model.width, 2 * model.width)


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes that one process needs for a step. Activations are an estimate, the others are exact.

    `parameters` counts the bfloat16 copies that autocast makes; `adamw` the means of the gradient and of its square.
    """

    parameters: int
    gradients: int
    adamw: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.adamw + self.activations


def multissl_memory(model: ModelConfig, config: MultiSSLConfig, batch_size: int, *, autocast: bool) -> StepMemory:
    """A Multi-SSL step over `batch_size` clips; with `autocast` in bfloat16, else in float32."""
    width, tokens = model.width, batch_size * model.grid.num_patches
    half = BFLOAT16_BYTES if autocast else FLOAT32_BYTES
    num_views = config.intra + config.inter
    pixels = model.grid.patch_dim * tokens
    # The inputs, their patches and the masked pixels; the embedding keeps its copies in bfloat16.
    kept = pixels * (3 * FLOAT32_BYTES + (config.compares + config.intra) * (half if autocast else 0))
    # restoration keeps its error, the divergence two distributions a token
    losses = config.restore * pixels * FLOAT32_BYTES + config.feature_kl * 2 * tokens * width * FLOAT32_BYTES
    kept += num_views * (losses + (config.restore * tokens * width * half if autocast else 0))
    if config.inter:
        visible = batch_size * (model.grid.num_patches - num_masked(model.grid.num_patches, config.mask_ratio))
        kept += _kept(visible, model.mae_width, model.mae_num_heads, model.mae_depth, half)
    kept += _aft_activations(model, (config.compares + num_views) * tokens, half)
    return _memory(multissl_parameters(model), kept, autocast=autocast)


def distill_memory(
    model: ModelConfig, batch_size: int, num_classes: int, teacher_dim: int | None, *, autocast: bool
) -> StepMemory:
    """A distillation step over `batch_size` clips."""
    tokens, half = batch_size * model.grid.num_patches, BFLOAT16_BYTES if autocast else FLOAT32_BYTES
    kept = model.grid.patch_dim * tokens * (2 * FLOAT32_BYTES + (half if autocast else 0))
    kept += _aft_activations(model, tokens, half)
    return _memory(student_parameters(model, num_classes, teacher_dim), kept, autocast=autocast)


def _memory(num_parameters: int, activations: int, *, autocast: bool) -> StepMemory:
    weights = num_parameters * FLOAT32_BYTES
    copies = num_parameters * BFLOAT16_BYTES if autocast else 0
    return StepMemory(weights + copies, weights, 2 * weights, activations)


def _aft_activations(model: ModelConfig, num_tokens: int, half: int) -> int:
    """What is kept for the backward pass, and the gradients in a block at its beginning."""
    width = model.width
    gradients = num_tokens * width * (2 * FLOAT32_BYTES + 2 * MLP_RATIO * half)
    if not model.recompute:
        return _kept(num_tokens, width, model.num_heads, model.depth, half) + gradients
    inputs_of_blocks = model.depth * num_tokens * width * FLOAT32_BYTES
    return inputs_of_blocks + _kept(num_tokens, width, model.num_heads, 1, half) + gradients


def _kept(num_tokens: int, width: int, num_heads: int, depth: int, half: int) -> int:
    """Per token and block: the norms' inputs and two statistics each in float32; in `half` bytes the norms' outputs,
    queries, keys, values, what attention mixed, and the perceptron's hidden layer before and after the GELU; and
    attention's sums, one a head. Then the last norm's input and output."""
    block = width * (2 * FLOAT32_BYTES + (6 + 2 * MLP_RATIO) * half) + (4 + num_heads) * FLOAT32_BYTES
    return num_tokens * (depth * block + 2 * width * FLOAT32_BYTES)
