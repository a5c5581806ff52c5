"""Small finished stores of synthetic sounds, and deterministic teachers whose outputs can be computed by hand."""

import csv
import io
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featurestore.store import Store
from featurestore.teachers.base import FbankInput, TeacherOutput, WaveformInput
from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.folder import FolderOptions, folder_manifest
from manifests.geometry import FbankSpec
from manifests.vocabulary import Label, Vocabulary

NUM_CLIPS, CLIPS_PER_SHARD, NUM_FRAMES = 23, 5, 256
LABELS = ("bark", "bell", "rain")
EMPTY_CLIP = "clip07"

MakeStore = Callable[..., Store]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a machine that may be busy: more threads would only wait for one another."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def write_sound(path: Path, number: int) -> None:
    """A tone in noise."""
    rng = np.random.default_rng(number)
    rate_hz = (16000, 22050, 32000)[number % 3]
    # The window of 256 frames is 2.575 s: some clips are looped, some are cropped.
    time = np.arange(int(rate_hz * (0.7, 2.0, 3.5, 2.6)[number % 4])) / rate_hz
    sound = 0.3 * np.sin(2 * np.pi * (200 + 90 * number) * time) + 0.05 * rng.standard_normal(time.size)
    soundfile.write(path, sound, rate_hz, subtype="PCM_16")


