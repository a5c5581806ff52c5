"""Two small stores of noise with different labels, and what the tests of copies do with stores."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from featurestore.build import build_teacher
from featurestore.copying import Choice, copy_clips
from featurestore.store import Store
from ingest.job import ingest
from ingest.location import LocalFolder
from ingest.plan import IngestOptions
from manifests.clips import Clip, make_manifest
from manifests.vocabulary import Label, Vocabulary

VOCABULARY_A = Vocabulary(labels=(Label(id="/m/dog", name="Dog"), Label(id="/m/rain", name="Rain")))
VOCABULARY_B = Vocabulary(
    labels=(Label(id="/m/cat", name="Cat"), Label(id="/m/rain", name="Rainfall"), Label(id="/m/dog", name="Dog"))
)


def store_of_noise(
    home: Path, name: str, num_clips: int, vocabulary: Vocabulary, *, seed: int = 0, **options: Any
) -> Store:
    """Clips NAME00, NAME01, ... of noise, some longer than the window of 2.575 s; the third one is no sound."""
    clips = []
    for number in range(num_clips):
        key, ids = f"{name}{number:02d}", vocabulary.ids
        (home / "sounds").mkdir(parents=True, exist_ok=True)
        noise = 0.1 * np.random.default_rng([seed, number]).standard_normal(16_000 * (3 if number % 4 == 1 else 1))
        soundfile.write(home / "sounds" / f"{key}.wav", noise, 16_000)
        labels = tuple(dict.fromkeys((ids[number % len(ids)], ids[number // 2 % len(ids)])))
        split = "eval" if number % 3 == 0 else "train"
        clips.append(Clip(key, f"{key}.wav", labels=labels[::-1], split=split, fold=1 + number % 2))
    (home / "sounds" / f"{name}02.wav").write_text("no sound")
    manifest = make_manifest(name, clips, vocabulary, home / "sounds", seed=seed)
    chosen = {"num_frames": 256, "num_workers": 0, "keep_audio": True, **options}
    ingest(manifest, home / "store", IngestOptions(**chosen))
    return Store(home / "store")


@pytest.fixture(name="a", scope="module")
def a_fixture(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """11 clips, of which a02 failed, in shards of 4; for reading only."""
    return store_of_noise(tmp_path_factory.mktemp("a"), "a", 11, VOCABULARY_A, clips_per_shard=4)


@pytest.fixture(name="b", scope="module")
def b_fixture(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """7 clips, of which b02 failed, in shards of 3; their labels are others and in another order."""
    return store_of_noise(tmp_path_factory.mktemp("b"), "b", 7, VOCABULARY_B, clips_per_shard=3)


def copied(store: Store, to: Path) -> Store:
    return Store(shutil.copytree(store.root, to))


def all_of(*stores: Store) -> list[Choice]:
    return [Choice(store, store.rows(asked=True)) for store in stores]


def copy(choices: Sequence[Choice], to: Path, name: str = "copy") -> Store:
    copy_clips(choices, LocalFolder(to), name)
    return Store(to)


def files(root: Path) -> dict[str, bytes]:
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def of_key(store: Store, key: str) -> int:
    return store.column("key").to_pylist().index(key)


def taught(store: Store, to: Path, *teachers: Any) -> Store:
    """A copy of the store with caches "one" (with tokens), "two", ..."""
    store = copied(store, to)
    for name, teacher in zip(("one", "two"), teachers, strict=False):
        build_teacher(store, teacher, name, with_tokens=name == "one")
    return store
