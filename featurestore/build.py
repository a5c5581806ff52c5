"""Builds a teacher's cache: every clip of a store through a frozen model, shard by shard."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestore.cachefiles import Output, TeacherAttributes, write_cache_checksums
from featurestore.loader import sequential_batches
from featurestore.store import Store
from featurestore.teachercache import TeacherCache, cache_lock, create_cache
from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput, WaveformInput
from featurestore.waveforms import read_waveform
from ingest.ledger import ClipError
from ingest.progress import ProgressDisplay
from manifests.errors import InputError

BATCH_SIZE = 16
NUM_DECODERS = 2


@dataclass(frozen=True)
class BuildResult:
    """Clips with a row, and those without and why."""

    cache: TeacherCache
    num_rows: int
    failures: list[str]


def build_teacher(store: Store, teacher: Teacher, name: str, *, with_tokens: bool = False) -> BuildResult:
    """Fills the cache `name` with `teacher`'s outputs for all clips; shards that are complete stay as they are.

    Raises InputError when the teacher doesn't fit the store, a cache of that name holds something else, or another
    process is building it.
    """
    _check_input(store, teacher, with_tokens)
    with cache_lock(store, name):
        return _build(store, teacher, name, with_tokens)


def _build(store: Store, teacher: Teacher, name: str, with_tokens: bool) -> BuildResult:
    cache = _open_cache(store, teacher, name, with_tokens)
    missing = {shard: cache.missing_rows(shard) for shard in range(store.snapshot.num_shards)}
    failures: list[str] = []
    with ProgressDisplay("clips", sum(map(len, missing.values()))) as display:
        for shard, rows in missing.items():
            if len(rows):
                values = cache.shard_values(shard)
                failed = _fill(values, store, teacher, rows, display)
                cache.write(shard, values)
                for row in cache.missing_rows(shard).tolist():
                    reason = failed.get(row, "the teacher's output is not finite in float16")
                    failures.append(f"{store.clip(row).key}: {reason}")
    write_cache_checksums(store, name)
    return BuildResult(cache, len(store) - len(failures), failures)


def _check_input(store: Store, teacher: Teacher, with_tokens: bool) -> None:
    if isinstance(teacher.input, FbankInput) and teacher.input.fbank != store.file.fbank:
        raise InputError(
            f"the teacher {teacher.name!r} takes fbanks of {teacher.input.fbank.num_frames} frames, and "
            f"{store.location} holds {store.file.fbank.num_frames}: ingest the store again with another --num-frames"
        )
    if isinstance(teacher.input, WaveformInput) and with_tokens:
        raise InputError(
            f"the teacher {teacher.name!r} takes waveforms, and clips of different lengths would have different "
            "numbers of tokens; leave --tokens out"
        )


def _open_cache(store: Store, teacher: Teacher, name: str, with_tokens: bool) -> TeacherCache:
    """Learns the shapes of the outputs from one second of noise, or one fbank of it."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(teacher.input, WaveformInput):
        probe = torch.rand(1, teacher.input.sample_rate_hz, generator=generator) - 0.5
    else:
        fbank = teacher.input.fbank
        probe = torch.randn(1, fbank.num_frames, fbank.num_mel_bins, generator=generator)
    shapes = {
        output: tuple(values.shape[1:])
        for output, values in _by_name(teacher.embed(probe)).items()
        if output != "tokens" or with_tokens
    }
    if with_tokens and "tokens" not in shapes:
        raise InputError(f"the teacher {teacher.name!r} has no tokens; leave --tokens out")
    attributes = TeacherAttributes(
        name=name,
        teacher=teacher.name,
        embedding_dim=teacher.embedding_dim,
        provenance=teacher.provenance,
        store_fingerprint=store.snapshot.fingerprint,
        snapshot=store.snapshot.number,
        vocabulary=teacher.vocabulary,
    )
    return create_cache(store, name, attributes, shapes)


def _by_name(output: TeacherOutput) -> dict[Output, Tensor]:
    named: dict[Output, Tensor | None] = {
        "embedding": output.embedding,
        "logits": output.logits,
        "tokens": output.tokens,
    }
    return {name: values for name, values in named.items() if values is not None}


def _fill(
    values: dict[Output, NDArray[np.float16]],
    store: Store,
    teacher: Teacher,
    rows: NDArray[np.int64],
    display: ProgressDisplay,
) -> dict[int, str]:
    """Puts the teacher's outputs for `rows` into their shard's arrays; returns rows that stay NaN, and why."""
    failures: dict[int, str] = {}
    for batch_rows, batch in _inputs(store, teacher, rows, failures):
        results = _by_name(teacher.embed(batch))
        for output, array in values.items():
            array[store.teacher_rows(batch_rows) % store.file.clips_per_shard] = results[output].float().cpu().numpy()
        display.advance(len(batch_rows), f"{len(failures)} failed")
    return failures


def _inputs(
    store: Store, teacher: Teacher, rows: NDArray[np.int64], failures: dict[int, str]
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """What the teacher takes, in batches; clips whose waveform can't be had are added to `failures`."""
    if isinstance(teacher.input, FbankInput):
        for batch in sequential_batches(store, rows, BATCH_SIZE):
            yield batch.rows, torch.from_numpy(batch.fbank).float()
        return
    for start in range(0, len(rows), BATCH_SIZE):
        part = rows[start : start + BATCH_SIZE]
        by_length: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}
        for row, waveform in zip(part.tolist(), _waveforms(store, part, teacher.input.sample_rate_hz), strict=True):
            if isinstance(waveform, ClipError):
                failures[row] = str(waveform)
            else:
                by_length.setdefault(waveform.size, []).append((row, waveform))
        # Only clips of one length go together: padding would change what the teacher says of them.
        for members in by_length.values():
            yield np.array([row for row, _ in members]), torch.from_numpy(np.stack([wave for _, wave in members]))


def _waveforms(store: Store, rows: NDArray[np.int64], sample_rate_hz: int) -> Iterator[NDArray[np.float32] | ClipError]:
    """Decodes side by side; an error stands in its clip's place."""

    def read(row: int) -> NDArray[np.float32] | ClipError:
        try:
            return read_waveform(store, row, sample_rate_hz)
        except ClipError as error:
            return error

    with ThreadPoolExecutor(NUM_DECODERS, "decode") as pool:
        yield from pool.map(read, rows.tolist())
