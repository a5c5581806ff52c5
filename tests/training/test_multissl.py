"""The Multi-SSL step: its sum, its switches, its views, its target."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from training import losses
from training.config import ModelConfig, MultiSSLConfig, OptimiserConfig
from training.inputs import Inputs
from training.masks import inter_mask, intra_mask
from training.model.networks import MultiSSLNetwork
from training.model.patches import patchify
from training.multissl import multissl_losses, total
from training.prior import saliency

KINDS = ("restore", "mse", "kl", "contrast")
TERMS = {f"{view}_{kind}" for view in ("intra", "inter") for kind in KINDS}


WATCHED = {"loss", "feature_spread"}


def configured(**changes: Any) -> MultiSSLConfig:
    return MultiSSLConfig(optimiser=OptimiserConfig(epochs=1, batch_size=4, peak_lr=1e-3), **changes)


@pytest.fixture
def network(tiny: ModelConfig) -> MultiSSLNetwork:
    return MultiSSLNetwork(tiny, torch.Generator().manual_seed(0))


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(9)


@contextmanager
def restored_from(network: MultiSSLNetwork) -> Iterator[list[Tensor]]:
    """The features that are restored, (intra, inter)."""
    seen: list[Tensor] = []
    handle = network.restore.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    yield seen
    handle.remove()


def test_total_by_hand() -> None:
    terms = {name: torch.tensor(float(10**index)) for index, name in enumerate(("a_restore", "b_mse", "a_kl"))}
    terms["b_contrast"] = torch.tensor(1000.0)
    assert total(terms, configured(alpha=0.5, beta=3.0)).item() == 0.5 * (1 + 10) + 3 * 100 + 1000


def test_loss_is_the_weighted_sum(network: MultiSSLNetwork, inputs: Inputs) -> None:
    terms = multissl_losses(network, inputs, configured(alpha=0.25, beta=2.0), draw())
    assert set(terms) == {"loss", "feature_spread"} | TERMS
    parts = {kind: terms[f"intra_{kind}"] + terms[f"inter_{kind}"] for kind in KINDS}
    expected = 0.25 * (parts["restore"] + parts["mse"]) + 2 * parts["kl"] + parts["contrast"]
    torch.testing.assert_close(terms["loss"], expected)
    assert all(term.ndim == 0 and term > 0 for term in terms.values())


@pytest.mark.parametrize("switch", ["intra", "inter", "restore", "feature_mse", "feature_kl", "contrast"])
def test_a_switch_removes_its_terms_alone(switch: str, network: MultiSSLNetwork, inputs: Inputs) -> None:
    name = switch.removeprefix("feature_")
    terms = multissl_losses(network, inputs, configured(**{switch: False}), draw())
    assert set(terms) - WATCHED == {term for term in TERMS if name not in term.split("_")}
    whole = multissl_losses(network, inputs, configured(), draw())
    # Nor does it change the masks of the others.
    for term in set(terms) - WATCHED:
        torch.testing.assert_close(terms[term], whole[term], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("view", ["intra", "inter"])
def test_restoration_alone_does_without_the_raw_view(view: str, network: MultiSSLNetwork, inputs: Inputs) -> None:
    other = {"intra": "inter", "inter": "intra"}[view]
    config = configured(feature_mse=False, feature_kl=False, contrast=False, **{other: False})
    encoded = []
    handle = network.aft.transformer.register_forward_pre_hook(lambda _, given: encoded.append(len(given[0])))
    alone = multissl_losses(network, inputs, config, draw())
    handle.remove()
    assert encoded == [len(inputs.fbank)]
    assert set(alone) - WATCHED == {f"{view}_restore"}
    whole = multissl_losses(network, inputs, configured(), draw())
    torch.testing.assert_close(alone["loss"], whole[f"{view}_restore"], rtol=1e-4, atol=1e-6)


def test_one_batch_equals_three_passes(network: MultiSSLNetwork, inputs: Inputs) -> None:
    config, generator, aft = configured(), draw(), network.aft
    with torch.no_grad():
        terms = multissl_losses(network, inputs, config, draw())
        target, prior = patchify(inputs.fbank, network.grid), saliency(inputs.gradient_magnitude)
        hidden = intra_mask(4, network.grid, 0.5, generator)
        mask = inter_mask(prior, 0.75, "hog", generator)
        raw = aft(target)
        intra = aft(patchify(torch.where(hidden, 0.0, inputs.fbank), network.grid))
        inter = aft.encode(aft.place(network.mae(target, mask.ids_keep)))
        for view, features, counted in (("intra", intra, None), ("inter", inter, mask.masked)):
            expected = {
                "restore": losses.restoration(network.restore(features), target, prior, counted),
                "mse": losses.feature_mse(features, raw),
                "kl": losses.feature_kl(features, raw),
                "contrast": losses.contrast(features.mean(1), raw.mean(1), 0.1),
            }
            for kind, value in expected.items():
                torch.testing.assert_close(terms[f"{view}_{kind}"], value, rtol=1e-4, atol=1e-6)


def test_without_hog_weight_all_patches_count_alike(network: MultiSSLNetwork, inputs: Inputs) -> None:
    off = multissl_losses(network, inputs, configured(hog_weight=False, sampling="uniform"), draw())
    weighted = multissl_losses(network, inputs, configured(sampling="uniform"), draw())
    even = replace(inputs, gradient_magnitude=torch.ones(4, 128))  # S = 1
    ones = multissl_losses(network, even, configured(sampling="uniform"), draw())
    for name in off:
        torch.testing.assert_close(off[name], ones[name])
    for name in ("intra_restore", "inter_restore"):
        assert abs(off[name] - weighted[name]) > 1e-4
    assert off["inter_kl"] == weighted["inter_kl"]


def test_the_inter_view_sees_only_visible_patches(network: MultiSSLNetwork, inputs: Inputs) -> None:
    config, generator = configured(intra=False), draw()
    intra_mask(4, network.grid, 0.5, generator)
    masked = inter_mask(saliency(inputs.gradient_magnitude), 0.75, "hog", generator).masked
    pixels = masked.reshape(4, 16, 8).repeat_interleave(16, 1).repeat_interleave(16, 2)
    noise = torch.randn(4, 256, 128, generator=torch.Generator().manual_seed(1))
    with restored_from(network) as seen:
        multissl_losses(network, inputs, config, draw())
        multissl_losses(network, replace(inputs, fbank=torch.where(pixels, noise, inputs.fbank)), config, draw())
        multissl_losses(network, replace(inputs, fbank=torch.where(pixels, inputs.fbank, noise)), config, draw())
    torch.testing.assert_close(seen[1], seen[0])
    assert (seen[2] - seen[0]).abs().max() > 0.1


def test_the_target_is_the_true_fbank(network: MultiSSLNetwork, inputs: Inputs) -> None:
    with torch.no_grad():
        network.restore.weight.zero_()
        network.restore.bias.fill_(0.5)
        terms = multissl_losses(network, inputs, configured(hog_weight=False), draw())
        # The intra view's hidden pixels count with their true values.
        torch.testing.assert_close(terms["intra_restore"], (inputs.fbank - 0.5).square().mean())
        generator = draw()
        intra_mask(4, network.grid, 0.5, generator)
        masked = inter_mask(saliency(inputs.gradient_magnitude), 0.75, "hog", generator).masked
        errors = (patchify(inputs.fbank, network.grid) - 0.5).square().mean(2)
        torch.testing.assert_close(terms["inter_restore"], errors[masked].mean())


def test_the_intra_view_is_zero_where_it_is_masked(network: MultiSSLNetwork, inputs: Inputs) -> None:
    hidden = intra_mask(4, network.grid, 0.5, draw())
    other = replace(inputs, fbank=torch.where(hidden, 7.0, inputs.fbank))
    zeroed = replace(inputs, fbank=torch.where(hidden, 0.0, inputs.fbank))
    with restored_from(network) as seen:
        for some in (inputs, other, zeroed):
            multissl_losses(network, some, configured(inter=False), draw())
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(seen[2], network.aft(patchify(zeroed.fbank, network.grid)))


def test_every_weight_learns_but_the_perceptrons(network: MultiSSLNetwork, inputs: Inputs) -> None:
    multissl_losses(network, inputs, configured(), draw())["loss"].backward()
    for name, weight in network.named_parameters():
        learns = weight.grad is not None and bool(weight.grad.abs().sum() > 0)
        assert learns != name.startswith("aft.perceptrons"), name
