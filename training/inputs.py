"""A loader's batch to what the networks see: on the device, augmented, normalised, cut to size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from featurestore.batches import Batch
from manifests.geometry import PatchGrid
from training.augment import Augmentation, Drawn, gain, mask_bands, mix, mix_power, roll
from training.hostbatch import HostBatch, host_batch


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of all fbank values of a store."""

    mean: float
    std: float

    def __call__(self, fbank: Tensor) -> Tensor:
        return (fbank.float() - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class Inputs:
    """fbank (B, num_frames, F) float32, normalised; gradient_magnitude (B, L); labels (B, C), multi-hot.

    teacher (B, D), and teacher_logits (B, C of the teacher), are None where there are none. With mixup, `mixup` says
    with whose clip (B,) each is mixed and its own weight (B,): the logits are not mixed, their probabilities are to be.
    """

    fbank: Tensor
    gradient_magnitude: Tensor
    labels: Tensor
    teacher: Tensor | None
    teacher_logits: Tensor | None
    mixup: tuple[Tensor, Tensor] | None = None


def prepare(
    batch: Batch | HostBatch,
    grid: PatchGrid,
    normalisation: Normalisation,
    device: torch.device,
    augmentation: Augmentation | None = None,
) -> Inputs:
    """Moves a batch to the device, augments it there, and cuts it to the frames that the model takes.

    A batch of views becomes what the teacher heard; each is rolled already, by frames, so that its HOG is none of it.
    Mixup leaves the HOG as it is: labels and a prior are not used together.
    """

    host = batch if isinstance(batch, HostBatch) else host_batch(batch)
    drawn = Drawn() if augmentation is None else augmentation.draw(host.about, device)

    def to_device(values: Tensor) -> Tensor:
        return values.to(device, non_blocking=True)

    mixup = None if drawn.partner is None or drawn.weight is None else (drawn.partner, drawn.weight)

    def mixed(rows: Tensor) -> Tensor:
        return to_device(rows) if mixup is None else mix(to_device(rows), *mixup)

    fbank, hog = to_device(host.fbank), to_device(host.hog)
    if (views := host.about.views) is not None:
        starts, gain_db = (to_device(torch.from_numpy(values)) for values in (-views.roll_frames, views.gain_db))
        fbank = gain(roll(fbank, starts, fbank.shape[1]).float(), gain_db)
    if drawn.starts is None:
        fbank, hog = fbank[:, : grid.num_frames], hog[:, : grid.num_time]
    else:
        fbank = roll(fbank, drawn.starts * grid.patch_size, grid.num_frames)
        hog = roll(hog, drawn.starts, grid.num_time)
    if drawn.gain_db is not None:
        fbank = gain(fbank.float(), drawn.gain_db)
    if mixup is not None:
        fbank = mix_power(fbank.float(), *mixup)
    return Inputs(
        fbank=mask_bands(normalisation(fbank), drawn.time_mask, drawn.freq_mask),
        gradient_magnitude=hog.flatten(1),
        labels=mixed(host.labels),
        teacher=None if host.teacher is None else mixed(host.teacher),
        teacher_logits=None if host.teacher_logits is None else to_device(host.teacher_logits),
        mixup=mixup,
    )
