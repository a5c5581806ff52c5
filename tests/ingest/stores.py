"""Small corpora, and what the tests look at in a store."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ingest.index import Index, read_index
from ingest.layout import Snapshot, StoreFile, read_store_file
from ingest.location import LocalFolder
from ingest.plan import IngestOptions
from ingest.sidecar import Sidecar, read_sidecar
from manifests.clips import Clip, Manifest, make_manifest
from manifests.parts import ManifestFile
from manifests.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(["bark", "purr"])
OPTIONS = IngestOptions(num_frames=256, clips_per_shard=3, num_workers=0)


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def write_sound(path: Path, seed: int = 0, duration_s: float = 0.4) -> None:
    """Noise, another one for every seed, in whatever format the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * duration_s)), 16_000)


def clip_of(key: str, split: str = "train") -> Clip:
    return Clip(key, f"{key}.wav", labels=(VOCABULARY.ids[len(key) % 2],), split=split)


def files_of(root: Path, keys: Iterable[str], split: str = "train", bad: Iterable[str] = ()) -> Manifest:
    """The clips of `keys`, whose sounds are written where they aren't there; those of `bad` are no sounds."""
    keys, bad = list(keys), list(bad)
    for key in keys:
        if not (root / f"{key}.wav").exists():
            write_sound(root / f"{key}.wav", seed=int.from_bytes(key.encode()))
    for key in bad:
        (root / f"{key}.wav").write_text("no audio")
    return make_manifest("s", [clip_of(key, split) for key in [*keys, *bad]], VOCABULARY, root)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def times(root: Path) -> dict[str, int]:
    """When files changed, but the lock, which every run opens."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in files}


def store_of(root: Path) -> StoreFile:
    return read_store_file(LocalFolder(root))


def index_of(root: Path) -> Index:
    return read_index(LocalFolder(root))


def parts_of(root: Path) -> list[Manifest]:
    with (root / "manifest.parquet").open("rb") as file:
        return ManifestFile(file, "manifest").manifests()


def sidecar_of(root: Path, shard: int) -> Sidecar:
    sidecar = read_sidecar(LocalFolder(root), store_of(root).sidecar_name(shard))
    assert sidecar is not None
    return sidecar


def outcomes(root: Path) -> dict[str, str]:
    """What came of each clip, the last time that it was tried: "ok" or the reason."""
    rows = [row for shard in range(store_of(root).num_shards) for row in sidecar_of(root, shard).ledger.to_pylist()]
    return {row["key"]: row["reason"] or "ok" for row in rows}


def fingerprint(root: Path, snapshot: Snapshot) -> str:
    """A snapshot's fingerprint by docs/formats.md: over the recipe, its parts' clips and its tars' hashes."""
    store = json.loads((root / "store.json").read_text())
    recipe = {name: value for name, value in store.items() if name not in ("parts", "snapshots", "versions")}
    manifests = [part["manifest_sha256"] for part in store["parts"][: snapshot.num_parts]]
    digest = hashlib.sha256(json.dumps([recipe, manifests], sort_keys=True).encode())
    for tar in sorted((root / "shards").glob("*.tar"))[: snapshot.num_shards]:
        digest.update(hashlib.sha256(tar.read_bytes()).hexdigest().encode())
    return digest.hexdigest()


def assert_sums(root: Path, *, is_finished: bool = True) -> None:
    """SHA256SUMS names every file of the store (of a finished one), and they are as it says."""
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
    others = ("raw", "lists", "source", "teachers", ".lock", "SHA256SUMS")
    assert not is_finished or checked == {name for name in contents(root) if name.partition("/")[0] not in others}
