"""Batches as tensors on the host: of the same memory, and on a CPU one after the other, with no thread between."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from featurestore.batches import Batch
from training.hostbatch import host_batch, host_batches

CPU = torch.device("cpu")


def make_batch(number: int = 0, *, with_teacher: bool = True) -> Batch:
    return Batch(
        rows=np.arange(2),
        keys=["a", "b"],
        fbank=np.full((2, 32, 16), number, np.float16),
        hog=np.full((2, 2, 1), number, np.float32),
        labels=np.eye(2, dtype=np.float32),
        teacher=np.full((2, 4), number, np.float32) if with_teacher else None,
        teacher_logits=np.full((2, 3), number, np.float32) if with_teacher else None,
    )


def test_tensors_share_the_arrays_memory() -> None:
    batch = make_batch(3)
    host = host_batch(batch)
    assert host.about is batch
    pairs = [
        (host.fbank, batch.fbank),
        (host.hog, batch.hog),
        (host.labels, batch.labels),
        (host.teacher, batch.teacher),
        (host.teacher_logits, batch.teacher_logits),
    ]
    for tensor, array in pairs:
        assert tensor is not None
        assert array is not None
        assert tensor.data_ptr() == array.ctypes.data
        assert (tuple(tensor.shape), tensor.numpy().dtype) == (array.shape, array.dtype)


def test_what_a_batch_lacks_stays_absent() -> None:
    host = host_batch(make_batch(with_teacher=False))
    assert (host.teacher, host.teacher_logits) == (None, None)


def test_on_a_cpu_batches_come_as_they_are_asked_for() -> None:
    made: list[tuple[int, str]] = []

    def batches() -> Iterator[Batch]:
        for number in range(5):
            made.append((number, threading.current_thread().name))
            yield make_batch(number)

    found = host_batches(batches(), CPU)
    assert made == []
    assert float(next(found).fbank[0, 0, 0]) == 0.0
    assert made == [(0, threading.current_thread().name)]
    assert [float(batch.fbank[0, 0, 0]) for batch in found] == [1.0, 2.0, 3.0, 4.0]


def test_an_error_of_the_batches_comes_out() -> None:
    def batches() -> Iterator[Batch]:
        yield make_batch()
        raise OSError("the shard is gone")

    found = host_batches(batches(), CPU)
    next(found)
    with pytest.raises(OSError, match="the shard is gone"):
        next(found)
