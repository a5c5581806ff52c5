"""A loader's batch to what the networks see: on the device, normalised, rolled by whole patches, cut to size."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featurestore.loader import Batch
from featurestore.views import FLOOR, FLOOR_ROUNDING
from manifests.geometry import PatchGrid


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

    teacher (B, D), and teacher_logits (B, C of the teacher), are None where there are none.
    """

    fbank: Tensor
    gradient_magnitude: Tensor
    labels: Tensor
    teacher: Tensor | None
    teacher_logits: Tensor | None


def prepare(
    batch: Batch, grid: PatchGrid, normalisation: Normalisation, device: torch.device, generator: torch.Generator | None
) -> Inputs:
    """Moves a batch to the device. With a generator each clip begins at a random patch and wraps around.

    A batch of views becomes what the teacher heard; each is rolled already, by frames, so that its HOG is none of it.
    """

    def to_device(array: object) -> Tensor:
        return torch.as_tensor(array).to(device, non_blocking=True)

    fbank, hog = to_device(batch.fbank), to_device(batch.hog)
    if batch.views is not None:
        fbank, generator = _as_views(fbank, to_device(batch.views.roll_frames), to_device(batch.views.gain_db)), None
    num_clips, num_columns = hog.shape[:2]
    columns = torch.arange(grid.num_time, device=device).expand(num_clips, -1)  # of patches, in time
    if generator is not None:
        start = torch.randint(num_columns, (num_clips, 1), generator=generator, device=generator.device)
        columns = (columns + start.to(device)) % num_columns
    frames = (columns[..., None] * grid.patch_size + torch.arange(grid.patch_size, device=device)).flatten(1)
    clips = torch.arange(num_clips, device=device)[:, None]
    return Inputs(
        fbank=normalisation(fbank[clips, frames]),
        gradient_magnitude=hog[clips, columns].flatten(1),
        labels=to_device(batch.labels),
        teacher=None if batch.teacher is None else to_device(batch.teacher),
        teacher_logits=None if batch.teacher_logits is None else to_device(batch.teacher_logits),
    )


def _as_views(fbank: Tensor, roll_frames: Tensor, gain_db: Tensor) -> Tensor:
    """As :func:`featurestore.views.apply_to_fbank`, of clips (B, T, F), with a roll and a gain each (B,)."""
    num_frames = fbank.shape[1]
    frames = (torch.arange(num_frames, device=fbank.device) - roll_frames[:, None]) % num_frames
    rolled = fbank.float()[torch.arange(len(fbank), device=fbank.device)[:, None], frames]
    louder = (rolled + gain_db[:, None, None] * (math.log(10) / 10)).clamp_(min=FLOOR)
    return torch.where(rolled > FLOOR + FLOOR_ROUNDING, louder, FLOOR)
