"""Attention and blocks against formulas written out; where the weights start."""

import math

import pytest
import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.model.networks import MultiSSLNetwork, Student
from training.model.transformer import Attention, Block, Perceptron, Transformer


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("num_heads", [1, 3])
def test_attention_is_the_softmax_of_scaled_products(num_heads: int) -> None:
    attention, tokens, size = Attention(12, num_heads), rand(2, 5, 12), 12 // num_heads
    query, key, value = attention.qkv(tokens).split(12, dim=2)
    heads = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(attention(tokens), attention.output(torch.cat(heads, 2)))


def test_attention_does_not_know_places() -> None:
    attention, tokens = Attention(12, 3), rand(2, 5, 12)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(attention(tokens[:, order]), attention(tokens)[:, order])


def test_perceptron_and_block() -> None:
    perceptron, tokens = Perceptron(12, 20), rand(2, 5, 12)
    hidden = gelu(tokens @ perceptron.expand.weight.T + perceptron.expand.bias)
    torch.testing.assert_close(perceptron(tokens), hidden @ perceptron.contract.weight.T + perceptron.contract.bias)
    block = Block(12, 3)
    assert block.perceptron.expand.out_features == 48
    middle = tokens + block.attention(block.attention_norm(tokens))
    torch.testing.assert_close(block(tokens), middle + block.perceptron(block.perceptron_norm(middle)))


def test_the_transformer_ends_with_a_norm() -> None:
    features = Transformer(12, 2, 3)(10 * rand(2, 5, 12) + 3)
    torch.testing.assert_close(features.mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.var(-1, correction=0), torch.ones(2, 5), rtol=1e-3, atol=0)


def test_recomputed_activations_give_the_same_gradients() -> None:
    plain, again = Transformer(12, 2, 3), Transformer(12, 2, 3, recompute=True)
    again.load_state_dict(plain.state_dict())
    for transformer in (plain, again):
        transformer(rand(2, 5, 12)).square()[..., 0].sum().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(other.grad, one.grad)


def weights_of(kind: str, config: ModelConfig, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    network = MultiSSLNetwork(config, generator) if kind == "multissl" else Student(config, 3, 20, generator)
    return network.state_dict()


@pytest.mark.parametrize("kind", ["multissl", "student"])
def test_initialisation_depends_on_the_generator_alone(kind: str, tiny: ModelConfig) -> None:
    torch.manual_seed(1)
    first = weights_of(kind, tiny, 0)
    torch.manual_seed(2)
    again, other = weights_of(kind, tiny, 0), weights_of(kind, tiny, 1)
    assert all((first[name] == again[name]).all() for name in first)
    drawn = [name for name in first if first[name].ndim == 2 and "positions" not in name]
    assert all((first[name] != other[name]).any() for name in drawn)


def test_initialisation_is_glorots(tiny: ModelConfig) -> None:
    network = MultiSSLNetwork(tiny, torch.Generator().manual_seed(0))
    for part in network.modules():
        if isinstance(part, nn.Linear):
            bound = math.sqrt(6 / (part.in_features + part.out_features))
            assert part.weight.abs().max() <= bound
            assert part.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
            assert (part.bias == 0).all()
        if isinstance(part, nn.LayerNorm):
            assert (part.weight == 1).all()
    assert 0 < network.mae.mask_token.std() < 0.04
