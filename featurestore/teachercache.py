"""A teacher's outputs for every clip of a store, in Zarr v3: one Zarr chunk belongs to one tar."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from featurestore.cachefiles import (
    VIEWS_OF,
    Output,
    TeacherAttributes,
    file_sha256,
    is_half_made,
    open_arrays,
    open_group,
    read_attributes,
    read_cache_checksums,
)
from featurestore.store import Store
from ingest.layout import CHECKSUM_FILE
from manifests.errors import InputError

# Decoded chunks kept in memory: more than the shards that the loader has in use at a time.
MAX_CHUNKS_IN_MEMORY = 48


class TeacherCache:
    """One teacher's arrays, for reading and, shard by shard, for writing. Rows without a value are NaN."""

    def __init__(self, store: Store, name: str, *, writable: bool = False) -> None:
        """Opens the cache `name` of `store`. Raises InputError when there is none or it belongs to another store."""
        self._store, self.name = store, name
        self.path = f"{store.location}/{store.teacher_name(name)}"
        if name not in store.teachers:
            made = ", ".join(store.teachers) or "none"
            raise InputError(
                f"{store.location} has no cache of a teacher {name!r} (there are: {made}); "
                f"make it with `featurestore build-teacher --model ...`"
            )
        self._group = open_group(store, name, "r+" if writable else "r")
        self.attributes = read_attributes(self._group, self.path)
        self._arrays = open_arrays(self._group, self.path)
        self._check(writable)
        # A builder keeps what is as its checksums say, or newer than they are.
        self._listed = read_cache_checksums(store, name) if writable else {}
        # Loaders for training and evaluation read one cache at the same time.
        self._lock = Lock()
        self._chunks: OrderedDict[tuple[Output, int], NDArray[np.float16]] = OrderedDict()

    def _check(self, writable: bool) -> None:
        attributes, store = self.attributes, self._store
        if attributes.name != self.name:
            raise InputError(f"{self.path} is the cache {attributes.name!r} under another name; give it its name back")
        made_from = next((s for s in store.file.snapshots if s.fingerprint == attributes.store_fingerprint), None)
        if made_from is None:
            raise InputError(
                f"{self.path} was made from another content of the store (fingerprint "
                f"{attributes.store_fingerprint[:12]}, the store's is {store.snapshot.fingerprint[:12]}); "
                "delete it and run `featurestore build-teacher` again"
            )
        num_rows = min(int(array.shape[0]) for array in self._arrays.values())
        if num_rows < made_from.num_shards * store.file.clips_per_shard:
            raise InputError(f"{self.path} is damaged, its arrays are too short; delete it and build it again")
        if not writable and num_rows < _num_rows(store):
            raise InputError(
                f"{self.path} was made from snapshot {made_from.number}, and lacks the clips that were appended since; "
                "run its `featurestore build-teacher` command again"
            )

    def extend(self, attributes: TeacherAttributes) -> None:
        """Makes room for the clips that were appended to the store; their rows are NaN."""
        if self.attributes.store_fingerprint != attributes.store_fingerprint:
            for array in self._arrays.values():
                array.resize((max(array.shape[0], _num_rows(self._store)), *array.shape[1:]))
            self._group.update_attributes(attributes.model_dump(mode="json"))
            self.attributes = attributes

    @property
    def embedding_dim(self) -> int:
        return self.attributes.embedding_dim

    def embeddings(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The pooled embeddings (len(rows), D) of the store's `rows`, float32; NaN where there are none."""
        return self.gather("embedding", rows)

    def logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The logits (len(rows), C) of the store's `rows`, in the order of `attributes.vocabulary`, float32."""
        return self.gather("logits", rows)

    def gather_view(
        self, output: Literal["embedding", "logits"], rows: NDArray[np.int64], views: NDArray[np.int64] | int
    ) -> NDArray[np.float32]:
        """An output (len(rows), ...) of one augmented view of each row: `views`, or that of each, in [0, num_views).

        Raises InputError where the cache lacks such a view.
        """
        chosen = np.broadcast_to(views, len(rows))
        num_views = self.attributes.num_views
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < num_views:
            raise InputError(
                f"{self.path} has {num_views} augmented views of each clip, and {int(chosen.max()) + 1} are wanted; "
                "build it with more --views, under another --name"
            )
        values: NDArray[np.float32] = self.gather(VIEWS_OF[output], rows)[np.arange(len(rows)), chosen]
        return values

    def gather(self, output: Output, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """An output (len(rows), ...) of the store's `rows`, float32; NaN where there is none."""
        values = np.empty((len(rows), *self._array(output).shape[1:]), np.float32)
        shards, positions = np.divmod(self._store.teacher_rows(rows), self._store.file.clips_per_shard)
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

    def missing_rows(self, shard: int, values: Mapping[Output, NDArray[np.float16]] | None = None) -> NDArray[np.int64]:
        """The rows of a shard's clips that lack a finite value in some array; all of them where a chunk is torn.

        `values`: the shard's, where they are at hand.
        """
        rows = self._store.rows_of_shard(shard)
        lacking = np.zeros(len(rows), bool)
        for array in (self.shard_values(shard) if values is None else values).values():
            lacking |= ~np.isfinite(array[: len(rows)].reshape(len(rows), -1)).all(1)
        return rows[self._store.ok[rows] & lacking]

    def has_shard(self, shard: int) -> bool:
        """Whether every clip of a shard has finite values in all arrays."""
        return not len(self.missing_rows(shard))

    def shard_values(self, shard: int, outputs: Sequence[Output] | None = None) -> dict[Output, NDArray[np.float16]]:
        """What there is of a shard, of all `outputs` or some: (clips_per_shard, ...) each, all NaN where a chunk is
        damaged.
        """
        values: dict[Output, NDArray[np.float16]] = {}
        for output in self.outputs if outputs is None else outputs:
            try:
                self._check_listed(output, shard)
                values[output] = self.read(output, shard).copy()
            except InputError:
                shape = (self._store.file.clips_per_shard, *self._array(output).shape[1:])
                values[output] = np.full(shape, np.nan, np.float16)
        return values

    def write(self, shard: int, values: dict[Output, NDArray[np.float16]]) -> None:
        """Writes the rows of one shard, (clips_per_shard, ...) each: one chunk, so one writer."""
        for output, rows in values.items():
            self._array(output)[self._rows(shard)] = rows
            self._listed.pop(self._chunk_file(output, shard), None)
            with self._lock:
                self._chunks.pop((output, shard), None)

    @property
    def outputs(self) -> list[Output]:
        return list(self._arrays)

    def row_shape(self, output: Output) -> tuple[int, ...]:
        """The shape of one row of an output."""
        shape: tuple[int, ...] = self._array(output).shape[1:]
        return shape

    def _array(self, output: Output) -> Any:
        if output not in self._arrays:
            raise InputError(f"{self.path} has no {output}, only {', '.join(self._arrays)}; choose another teacher")
        return self._arrays[output]

    def _chunk_file(self, output: Output, shard: int) -> str:
        return "/".join([output, "c", str(shard), *["0"] * len(self.row_shape(output))])

    def _check_listed(self, output: Output, shard: int) -> None:
        """Raises InputError when a chunk is whole, but not the one of the checksums: another shard's, for instance."""
        name = self._chunk_file(output, shard)
        folder = self._store.location.child(self._store.teacher_name(self.name))
        if name in self._listed and folder.exists(name) and file_sha256(folder, name) != self._listed[name]:
            raise InputError(f"{self.path}/{name} is not the file that {CHECKSUM_FILE} names")

    def _rows(self, shard: int) -> slice:
        size = self._store.file.clips_per_shard
        return slice(shard * size, (shard + 1) * size)


def create_cache(
    store: Store, name: str, attributes: TeacherAttributes, row_shapes: dict[Output, tuple[int, ...]]
) -> TeacherCache:
    """Makes an empty cache, or opens the one there is for more rows; the caller holds its lock (`cache_lock`).

    Raises InputError when the one there is comes from another checkpoint, input or content of the store.
    """
    if name in store.teachers and not is_half_made(store, name):
        cache = TeacherCache(store, name, writable=True)
        differing = attributes.differences(cache.attributes)
        if sorted(cache.outputs) != sorted(row_shapes):
            differing.append("outputs")
        if differing:
            raise InputError(
                f"{cache.path} is another cache: it differs in {', '.join(differing)}; delete it or use --name"
            )
        cache.extend(attributes)
        return cache
    rows = store.file.clips_per_shard
    folder = store.teacher_name(name)
    store.location.delete_folder(folder)
    group = zarr.open_group(store.location.zarr_store(folder), mode="w", zarr_format=3)
    for output, shape in row_shapes.items():
        group.create_array(
            output,
            shape=(_num_rows(store), *shape),
            chunks=(rows, *shape),
            dtype=np.float16,
            fill_value=np.nan,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
        )
    # Last: a group without them was left by a kill, and is made anew.
    group.update_attributes(attributes.model_dump(mode="json"))
    return TeacherCache(store, name, writable=True)


def _num_rows(store: Store) -> int:
    return store.snapshot.num_shards * store.file.clips_per_shard
