"""A teacher that knows its labels is told from one that is fed on the wrong scale, which knows nothing or little."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestore.check import Check
from featurestore.store import Store
from featurestore.teacherclips import answer_clips, check_clips, draw_clips, matching_labels
from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput, WaveformInput
from featurestore.teachers.efficientat import load_efficientat
from ingest.job import IngestOptions, ingest
from manifests.errors import InputError
from manifests.folder import FolderOptions, folder_manifest
from manifests.vocabulary import Label, Vocabulary
from tests.featurestore.labelledstores import labelled_store

NUM_CLIPS = 40
NAMES = ("Low tone", "high_tone", "Hiss", "hum")
CENTRES_HZ = (300, 3000, 6000, 1200)


def sound(number: int) -> NDArray[np.float64]:
    """A tone near its class's frequency, of some loudness, in noise."""
    rng = np.random.default_rng(number)
    time_s = np.arange(4000) / 16000
    tone = np.sin(2 * np.pi * CENTRES_HZ[number % 4] * rng.uniform(0.9, 1.1) * time_s)
    return rng.uniform(0.05, 0.3) * tone + 0.01 * rng.standard_normal(time_s.size)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    labels = [NAMES[number % 4] for number in range(NUM_CLIPS)]
    return labelled_store(tmp_path_factory.mktemp("tones"), {"label": labels}, sound)


class Tones:
    """Log energies about the four frequencies, squashed to (-1, 1) as a network's are; its logits are these."""

    name, embedding_dim = "tones", 4
    input: WaveformInput | FbankInput = WaveformInput(16000)
    # In another order than the store's, under nearly the same names.
    vocabulary = Vocabulary(labels=tuple(Label(id=f"t{n}", name=NAMES[n].upper()) for n in (2, 0, 3, 1)))

    def __init__(self, gain: float = 1.0, mean: float = 4.0, *, order: tuple[int, ...] = (2, 0, 3, 1)) -> None:
        self.provenance = {"checkpoint_sha256": "4" * 64}
        self.gain, self.mean, self.order = gain, mean, order

    def to(self, device: torch.device) -> "Tones":
        return self

    def embed(self, batch: Tensor) -> TeacherOutput:
        power = torch.fft.rfft(self.gain * batch, 4000).abs().square()
        bands = [power[:, int(hz * 0.2) : int(hz * 0.3)].mean(1) for hz in CENTRES_HZ]
        values = torch.tanh((torch.stack(bands, 1).add(1e-9).log() - self.mean) / 4)
        return TeacherOutput(values, values[:, list(self.order)])


def check(store: Store, teacher: Teacher) -> dict[str, Check]:
    return {one.name: one for one in check_clips(store, teacher, NUM_CLIPS, seed=0)}


def test_a_teacher_that_knows_passes(store: Store) -> None:
    checks = check(store, Tones())
    assert {name: one.passed for name, one in checks.items()} == {
        "clips' embeddings": True,
        "clips' neighbours": True,
        "clips' logits": True,
        "own labels": True,
    }
    assert "accuracy 100.0 % by the teacher's head, 40 clips of the 4 classes in common" in checks["own labels"].detail
    assert "accuracy 100.0 % by neighbours, 4 classes" in checks["clips' neighbours"].detail


def test_a_scale_that_saturates_fails(store: Store) -> None:
    checks = check(store, Tones(gain=1e12))
    assert checks["clips' logits"].passed is False
    assert "the same for every clip" in checks["clips' logits"].detail
    assert checks["own labels"].passed is False


def test_embeddings_that_say_nothing_fail(store: Store) -> None:
    class Guessing(Tones):
        def embed(self, batch: Tensor) -> TeacherOutput:
            values = torch.rand(len(batch), 4, generator=torch.Generator().manual_seed(int(batch.abs().sum() * 1e6)))
            return TeacherOutput(values, values)

    checks = check(store, Guessing())
    assert checks["clips' neighbours"].passed is False
    assert checks["own labels"].passed is False
    assert "no better than chance" in checks["clips' neighbours"].detail


def test_labels_in_another_order_fail(store: Store) -> None:
    checks = check(store, Tones(order=(0, 1, 2, 3)))
    assert checks["clips' neighbours"].passed is True
    assert checks["own labels"].passed is False


def test_a_head_far_behind_its_embeddings_is_a_warning(store: Store) -> None:
    """Two classes of four are called by one another's names."""
    checks = check(store, Tones(order=(2, 0, 1, 3)))
    assert checks["own labels"].is_warning
    assert checks["own labels"].passed is None
    assert "accuracy 50.0 %" in checks["own labels"].detail


