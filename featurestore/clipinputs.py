"""What teachers take of clips, read and decoded ahead of them, in batches that depend on the clips alone."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.embedder import ClipInputs
from featurestore.loader import sequential_batches
from featurestore.store import Store
from featurestore.teachers.base import FbankInput, TeacherInput, WaveformInput
from featurestore.views import View, apply_to_fbank, apply_to_waveform
from featurestore.waveforms import read_waveform
from ingest.ledger import ClipError
from manifests.geometry import FbankSpec

BATCH_SIZE = 16
NUM_DECODERS = 2
# Decoded clips that wait for the teacher, 1.3 MB each at 32 kHz.
NUM_DECODED_AHEAD = 2 * BATCH_SIZE


@dataclass(frozen=True, slots=True)
class ClipBatch:
    """`inputs` of the clips of `rows`; `failures`: rows of this batch whose waveforms can't be had, and why."""

    rows: NDArray[np.int64]
    inputs: ClipInputs
    failures: dict[int, str]


def read_clips(store: Store, rows: NDArray[np.int64], takes: Sequence[TeacherInput]) -> Iterator[ClipBatch]:
    """All of `rows`, up to BATCH_SIZE at a time, with everything in `takes`.

    A clip fails when any one of its waveforms can't be had.
    """
    of_waveforms = list(dict.fromkeys(one for one in takes if isinstance(one, WaveformInput)))
    of_fbanks = list(dict.fromkeys(one for one in takes if isinstance(one, FbankInput)))
    rates_hz = [one.sample_rate_hz for one in of_waveforms]
    with closing(_waveforms(store, rows, rates_hz)) as sounds, closing(_fbanks(store, rows, bool(of_fbanks))) as fbanks:
        for start in range(0, len(rows), BATCH_SIZE):
            part = rows[start : start + BATCH_SIZE]
            decoded = list(islice(sounds, len(part)))
            had = {place: said for place, said in enumerate(decoded) if not isinstance(said, ClipError)}
            inputs: dict[TeacherInput, list[NDArray[Any]]] = {
                one: [waveforms[number] for waveforms in had.values()] for number, one in enumerate(of_waveforms)
            }
            values = list(islice(fbanks, len(part)))
            inputs |= {one: [values[place] for place in had] for one in of_fbanks}
            failures = {int(part[place]): str(said) for place, said in enumerate(decoded) if place not in had}
            yield ClipBatch(part[list(had)], inputs, failures)


def view_inputs(inputs: ClipInputs, views: Sequence[View], spec: FbankSpec) -> ClipInputs:
    """The inputs of one augmented view of each clip, of `inputs` and each clip's view; `spec` is the store's."""

    def see(one: TeacherInput, array: NDArray[Any], view: View) -> NDArray[np.float32]:
        if isinstance(one, FbankInput):
            return apply_to_fbank(array, view)
        return apply_to_waveform(array, view, one.sample_rate_hz, spec)

    return {
        one: [see(one, array, view) for array, view in zip(arrays, views, strict=True)]
        for one, arrays in inputs.items()
    }


def _fbanks(store: Store, rows: NDArray[np.int64], wanted: bool) -> Generator[NDArray[np.float16]]:
    if wanted:
        for batch in sequential_batches(store, rows, BATCH_SIZE):
            yield from batch.fbank


def _waveforms(
    store: Store, rows: NDArray[np.int64], rates_hz: Sequence[int]
) -> Generator[list[NDArray[np.float32]] | ClipError]:
    """A clip's waveforms at all rates, decoded side by side and ahead; an error stands in its clip's place."""

    def read(row: int) -> list[NDArray[np.float32]] | ClipError:
        try:
            return [read_waveform(store, row, rate_hz) for rate_hz in rates_hz]
        except ClipError as error:
            return error

    with ThreadPoolExecutor(NUM_DECODERS, "decode") as pool:
        ahead: deque[Future[list[NDArray[np.float32]] | ClipError]] = deque()
        try:
            for row in rows.tolist():
                ahead.append(pool.submit(read, row))
                if len(ahead) > NUM_DECODED_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()