def write_corpus(root: Path, labels: Sequence[str], *, label_column: str = "label") -> Path:
    """A sound for every entry of `labels`, of several rates and lengths; clip07 is an empty file.

    clips.csv lists them all, first.csv the first half of them.
    """
    root.mkdir(parents=True)
    rows = [("file", label_column, "split", "fold")]
    for number, label in enumerate(labels):
        path = root / f"clip{number:02d}.wav"
        if path.stem == EMPTY_CLIP:
            path.touch()
        else:
            write_sound(path, number)
        rows.append((path.name, label, "train" if number % 4 else "test", str(number % 3 + 1)))
    for name, kept in (("clips.csv", rows), ("first.csv", rows[: 1 + (len(rows) + 1) // 2])):
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows(kept)
    return root


def ingest_corpus(corpus: Path, root: Path | str, labels_csv: str = "clips.csv", **options: Any) -> Store:
    manifest = folder_manifest(corpus, FolderOptions(dataset="tiny", labels_csv=corpus / labels_csv))
    defaults = {"num_frames": NUM_FRAMES, "clips_per_shard": CLIPS_PER_SHARD, "num_workers": 0}
    ingest(manifest, root, IngestOptions(**{**defaults, **options}))
    return Store(root)


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """23 clips of 3 classes in 5 shards, clip07 failed; for reading only."""
    home = tmp_path_factory.mktemp("finished")
    labels = [LABELS[number % 3] for number in range(NUM_CLIPS)]
    return ingest_corpus(write_corpus(home / "corpus", labels), home / "tiny")


@pytest.fixture
def store_copy(finished_store: Store, tmp_path: Path) -> Path:
    """The root of a copy of the finished store, for a test to damage."""
    return Path(shutil.copytree(finished_store.root, tmp_path / "copy"))


class GrowingStore:
    """A store of 23 clips that grows in three commands, which may be given again: 12 clips, 11 more, clip07 at last.

    Shards of 5, 5, 2 | 5, 5, 1 | 1 clips; a snapshot each.
    """

    def __init__(self, home: Path, num_clips: int = NUM_CLIPS, clips_per_shard: int = CLIPS_PER_SHARD) -> None:
        self.corpus = write_corpus(home / "corpus", [LABELS[number % 3] for number in range(num_clips)])
        self.root = home / "tiny"
        self._clips_per_shard = clips_per_shard

    def _ingest(self, labels_csv: str = "clips.csv", **options: Any) -> Store:
        return ingest_corpus(self.corpus, self.root, labels_csv, clips_per_shard=self._clips_per_shard, **options)

    def ingest_first(self) -> Store:
        return self._ingest("first.csv")

    def append(self) -> Store:
        return self._ingest(append=True)

    def mend_clip07(self) -> Store:
        write_sound(self.corpus / f"{EMPTY_CLIP}.wav", 7)
        return self._ingest(append=True, retry_failed=True)


@pytest.fixture
def growing(tmp_path: Path) -> GrowingStore:
    """A store that nothing was ingested into yet."""
    return GrowingStore(tmp_path / "growing")


@pytest.fixture(scope="session")
def grown_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of three snapshots, for reading only; beside it, in "first", as it was at its first one."""
    growing = GrowingStore(tmp_path_factory.mktemp("grown"))
    growing.ingest_first()
    shutil.copytree(growing.root, growing.root.parent / "first")
    growing.append()
    return growing.mend_clip07()


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """5 clips and 4 more, of which clip07 failed, in shards of 3, 2 | 3, 1: the least that has all there is."""
    growing = GrowingStore(tmp_path_factory.mktemp("small"), 9, 3)
    growing.ingest_first()
    return growing.append()


@pytest.fixture
def grown_copy(grown_store: Store, tmp_path: Path) -> Path:
    """The root of a copy of the grown store, for a test to damage."""
    return Path(shutil.copytree(grown_store.root, tmp_path / "copy"))


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Makes a store of its own, make_store(labels, label_column=..., **ingest_options), of tmp_path/corpus."""

    def make(labels: Sequence[str], label_column: str = "label", **options: Any) -> Store:
        corpus = write_corpus(tmp_path / "corpus", labels, label_column=label_column)
        return ingest_corpus(corpus, tmp_path / "own", **options)

    return make


def _member_arrays(store: Store, ending: str) -> dict[str, NDArray[Any]]:
    """Arrays by key, read with tarfile and numpy alone."""
    arrays = {}
    for path in sorted((store.root / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, found = member.name.split(".", 1)
                if found == ending:
                    content = tar.extractfile(member)
                    assert content is not None
                    arrays[key] = np.load(io.BytesIO(content.read()))
    return arrays


@pytest.fixture(scope="session")
def fbanks(finished_store: Store) -> dict[str, NDArray[np.float16]]:
    """The finished store's fbanks by key."""
    return _member_arrays(finished_store, "fbank.npy")


@pytest.fixture(scope="session")
def hogs(finished_store: Store) -> dict[str, NDArray[np.float16]]:
    """The finished store's HOG cells by key."""
    return _member_arrays(finished_store, "hog.npy")


class WaveformStats(nn.Module):
    """A teacher whose embedding is the waveform's mean, root mean square and length in ms."""

    name = "wavestats"
    embedding_dim = 3
    vocabulary = None

    def __init__(self, sample_rate_hz: int = 16000) -> None:
        super().__init__()
        self.input = WaveformInput(sample_rate_hz)
        self.provenance: dict[str, Any] = {"checkpoint_sha256": "0" * 64, "input": {"rates_hz": (sample_rate_hz,)}}
        self.batches: list[Tensor] = []

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        self.batches.append(batch)
        length_ms = torch.full((len(batch),), 1000 * batch.shape[1] / self.input.sample_rate_hz)
        return TeacherOutput(torch.stack([batch.mean(1), batch.square().mean(1).sqrt(), length_ms], 1))


class FbankStats(nn.Module):
    """A teacher of fbanks: mean and deviation, two logits, and the mean of every 16x16 patch as its token."""

    name = "fbankstats"
    embedding_dim = 2
    vocabulary = Vocabulary(labels=(Label(id="/m/low", name="Low"), Label(id="/m/high", name="High")))

    def __init__(self, num_frames: int = NUM_FRAMES) -> None:
        super().__init__()
        self.input = FbankInput(FbankSpec.model_validate({"num_frames": num_frames}))
        self.provenance: dict[str, Any] = {"checkpoint_sha256": "1" * 64}
        self.batches: list[Tensor] = []

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        self.batches.append(batch)
        tokens = nn.functional.avg_pool2d(batch[:, None], 16).flatten(1)[..., None]
        logits = torch.stack([batch[..., :64].mean((1, 2)), batch[..., 64:].mean((1, 2))], 1)
        return TeacherOutput(torch.stack([batch.mean((1, 2)), batch.std((1, 2))], 1), logits, tokens)


@pytest.fixture(scope="session")
def waveform_stats() -> type[WaveformStats]:
    return WaveformStats


@pytest.fixture(scope="session")
def fbank_stats() -> type[FbankStats]:
    return FbankStats