def test_values_that_are_not_finite_fail(store: Store) -> None:
    class Broken(Tones):
        def embed(self, batch: Tensor) -> TeacherOutput:
            return TeacherOutput(torch.full((len(batch), 4), torch.nan))

    assert {name: one.passed for name, one in check(store, Broken()).items()} == {"clips' embeddings": False}


def test_a_teacher_without_labels_is_judged_by_neighbours_alone(store: Store) -> None:
    class Unnamed(Tones):
        vocabulary = None  # type: ignore[assignment]

    checks = check(store, Unnamed())
    assert checks["own labels"].passed is None
    assert checks["own labels"].detail == "0 of the clips' classes are the teacher's: too few to judge it"


def test_a_teacher_of_fbanks(store: Store, fbank_stats: Callable[[], Teacher]) -> None:
    teacher = fbank_stats()
    rows = draw_clips(store, 20, seed=0)
    answers = answer_clips(store, teacher, rows)
    assert answers.rows.tolist() == rows.tolist()
    np.testing.assert_allclose(answers.spectra[:, :128].mean(1), answers.embeddings[:, 0], atol=1e-4)
    teacher.input = FbankInput(teacher.input.fbank.model_copy(update={"num_frames": 512}))  # type: ignore[union-attr]
    with pytest.raises(InputError, match="takes fbanks of 512 frames"):
        check(store, teacher)


def test_the_draw_is_even_and_of_few_classes(store: Store) -> None:
    rows = draw_clips(store, 20, seed=1)
    counts = store.labels(rows).sum(0)
    assert sorted(counts.tolist()) == [0, 0, 10, 10]
    assert rows.tolist() == draw_clips(store, 20, seed=1).tolist()


def test_a_store_with_too_few_classes(tmp_path: Path) -> None:
    store = labelled_store(tmp_path, {"label": ["a", "a", "a", "b"]})
    with pytest.raises(InputError, match=r"two classes with two recordings each are needed.*there are 1"):
        draw_clips(store, 20, seed=0)


def test_no_sound_at_hand(tmp_path: Path) -> None:
    store = labelled_store(tmp_path, {"label": ["a", "b"] * 3})
    for path in (tmp_path / "corpus").glob("*.wav"):
        path.unlink()
    with pytest.raises(InputError, match="no clip could be given to the teacher, for instance clip"):
        check(store, Tones())


def test_labels_match_by_id_else_by_name() -> None:
    def vocabulary(*labels: tuple[str, str]) -> Vocabulary:
        return Vocabulary(labels=tuple(Label(id=one, name=name) for one, name in labels))

    teacher = vocabulary(("/m/1", "Dog"), ("/m/2", "Rain"), ("/m/3", "Tick-tock"), ("/m/4", "Bang"), ("/m/5", "bang"))
    store = vocabulary(("dog", "dog"), ("/m/2", "drizzle"), ("x", "tick_tock"), ("y", "BANG"), ("z", "Cat"))
    assert matching_labels(store, teacher) == {0: 0, 1: 1, 2: 2}


@pytest.fixture(scope="module")
def esc10(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten clips of each of ESC-10's four classes that are AudioSet's by name."""
    home, data = tmp_path_factory.mktemp("esc10"), shared / "data" / "esc10"
    (listed,) = (data / "meta").glob("*.csv")
    with listed.open(newline="") as file:
        rows = [(row["filename"], row["category"]) for row in csv.DictReader(file)]
    kept = [[row for row in rows if row[1] == name][:10] for name in ("dog", "rain", "helicopter", "chainsaw")]
    with (home / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *(row for of_class in kept for row in of_class)])
    manifest = folder_manifest(data / "audio", FolderOptions(dataset="esc10", labels_csv=home / "clips.csv"))
    ingest(manifest, home / "store", IngestOptions(num_frames=512, num_workers=0))
    return Store(home / "store")


def test_a_wrong_normalisation_of_a_real_teacher_shows(esc10: Store, shared: Path) -> None:
    """mn04 passes; without its shift and scale its head falls far behind, or to chance."""
    path = shared / "data" / "weights" / "mn04_as_mAP_432.pt"
    right, wrong = load_efficientat(path), load_efficientat(path)
    good = check(esc10, right)
    assert all(one.passed for one in good.values())
    wrong.log_mel.settings = wrong.log_mel.settings._replace(shift=0.0, scale=1.0)  # type: ignore[attr-defined]
    bad = check(esc10, wrong)["own labels"]
    assert bad.passed is False or bad.is_warning
    assert replace(bad, detail="") != replace(good["own labels"], detail="")
