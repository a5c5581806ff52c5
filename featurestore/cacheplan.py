"""What a teacher's cache of a store will hold: decided, and refused where it can't be, before any work."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from featurestore.cachefiles import VIEWS_OF, Output, Precision, TeacherAttributes
from featurestore.embedder import ClipInputs, Embedder
from featurestore.store import Store
from featurestore.teachers.base import FbankInput, Teacher, TeacherInput, WaveformInput
from featurestore.teachers.ensemble import Ensemble
from manifests.errors import InputError

FLOAT16_BYTES = 2
# Of what zarr's codecs take in one piece.
MAX_CHUNK_BYTES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What is kept besides the outputs for each clip: tokens, and `num_views` augmented views drawn by `views_seed`.

    `precision` auto: bfloat16 where the teachers run on CUDA, else float32.
    """

    with_tokens: bool = False
    precision: Literal["auto"] | Precision = "auto"
    num_views: int = 0
    views_seed: int = 0


@dataclass(frozen=True)
class CachePlan:
    """A cache of the name `name` in `store`, to be filled by `ensemble`; `row_shapes`: of each array, for one clip."""

    store: Store
    ensemble: Ensemble
    name: str
    options: CacheOptions
    row_shapes: dict[Output, tuple[int, ...]]

    def precision(self, on_cuda: bool) -> Precision:
        """What the teachers are run in."""
        chosen = self.options.precision
        if chosen == "auto":
            return "bfloat16" if on_cuda else "float32"
        return chosen

    def attributes(self, precision: Precision) -> TeacherAttributes:
        """What the cache says of itself."""
        return TeacherAttributes(
            name=self.name,
            teacher=self.ensemble.name,
            embedding_dim=self.ensemble.embedding_dim,
            provenance=self.ensemble.provenance,
            store_fingerprint=self.store.snapshot.fingerprint,
            snapshot=self.store.snapshot.number,
            vocabulary=self.ensemble.vocabulary,
            inputs=tuple(describe_input(member.input) for member in self.ensemble.members),
            precision=precision,
            num_views=self.options.num_views,
            views_seed=self.options.views_seed,
        )

    def num_bytes(self, output: Output) -> int:
        """The size of an array on disk, of all clips, before compression, which takes off a tenth."""
        return len(self.store) * FLOAT16_BYTES * int(np.prod(self.row_shapes[output]))


def plan_cache(store: Store, ensemble: Ensemble, name: str, options: CacheOptions) -> CachePlan:
    """The cache that `options` ask for. Raises InputError where the teachers don't fit the store or the options."""
    for member in ensemble.members:
        _check_input(store, member)
    if options.with_tokens and len(ensemble.members) > 1:
        raise InputError("each member of an ensemble has tokens of its own; leave --tokens out, or give one --model")
    shapes = _probe(store, ensemble, options.with_tokens)
    if options.num_views:
        shapes |= {of: (options.num_views, *shapes[one]) for one, of in VIEWS_OF.items() if one in shapes}
    for output, shape in shapes.items():
        _check_chunk(store, output, shape)
    return CachePlan(store, ensemble, name, options, shapes)


def describe_input(one: TeacherInput) -> dict[str, object]:
    """What a teacher is fed, as a cache keeps it."""
    if isinstance(one, WaveformInput):
        return {"kind": "waveform", "sample_rate_hz": one.sample_rate_hz}
    return {"kind": "fbank", **one.fbank.model_dump(mode="json")}


def _check_input(store: Store, teacher: Teacher) -> None:
    if isinstance(teacher.input, FbankInput) and teacher.input.fbank != store.file.fbank:
        raise InputError(
            f"the teacher {teacher.name!r} takes fbanks of {teacher.input.fbank.num_frames} frames, and "
            f"{store.location} holds {store.file.fbank.num_frames}: ingest the store again with another --num-frames"
        )


def _probe(store: Store, ensemble: Ensemble, with_tokens: bool) -> dict[Output, tuple[int, ...]]:
    """Learns the shapes of the outputs from one second of noise, and where there are tokens from a whole window too."""
    window_s = store.file.fbank.num_samples / store.file.fbank.sample_rate_hz
    embedder = Embedder(ensemble, "float32", "cpu", with_tokens=with_tokens)
    shapes = _shapes(embedder(_noise(ensemble, 1.0)))
    if not with_tokens:
        return shapes
    (teacher,) = ensemble.members
    if "tokens" not in shapes:
        raise InputError(f"the teacher {teacher.name!r} has no tokens; leave --tokens out")
    if isinstance(teacher.input, WaveformInput):
        longer = _shapes(embedder(_noise(ensemble, window_s)))
        if longer != shapes:
            raise InputError(
                f"the teacher {teacher.name!r} gives clips of different lengths different numbers of tokens "
                f"({shapes['tokens'][0]} of 1 s, {longer['tokens'][0]} of {window_s:.1f} s), and an array has one; "
                "leave --tokens out"
            )
    return shapes


def _shapes(outputs: dict[Output, np.ndarray]) -> dict[Output, tuple[int, ...]]:
    return {output: tuple(values.shape[1:]) for output, values in outputs.items()}


def _noise(ensemble: Ensemble, duration_s: float) -> ClipInputs:
    return {member.input: [_noise_for(member.input, duration_s).numpy()] for member in ensemble.members}


def _noise_for(one: TeacherInput, duration_s: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(one, WaveformInput):
        return torch.rand(round(duration_s * one.sample_rate_hz), generator=generator) - 0.5
    return torch.randn(one.fbank.num_frames, one.fbank.num_mel_bins, generator=generator)


def _check_chunk(store: Store, output: Output, shape: tuple[int, ...]) -> None:
    num_bytes = store.file.clips_per_shard * FLOAT16_BYTES * int(np.prod(shape))
    if num_bytes > MAX_CHUNK_BYTES:
        raise InputError(
            f"{store.file.clips_per_shard} clips' {output}, a shard's, take {num_bytes / 1e9:.1f} GB, and "
            f"{MAX_CHUNK_BYTES / 1e9:.1f} GB are the most that a chunk can hold; leave them out, or ingest the store "
            "again with fewer --clips-per-shard"
        )
