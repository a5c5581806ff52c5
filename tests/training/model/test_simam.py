"""SimAM against a slow loop, and where the transformer has it."""

import math

import pytest
import torch
from torch import Tensor

from training.config import ModelConfig
from training.model.aft import AudioFeatureTransformer
from training.model.networks import MultiSSLNetwork
from training.model.simam import parameter_free_attention
from training.model.transformer import Block, Transformer


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def gated(tiny: ModelConfig) -> ModelConfig:
    return tiny.model_copy(update={"parameter_free_attention": True})


def test_every_value_by_itself() -> None:
    tokens = rand(2, 6, 3) * torch.tensor([0.01, 1.0, 30.0]) + 5
    gated = parameter_free_attention(tokens)
    for clip in range(2):
        for channel in range(3):
            values = tokens[clip, :, channel].double().tolist()
            mean = sum(values) / 6
            variance = sum((value - mean) ** 2 for value in values) / 5
            for place, value in enumerate(values):
                energy = (value - mean) ** 2 / (4 * (variance + 1e-4)) + 0.5
                expected = value / (1 + math.exp(-energy))
                assert gated[clip, place, channel].item() == pytest.approx(expected, rel=1e-5)


def test_by_hand() -> None:
    """Of 1, 0, 0, 0 the mean is 1/4 and the variance 1/4; patches that say the same get the lowest gate."""
    lit = parameter_free_attention(torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(1, 4, 1)).flatten()
    expected = 1 / (1 + math.exp(-(9 / 16 / (4 * 0.2501) + 0.5)))
    torch.testing.assert_close(lit, torch.tensor([expected, 0.0, 0.0, 0.0]))
    same = parameter_free_attention(torch.full((1, 4, 2), 3.0))
    torch.testing.assert_close(same, torch.full((1, 4, 2), 3 / (1 + math.exp(-0.5))))


def test_it_knows_neither_places_nor_other_clips() -> None:
    tokens, order = rand(2, 6, 3), torch.tensor([3, 1, 5, 0, 2, 4])
    gated = parameter_free_attention(tokens)
    torch.testing.assert_close(parameter_free_attention(tokens[:, order]), gated[:, order])
    torch.testing.assert_close(parameter_free_attention(tokens[1:]), gated[1:])


def test_a_block_gates_what_its_perceptron_says() -> None:
    block, tokens = Block(12, 3, gated=True), rand(2, 5, 12)
    middle = tokens + block.attention(block.attention_norm(tokens))
    mapped = block.perceptron(block.perceptron_norm(middle))
    torch.testing.assert_close(block(tokens), middle + parameter_free_attention(mapped))


def test_the_aft_has_it_where_it_is_set_and_the_mae_never(gated: ModelConfig, tiny: ModelConfig) -> None:
    network = MultiSSLNetwork(gated, torch.Generator().manual_seed(0))
    plain = MultiSSLNetwork(tiny, torch.Generator().manual_seed(0))
    plain.load_state_dict(network.state_dict())  # it has no parameters
    patches, ids_keep = rand(2, 128, 256), torch.arange(32).expand(2, -1)
    assert not torch.allclose(network.aft(patches), plain.aft(patches), atol=1e-2)
    assert torch.equal(network.mae(patches, ids_keep), plain.mae(patches, ids_keep))


def test_recomputed_activations_give_the_same_gradients(gated: ModelConfig) -> None:
    plain, again = (Transformer(12, 2, 3, gated=True, recompute=recompute) for recompute in (False, True))
    again.load_state_dict(plain.state_dict())
    for transformer in (plain, again):
        transformer(rand(2, 5, 12)).square()[..., 0].sum().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(other.grad, one.grad)
    aft = AudioFeatureTransformer(gated.model_copy(update={"recompute": True}))
    assert aft.transformer.recompute
    assert all(block.gated for block in aft.transformer.blocks)
