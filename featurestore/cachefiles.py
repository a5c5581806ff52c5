"""The files of a teacher's cache: what its Zarr group says of itself, and the checksums of all that lies in it."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Literal, get_args

import zarr
from pydantic import BaseModel, ConfigDict, ValidationError

from featurestore.store import Store
from ingest.atomic import TEMPORARY_SUFFIX
from ingest.index import read_checksums
from ingest.layout import CHECKSUM_FILE, TEACHER_FOLDER
from ingest.location import Location
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

FORMAT: Literal[1] = 1
Output = Literal["embedding", "logits", "tokens", "embedding_views", "logits_views"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
VIEWS_OF: dict[Output, Output] = {"embedding": "embedding_views", "logits": "logits_views"}
Precision = Literal["float32", "bfloat16"]
# Attributes that change when clips are appended to the store.
OF_THE_STORE = ("store_fingerprint", "snapshot")
# Of a value that an error names; hashes are told apart by less.
MAX_VALUE_LENGTH = 20


class TeacherAttributes(BaseModel):
    """What a cache says of itself; it belongs to one teacher, one checkpoint and one content of the store.

    `inputs`: what the teacher was fed, one for each member of an ensemble; `precision`: what it was run in;
    `num_views` and `views_seed`: which augmented views of each clip there are (:mod:`featurestore.views`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    name: str
    teacher: str
    embedding_dim: int
    provenance: dict[str, Any]
    store_fingerprint: str
    snapshot: int
    vocabulary: Vocabulary | None
    inputs: tuple[dict[str, Any], ...] = ()
    precision: Precision = "float32"
    num_views: int = 0
    views_seed: int = 0

    def differences(self, found: "TeacherAttributes") -> list[str]:
        """What `found` has otherwise, as `teacher (a there, b wanted)` or `provenance.input`; not the store's state."""
        # As JSON, which knows no tuples, so that what was read equals what was written.
        wanted, there = (one.model_dump(mode="json", exclude=set(OF_THE_STORE)) for one in (self, found))
        return list(_differences(wanted, there))


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in {**wanted, **found}:
        value, other = wanted.get(name), found.get(name)
        if value == other:
            continue
        if isinstance(value, dict) and isinstance(other, dict) and name != "vocabulary":
            yield from _differences(value, other, f"{prefix}{name}.")
        elif isinstance(value, str | int | float) and isinstance(other, str | int | float):
            yield f"{prefix}{name} ({_short(other)} there, {_short(value)} wanted)"
        else:
            yield f"{prefix}{name}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."


def cache_lock(store: Store, name: str) -> AbstractContextManager[None]:
    """Keeps a second process from building the same cache."""
    teachers = store.location.child(TEACHER_FOLDER)
    teachers.create()
    return teachers.lock("build-teacher", name)


def open_group(store: Store, name: str, mode: Literal["r", "r+"]) -> zarr.Group:
    """A cache's group. Raises InputError where there is none that can be read."""
    path = f"{store.location}/{store.teacher_name(name)}"
    try:
        return zarr.open_group(store.location.zarr_store(store.teacher_name(name)), mode=mode, zarr_format=3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a Zarr v3 group ({error}); delete it and build the teacher again") from error


def read_attributes(group: zarr.Group, path: str) -> TeacherAttributes:
    """What the group at `path` says of itself; raises InputError where that is nothing of ours."""
    try:
        return TeacherAttributes.model_validate(dict(group.attrs))
    except ValidationError as error:
        raise InputError(f"{path} is half-made or not a teacher's cache; delete it and build it again") from error


def open_arrays(group: zarr.Group, path: str) -> dict[Output, Any]:
    """The group's arrays, by output. Raises InputError where one can't be read, or the embeddings are missing."""
    try:
        arrays: dict[Output, Any] = {name: group[name] for name in OUTPUTS if name in group}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and build it again") from error
    if "embedding" not in arrays:
        raise InputError(f"{path} is not whole, its embeddings are missing; delete it and build it again")
    return arrays


def write_cache_checksums(store: Store, name: str) -> None:
    """Writes SHA256SUMS of all of a cache's files; the caller holds the cache's lock."""
    folder = store.location.child(store.teacher_name(name))
    _remove_pieces(folder)
    lines = [f"{file_sha256(folder, file)}  {file}\n" for file in folder.files() if file != CHECKSUM_FILE]
    folder.write(CHECKSUM_FILE, "".join(lines))


def _remove_pieces(cache: Location) -> None:
    """Removes what a killed writer left in a cache: zarr's pieces, which are not hidden, and our own."""
    cache.remove_stale()
    for name in cache.files():
        if name.endswith(TEMPORARY_SUFFIX):
            cache.delete(name)


def file_sha256(folder: Location, name: str) -> str:
    """The sha256 of a file, as hex."""
    return hashlib.sha256(folder.read(name)).hexdigest()


def read_cache_checksums(store: Store, name: str) -> dict[str, str]:
    """A cache's checksums; none of a cache that was never finished, or whose checksums are damaged."""
    with suppress(InputError):
        return read_checksums(store.location.child(store.teacher_name(name)))
    return {}


def is_half_made(store: Store, name: str) -> bool:
    """Whether a kill left a cache without what it says of itself, which comes last; it is made anew."""
    try:
        return not dict(open_group(store, name, "r").attrs)
    except InputError:
        # Without even a group: a kill came first, unless there is something in it that isn't ours to remove.
        return all(file.endswith(TEMPORARY_SUFFIX) for file in store.location.files(store.teacher_name(name)))
