"""Augmentation of a batch on its device: what each clip undergoes is drawn by its key, and applied to all at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestore.batches import Batch
from featurestore.views import FLOOR, FLOOR_ROUNDING
from training.config import AugmentConfig, LabelAugmentConfig
from training.draws import clip_uniforms

NEPERS_PER_DB = math.log(10) / 10  # of power, which fbanks are the logarithm of


Uniforms = Callable[[str, int], NDArray[np.float64]]  # numbers (B, num) in [0, 1) by purpose


@dataclass(frozen=True)
class Drawn:
    """What the clips of a batch undergo; None: nothing of that kind.

    starts (B,): the first column of patches; gain_db (B,); partner (B,): mixup's, by position in the batch, and weight
    (B,): the clip's own, 1 where it isn't mixed; time_mask, freq_mask (B, 2): the first frame or mel bin that is
    masked, as a share of those where the band fits, and the band's width.
    """

    starts: Tensor | None = None
    gain_db: Tensor | None = None
    partner: Tensor | None = None
    weight: Tensor | None = None
    time_mask: Tensor | None = None
    freq_mask: Tensor | None = None


@dataclass(frozen=True)
class Augmentation:
    """What a stage does to its clips, and the names that its draws go by."""

    config: AugmentConfig
    seed: int
    stage: str

    def draw(self, batch: Batch, device: torch.device) -> Drawn:
        """What the clips of a batch undergo, by their keys and visits alone; on the device."""
        config = self.config
        visits = np.zeros(len(batch.keys), np.int64) if batch.visits is None else batch.visits

        def uniforms(purpose: str, num: int) -> NDArray[np.float64]:
            # Numbers for each purpose: switching one augmentation on leaves what the others draw as it was.
            return clip_uniforms(batch.keys, visits, self.seed, f"{self.stage}:{purpose}", num)

        found: dict[str, NDArray[Any]] = {}
        if batch.views is None:  # a teacher's views are rolled, and louder or softer, already
            if config.roll:
                found["starts"] = (uniforms("roll", 1)[:, 0] * batch.hog.shape[1]).astype(np.int64)
            if config.gain_db > 0:
                found["gain_db"] = config.gain_db * (2 * uniforms("gain", 1)[:, 0] - 1)
        if isinstance(config, LabelAugmentConfig):
            found |= _label_draws(config, np.asarray(batch.labels.any(1)), uniforms)
        return Drawn(**{name: _to_device(values, device) for name, values in found.items()})


def _label_draws(
    config: LabelAugmentConfig, labelled: NDArray[np.bool_], uniforms: Uniforms
) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    if config.mixup_share > 0:
        found["partner"], found["weight"] = _mixup(config, labelled, uniforms)
    for name, widest in (("time_mask", config.time_mask_frames), ("freq_mask", config.freq_mask_bins)):
        if widest > 0:
            place, width = uniforms(name, 2).T
            found[name] = np.stack([place, np.floor(width * (widest + 1))], 1)
    return found


def _mixup(
    config: LabelAugmentConfig, labelled: NDArray[np.bool_], uniforms: Uniforms
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Partners and weights. A labelled clip is mixed with labelled ones only: half a label would say of the other half
    that it has none.
    """
    numbers = uniforms("mixup", 2 + 2 * config.mixup_alpha - 1)
    # The median of 2 a - 1 uniform numbers has the distribution Beta(a, a).
    weight = np.median(numbers[:, 2:], axis=1)
    itself = np.arange(len(numbers))
    partner = itself.copy()
    for group in (np.flatnonzero(labelled), np.flatnonzero(~labelled)):
        shuffled = group[np.argsort(numbers[group, 0], kind="stable")]
        partner[shuffled] = np.roll(shuffled, 1)
    mixed = (numbers[:, 1] < config.mixup_share) & (partner != itself)
    return np.where(mixed, partner, itself), np.where(mixed, weight, 1.0)


def _to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    # From page-locked memory, or the host would wait for the device.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def roll(values: Tensor, starts: Tensor, num_kept: int) -> Tensor:
    """Circular starts: `values` (B, T, ...) from places `starts` (B,) on, `num_kept` places of them."""
    places = (torch.arange(num_kept, device=values.device) + starts[:, None]) % values.shape[1]
    return values[torch.arange(len(values), device=values.device)[:, None], places]


def gain(fbank: Tensor, gain_db: Tensor) -> Tensor:
    """`fbank` (B, T, F), natural logarithms of power, louder by `gain_db` (B,); what is at the floor stays there."""
    louder = (fbank + gain_db[:, None, None] * NEPERS_PER_DB).clamp_(min=FLOOR)
    return torch.where(fbank > FLOOR + FLOOR_ROUNDING, louder, FLOOR)


def mix_power(fbank: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """The fbanks of w a + (1 - w) b, of waveforms a and b whose phases have nothing to do with each other.

    `fbank` (B, T, F), natural logarithms of power; `partner` (B,) positions of b; `weight` (B,) w in [0, 1]: powers add
    as w^2 A + (1 - w)^2 B. After mixup of waveforms (AST, Gong et al. 2021).
    """
    tiny = torch.finfo(fbank.dtype).tiny
    own, other = (2 * part.clamp(min=tiny).log()[:, None, None] for part in (weight, 1 - weight))
    mixed = torch.logaddexp(fbank + own, fbank[partner] + other).clamp_(min=FLOOR)
    return torch.where(weight[:, None, None] == 1, fbank, mixed)


def mix(values: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """w values + (1 - w) partner's values, of labels or a teacher's rows (B, C); an unmixed row stays as it is."""
    share = weight[:, None].to(values.dtype)
    return torch.where(share == 1, values, share * values + (1 - share) * values[partner])


def mask_bands(fbank: Tensor, time_mask: Tensor | None, freq_mask: Tensor | None) -> Tensor:
    """SpecAugment (Park et al. 2019): a band of frames and one of mel bins of a normalised `fbank` (B, T, F) become 0.

    Masks (B, 2): the first place, as a share of those where the band fits, and the band's width.
    """
    for dim, mask in ((1, time_mask), (2, freq_mask)):
        if mask is None:
            continue
        size = fbank.shape[dim]
        width = mask[:, 1:].clamp(max=size)
        start = (mask[:, :1] * (size - width + 1)).floor()
        places = torch.arange(size, device=fbank.device)
        hidden = (places >= start) & (places < start + width)
        fbank = fbank.masked_fill(hidden[:, :, None] if dim == 1 else hidden[:, None, :], 0.0)
    return fbank
