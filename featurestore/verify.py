"""Checks a store against itself: hashes, members, shapes, values, index against tar, teacher caches."""

import hashlib
import io
import json
import tarfile
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from ingest.atomic import TEMPORARY_SUFFIX
from ingest.featurise import file_sha256
from ingest.layout import CHECKSUM_FILE, MANIFEST_FILE, SHARD_FOLDER, STORE_FILE, TEACHER_FOLDER, sidecar_path
from ingest.ledger import LedgerRow
from ingest.progress import ProgressDisplay
from ingest.shards import read_sidecar
from manifests.errors import InputError


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: in which file, with which clip (None: the whole file), and what."""

    where: str
    key: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.key is None else f"{self.where}: clip {self.key}: {self.what}"


def verify(store: Store) -> list[Problem]:
    """Everything that is wrong with a store; reads all of it."""
    problems = list(_check_sums(store.root))
    if store.manifest.sha256 != store.file.manifest_sha256:
        problems.append(Problem(MANIFEST_FILE, None, f"its rows are not those that {STORE_FILE} names by their hash"))
    with ProgressDisplay("shards", store.file.num_shards) as display:
        for shard in range(store.file.num_shards):
            problems += _check_shard(store, shard)
            display.advance(1, f"{len(problems)} problems")
    for path in sorted((store.root / TEACHER_FOLDER).glob("*.zarr")):
        problems += _check_teacher(store, path)
    return problems


def _check_sums(root: Path) -> Iterator[Problem]:
    """The files that SHA256SUMS lists; of the tars, hashed later with their members, only what it says of them."""
    path = root / CHECKSUM_FILE
    if not path.is_file():
        yield Problem(CHECKSUM_FILE, None, "is missing")
        return
    try:
        lines = [line.split("  ", 1) for line in path.read_text().splitlines()]
        listed = {name: digest for digest, name in lines}
    except ValueError:  # UnicodeDecodeError is one, too
        yield Problem(CHECKSUM_FILE, None, "is damaged: run the ingest command again")
        return
    for name, digest in listed.items():
        if name.endswith(".tar"):
            if _recorded_sha256(root / name) not in (None, digest):
                yield Problem(name, None, f"its sha256 in {CHECKSUM_FILE} is not the sidecar's")
        elif not (root / name).is_file():
            yield Problem(name, None, "is missing")
        elif file_sha256(root / name) != digest:
            yield Problem(name, None, f"its sha256 is not the one in {CHECKSUM_FILE}")
    for extra in sorted((root / SHARD_FOLDER).iterdir()):
        if extra.relative_to(root).as_posix() not in listed and not extra.name.endswith(TEMPORARY_SUFFIX):
            yield Problem(extra.relative_to(root).as_posix(), None, f"is not in {CHECKSUM_FILE}")


def _recorded_sha256(tar: Path) -> str | None:
    try:
        sidecar = read_sidecar(tar.with_suffix(".parquet"))
    except InputError:
        return None  # the check of the shard tells
    return None if sidecar is None else sidecar.tar_sha256


def _check_shard(store: Store, shard: int) -> list[Problem]:
    path = store.tar(shard)
    where = path.relative_to(store.root).as_posix()
    try:
        sidecar = read_sidecar(sidecar_path(store.root, store.file, shard))
        rows = [] if sidecar is None else [LedgerRow(**row) for row in sidecar.ledger.to_pylist()]
    except (InputError, UnicodeDecodeError) as error:
        return [Problem(where, None, f"its sidecar is damaged ({error})")]
    if sidecar is None or not path.is_file():
        return [Problem(where, None, "the tar or its sidecar is missing")]
    if path.stat().st_size != sidecar.tar_size:
        return [Problem(where, None, f"has {path.stat().st_size} bytes, its sidecar says {sidecar.tar_size}")]
    content = path.read_bytes()
    problems = []
    if hashlib.sha256(content).hexdigest() != sidecar.tar_sha256:
        problems.append(Problem(where, None, "its sha256 is not the sidecar's"))
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            members = {member.name: member for member in tar}
    except tarfile.TarError as error:
        return [*problems, Problem(where, None, f"is not a readable tar ({error})")]
    for row in rows:
        if row.ok:
            problems += [Problem(where, row.key, what) for what in _check_clip(store, row, members, content)]
    expected = {name for row in rows if row.ok for name in _member_names(store, row)}
    problems += [
        Problem(where, None, f"has a member {name} that its index lacks") for name in sorted(members.keys() - expected)
    ]
    return problems


def _member_names(store: Store, row: LedgerRow) -> list[str]:
    endings = ["fbank.npy", "hog.npy", *(["flac"] if store.file.keep_audio else []), "json"]
    return [f"{row.key}.{ending}" for ending in endings]


def _check_clip(store: Store, row: LedgerRow, members: dict[str, tarfile.TarInfo], content: bytes) -> Iterator[str]:
    missing = [name for name in _member_names(store, row) if name not in members]
    if missing:
        yield f"the tar lacks {', '.join(missing)}"
        return
    spec, hog = store.file.fbank, store.file.hog
    cells = (spec.num_frames // hog.cell_size, spec.num_mel_bins // hog.cell_size, hog.num_orientations)
    shapes = {"fbank": (spec.num_frames, spec.num_mel_bins), "hog": cells}
    for name, offset in (("fbank", row.fbank_offset), ("hog", row.hog_offset)):
        member = members[f"{row.key}.{name}.npy"]
        yield from _check_array(content, member, name, shapes[name], offset)
    about = members[f"{row.key}.json"]
    try:
        if json.loads(content[about.offset_data : about.offset_data + about.size])["key"] != row.key:
            yield "its JSON names another clip"
    except (ValueError, KeyError, TypeError):
        yield "its JSON can't be read"


def _check_array(
    content: bytes, member: tarfile.TarInfo, name: str, shape: tuple[int, ...], offset: int | None
) -> Iterator[str]:
    stored = content[member.offset_data : member.offset_data + member.size]
    try:
        array = np.lib.format.read_array(io.BytesIO(stored), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        yield f"its {name} is not a readable npy ({error})"
        return
    if array.shape != shape or array.dtype != np.float16:
        yield f"its {name} is {array.dtype} {array.shape}, expected float16 {shape}"
    elif not np.isfinite(array).all():
        yield f"its {name} holds NaN or Inf"
    if offset != member.offset_data + member.size - array.nbytes:
        yield f"the index places its {name} at {offset}, the tar at {member.offset_data + member.size - array.nbytes}"


def _check_teacher(store: Store, path: Path) -> list[Problem]:
    where = path.relative_to(store.root).as_posix()
    try:
        cache = TeacherCache(store, path.stem)
    except InputError as error:
        return [Problem(where, None, str(error))]
    problems = []
    size = store.file.clips_per_shard
    for shard in range(store.file.num_shards):
        rows = np.arange(shard * size, min((shard + 1) * size, len(store.ok)))
        for output in cache.outputs:
            try:
                values = cache.read(output, shard)[: len(rows)]
            except InputError as error:
                problems.append(Problem(where, None, str(error)))
                continue
            bad = ~np.isfinite(values.reshape(len(rows), -1)).all(1) & store.ok[rows]
            problems += [Problem(where, key, f"its {output} is missing or not finite") for key in store.keys(rows[bad])]
    return problems
