"""A teacher's outputs for every clip of a store, in Zarr v3: one Zarr chunk belongs to one tar."""

import shutil
from collections import OrderedDict
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from zarr.codecs import Crc32cCodec, ZstdCodec

from featurestore.store import Store
from ingest.atomic import TEMPORARY_SUFFIX, exclusive
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

FORMAT: Literal[1] = 1
Output = Literal["embedding", "logits", "tokens"]
OUTPUTS: tuple[Output, ...] = ("embedding", "logits", "tokens")
# Decoded chunks kept in memory: more than the shards that the loader has in use at a time.
MAX_CHUNKS_IN_MEMORY = 48


class TeacherAttributes(BaseModel):
    """What a cache says of itself; it belongs to one teacher, one checkpoint and one content of the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    teacher: str
    embedding_dim: int
    provenance: dict[str, Any]
    store_fingerprint: str
    snapshot: int
    vocabulary: Vocabulary | None


class TeacherCache:
    """One teacher's arrays, for reading and, shard by shard, for writing. Rows without a value are NaN."""

    def __init__(self, store: Store, name: str, *, writable: bool = False) -> None:
        """Opens the cache `name` of `store`. Raises InputError when there is none or it belongs to another store."""
        self._store = store
        self.path = store.teacher_path(name)
        if not self.path.is_dir():
            made = ", ".join(sorted(path.stem for path in self.path.parent.glob("*.zarr"))) or "none"
            raise InputError(
                f"{store.root} has no cache of a teacher {name!r} (there are: {made}); "
                f"make it with `featurestore build-teacher --model ...`"
            )
        group = _open_group(self.path, "r+" if writable else "r")
        self.attributes = _attributes(group, self.path)
        if self.attributes.store_fingerprint != store.snapshot.fingerprint:
            raise InputError(
                f"{self.path} was made from another content of the store (fingerprint "
                f"{self.attributes.store_fingerprint[:12]}, the store's is {store.snapshot.fingerprint[:12]}); "
                "delete it and run `featurestore build-teacher` again"
            )
        self._arrays = _open_arrays(group, self.path, store.file.num_shards * store.file.clips_per_shard)
        # Loaders for training and evaluation read one cache at the same time.
        self._lock = Lock()
        self._chunks: OrderedDict[tuple[Output, int], NDArray[np.float16]] = OrderedDict()

    @property
    def embedding_dim(self) -> int:
        return self.attributes.embedding_dim

    def embeddings(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The pooled embeddings (len(rows), D) of the store's `rows`, float32; NaN where there are none."""
        return self._gather("embedding", rows)

    def logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The logits (len(rows), C) of the store's `rows`, in the order of `attributes.vocabulary`, float32."""
        return self._gather("logits", rows)

    def _gather(self, output: Output, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        values = np.empty((len(rows), *self._array(output).shape[1:]), np.float32)
        shards, positions = np.divmod(rows, self._store.file.clips_per_shard)
        for shard in np.unique(shards):
            inside = shards == shard
            values[inside] = self._chunk(output, int(shard))[positions[inside]]
        return values

    def _chunk(self, output: Output, shard: int) -> NDArray[np.float16]:
        name = (output, shard)
        with self._lock:
            if name in self._chunks:
                self._chunks.move_to_end(name)
            else:
                self._chunks[name] = self.read(output, shard)
                if len(self._chunks) > MAX_CHUNKS_IN_MEMORY:
                    self._chunks.popitem(last=False)
            return self._chunks[name]

    def read(self, output: Output, shard: int) -> NDArray[np.float16]:
        """All rows of one shard, (clips_per_shard, ...) float16."""
        try:
            values: NDArray[np.float16] = np.asarray(self._array(output)[self._rows(shard)])
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(
                f"{self.path}/{output} is damaged in the rows of shard {shard} ({error}); "
                "run `featurestore build-teacher` again to make them anew"
            ) from error
        return values

    def missing_rows(self, shard: int) -> NDArray[np.int64]:
        """The rows of a shard's clips that lack a finite value in some array; all of them where a chunk is torn."""
        ok = self._store.ok[self._rows(shard)]
        lacking = np.zeros(len(ok), bool)
        for values in self.shard_values(shard).values():
            lacking |= ~np.isfinite(values[: len(ok)].reshape(len(ok), -1)).all(1)
        return np.flatnonzero(ok & lacking) + shard * self._store.file.clips_per_shard

    def has_shard(self, shard: int) -> bool:
        """Whether every clip of a shard has finite values in all arrays."""
        return not len(self.missing_rows(shard))

    def shard_values(self, shard: int) -> dict[Output, NDArray[np.float16]]:
        """What there is of a shard, to be completed: (clips_per_shard, ...) each, all NaN where a chunk is torn."""
        values: dict[Output, NDArray[np.float16]] = {}
        for output in self.outputs:
            try:
                values[output] = self.read(output, shard).copy()
            except InputError:
                shape = (self._store.file.clips_per_shard, *self._array(output).shape[1:])
                values[output] = np.full(shape, np.nan, np.float16)
        return values

    def write(self, shard: int, values: dict[Output, NDArray[np.float16]]) -> None:
        """Writes the rows of one shard, (clips_per_shard, ...) each: one chunk, so one writer."""
        for output, rows in values.items():
            self._array(output)[self._rows(shard)] = rows
            with self._lock:
                self._chunks.pop((output, shard), None)

    @property
    def outputs(self) -> list[Output]:
        return list(self._arrays)

    def _array(self, output: Output) -> Any:
        if output not in self._arrays:
            raise InputError(f"{self.path} has no {output}, only {', '.join(self._arrays)}; choose another teacher")
        return self._arrays[output]

    def _rows(self, shard: int) -> slice:
        size = self._store.file.clips_per_shard
        return slice(shard * size, (shard + 1) * size)


def cache_lock(store: Store, name: str) -> AbstractContextManager[None]:
    """Keeps a second process from building the same cache."""
    path = store.teacher_path(name)
    path.parent.mkdir(exist_ok=True)
    return exclusive(path.parent, "build-teacher", path.stem)


def create_cache(
    store: Store, name: str, attributes: TeacherAttributes, row_shapes: dict[Output, tuple[int, ...]]
) -> TeacherCache:
    """Makes an empty cache, or opens the one there is for more rows; the caller holds its lock (:func:`cache_lock`).

    Raises InputError when the one there is comes from another checkpoint, input or content of the store.
    """
    path = store.teacher_path(name)
    if path.exists():
        cache = TeacherCache(store, name, writable=True)
        # As JSON, which knows no tuples, so that what was read equals what was written.
        wanted, found = attributes.model_dump(mode="json"), cache.attributes.model_dump(mode="json")
        differing = [field for field in wanted if wanted[field] != found[field]]
        if sorted(cache.outputs) != sorted(row_shapes):
            differing.append("outputs")
        if differing:
            raise InputError(f"{path} is another cache: it differs in {', '.join(differing)}; delete it or use --name")
        return cache
    rows = store.file.clips_per_shard
    # Made aside and renamed: a kill leaves either no cache or one with all its arrays and attributes.
    temporary = path.with_name(f".{name}{TEMPORARY_SUFFIX}")
    shutil.rmtree(temporary, ignore_errors=True)
    group = zarr.open_group(temporary, mode="w", zarr_format=3)
    for output, shape in row_shapes.items():
        group.create_array(
            output,
            shape=(store.file.num_shards * rows, *shape),
            chunks=(rows, *shape),
            dtype=np.float16,
            fill_value=np.nan,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
        )
    group.attrs.update(attributes.model_dump(mode="json"))
    temporary.rename(path)
    return TeacherCache(store, name, writable=True)


def _open_group(path: Path, mode: Literal["r", "r+"]) -> zarr.Group:
    try:
        return zarr.open_group(path, mode=mode, zarr_format=3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a Zarr v3 group ({error}); delete it and build the teacher again") from error


def _attributes(group: zarr.Group, path: Path) -> TeacherAttributes:
    try:
        return TeacherAttributes.model_validate(dict(group.attrs))
    except ValidationError as error:
        raise InputError(f"{path} is half-made or not a teacher's cache; delete it and build it again") from error


def _open_arrays(group: zarr.Group, path: Path, num_rows: int) -> dict[Output, Any]:
    try:
        arrays: dict[Output, Any] = {name: group[name] for name in OUTPUTS if name in group}
        whole = "embedding" in arrays and all(array.shape[0] == num_rows for array in arrays.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and build it again") from error
    if not whole:
        raise InputError(f"{path} is not whole, its embeddings or some rows are missing; delete it and build it again")
    return arrays
