"""Batches on their way to a CUDA device: page-locked in the background, so that copying them makes nobody wait."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestore.batches import Batch
from featurestore.readahead import read_ahead

NUM_AHEAD = 2


@dataclass(frozen=True)
class HostBatch:
    """A batch's arrays as tensors on the host; `about` has the rest of it, and an fbank without clips."""

    about: Batch
    fbank: Tensor
    hog: Tensor
    labels: Tensor
    teacher: Tensor | None
    teacher_logits: Tensor | None


def host_batch(batch: Batch, *, pin: bool = False) -> HostBatch:
    """The arrays as tensors, page-locked copies where `pin`; else of the same memory."""

    def tensor(array: NDArray[Any]) -> Tensor:
        values = torch.from_numpy(array)
        return values.pin_memory() if pin else values

    return HostBatch(
        about=replace(batch, fbank=np.empty((0, 0, 0), np.float16)) if pin else batch,
        fbank=tensor(batch.fbank),
        hog=tensor(batch.hog),
        labels=tensor(batch.labels),
        teacher=None if batch.teacher is None else tensor(batch.teacher),
        teacher_logits=None if batch.teacher_logits is None else tensor(batch.teacher_logits),
    )


def host_batches(batches: Iterator[Batch], device: torch.device) -> Iterator[HostBatch]:
    """The batches for a device: for CUDA page-locked by a thread, NUM_AHEAD ahead; its errors come out here."""
    if device.type != "cuda":
        return map(host_batch, batches)
    return read_ahead((host_batch(batch, pin=True) for batch in batches), NUM_AHEAD, "page-lock")
