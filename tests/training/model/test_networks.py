"""The networks: where the MAE puts its tokens, what is pooled, and which widths meet."""

import pytest
import torch
from torch import Tensor

from training.config import ModelConfig
from training.model.aft import AudioFeatureTransformer, pool
from training.model.networks import MultiSSLNetwork, Student


@pytest.fixture
def patches() -> Tensor:
    return torch.randn(2, 128, 256, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def network(tiny: ModelConfig) -> MultiSSLNetwork:
    return MultiSSLNetwork(tiny, torch.Generator().manual_seed(0))


def test_mae_puts_tokens_at_their_places(network: MultiSSLNetwork, patches: Tensor) -> None:
    mae, ids_keep = network.mae, torch.tensor([[0, 3, 9], [1, 2, 127]])
    tokens = mae(patches, ids_keep)
    assert tokens.shape == (2, 128, 16)
    for clip in range(2):
        kept = ids_keep[clip].tolist()
        placed = mae.embedding(patches[clip, kept]) + mae.embedding.positions[kept]
        encoded = mae.project(mae.transformer(placed[None]))[0]
        torch.testing.assert_close(tokens[clip, kept], encoded)
        others = [place for place in range(128) if place not in kept]
        assert (tokens[clip, others] == mae.mask_token).all()


def test_mae_sees_only_the_visible(network: MultiSSLNetwork, patches: Tensor) -> None:
    ids_keep = torch.tensor([[0, 3, 9], [1, 2, 127]])
    changed = torch.full_like(patches, float("nan"))
    for clip in range(2):
        changed[clip, ids_keep[clip]] = patches[clip, ids_keep[clip]]
    assert (network.mae(changed, ids_keep) == network.mae(patches, ids_keep)).all()


def test_every_weight_of_the_mae_learns(network: MultiSSLNetwork, patches: Tensor) -> None:
    network.mae(patches, torch.arange(32).expand(2, -1)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.mae.parameters())


def test_the_aft_adds_positions(tiny: ModelConfig, patches: Tensor) -> None:
    aft = AudioFeatureTransformer(tiny)
    tokens = aft.embedding(patches)
    torch.testing.assert_close(aft(patches), aft.transformer(tokens + aft.embedding.positions))
    assert not torch.allclose(aft(patches), aft.transformer(tokens))
    assert (pool(aft(patches)) == aft(patches).mean(1)).all()


@pytest.mark.parametrize("teacher_dim", [None, 16, 24])
def test_the_student(tiny: ModelConfig, patches: Tensor, teacher_dim: int | None) -> None:
    student = Student(tiny, 5, teacher_dim, torch.Generator().manual_seed(0))
    output = student(patches)
    torch.testing.assert_close(output.pooled, student.aft(patches).mean(1))
    torch.testing.assert_close(output.logits, student.classifier(output.pooled))
    assert output.logits.shape == (2, 5)
    # The perceptrons are width - 2 width - width, twice.
    sizes = [(part.expand.in_features, part.expand.out_features) for part in student.aft.perceptrons]
    assert sizes == [(16, 32), (16, 32)]
    if teacher_dim is None:
        assert output.regressed is None
        return
    mapped = student.aft.perceptrons(output.pooled)
    expected = mapped if teacher_dim == 16 else mapped @ student.projection.weight.T + student.projection.bias
    assert output.regressed is not None
    torch.testing.assert_close(output.regressed, expected)
    assert output.regressed.shape == (2, teacher_dim)


def test_a_student_without_labels(tiny: ModelConfig) -> None:
    """torch would warn of its classifier's empty weights, and warnings are errors here."""
    student = Student(tiny, 0, 16, torch.Generator().manual_seed(0))
    assert student(torch.zeros(2, tiny.grid.num_patches, 256)).logits.shape == (2, 0)
