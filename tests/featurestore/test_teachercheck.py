"""Teachers that are as they should be pass, and each kind of fault is told by its check."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featurestore.check import Check
from featurestore.teachercheck import check_answers, check_known_answers, check_vocabulary, describe_teacher
from featurestore.teachers import golden
from featurestore.teachers.base import Teacher, TeacherOutput, WaveformInput
from featurestore.teachers.efficientat import load_efficientat
from featurestore.teachers.golden import TINY_ANSWERS, answer_of, formula_noise, formula_sound, largest_difference
from manifests.audioset import audioset_vocabulary
from manifests.vocabulary import Label, Vocabulary

CPU = torch.device("cpu")
RATE_HZ = 8000


class Bands:
    """The log energies of 8 bands, and two logits of them."""

    name, embedding_dim, vocabulary = "bands", 8, None
    input = WaveformInput(RATE_HZ)

    def __init__(self) -> None:
        self.provenance = {"checkpoint_sha256": "3" * 64}

    def to(self, device: torch.device) -> "Bands":
        return self

    def embed(self, batch: Tensor) -> TeacherOutput:
        power = torch.fft.rfft(batch, 64).abs().square()[:, :32].unflatten(1, (8, 4)).mean(2)
        embedding = (power + 1e-6).log()
        return TeacherOutput(embedding, embedding[:, :2])


class Dithering(Bands):
    def embed(self, batch: Tensor) -> TeacherOutput:
        return super().embed(batch + 1e-3 * torch.rand(batch.shape))


class BatchNormed(Bands):
    def embed(self, batch: Tensor) -> TeacherOutput:
        return super().embed(batch - batch.mean(0) * (len(batch) > 1))


class Logarithmic(Bands):
    """Of silence -inf."""

    def embed(self, batch: Tensor) -> TeacherOutput:
        return TeacherOutput(batch.square().mean(1, keepdim=True).log().repeat(1, 8).where(batch.any(), -torch.inf))


class Deaf(Bands):
    def embed(self, batch: Tensor) -> TeacherOutput:
        return TeacherOutput(torch.ones(len(batch), 8))


class Wide(Bands):
    embedding_dim = 9


def by_name(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


def failed(teacher: Teacher) -> list[str]:
    return [check.name for check in check_answers(teacher, CPU) if check.passed is False]


def test_a_sound_teacher_passes() -> None:
    checks = by_name(list(check_answers(Bands(), CPU)))
    assert checks == {
        "shapes": True,
        "repeatable": True,
        "alone as in a batch": True,
        "finite": True,
        "tells sounds apart": True,
        "gain": None,
        "padding": None,
    }


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        (Dithering, {"repeatable"}),
        (BatchNormed, {"alone as in a batch"}),
        (Deaf, {"tells sounds apart"}),
        (Wide, {"shapes"}),
    ],
)
def test_a_fault_fails_its_check(teacher: type[Bands], expected: set[str]) -> None:
    assert expected <= set(failed(teacher())) <= expected | {"alone as in a batch"}


def test_what_is_not_finite_fails() -> None:
    checks = {check.name: check for check in check_answers(Logarithmic(), CPU)}
    assert checks["finite"].passed is False
    assert checks["finite"].detail == "not finite in float16 for: silence"


def test_teachers_of_fbanks_are_fed_fbanks(fbank_stats: Callable[[], Teacher]) -> None:
    teacher = fbank_stats()
    # Its two figures alone, of which the first is large, point nearly the same way for all sounds.
    assert failed(teacher) in ([], ["tells sounds apart"])
    assert {batch.shape[1:] for batch in teacher.batches} == {(256, 128)}  # type: ignore[attr-defined]
    described = describe_teacher(teacher)
    assert described["fed"]["fbank"]["num_frames"] == 256
    assert described["labels"] == 2


@pytest.mark.parametrize("family", TINY_ANSWERS)
def test_the_installation_gives_the_known_answers(family: str) -> None:
    teacher = golden.load_tiny(family)
    assert teacher.provenance["family"] == family
    checks = by_name(list(check_known_answers(teacher, CPU)))
    assert checks == {"installation": True, "released file": None}
    assert not failed(teacher)


@pytest.mark.parametrize("family", TINY_ANSWERS)
def test_another_normalisation_gives_another_answer(family: str) -> None:
    """Ten times the tolerance at least, for a change of one hundredth of the mean."""
    teacher = golden.load_tiny(family)
    front_end, field = {
        "BEATs": lambda: (teacher.front_end, "mean"),  # type: ignore[attr-defined]
        "AST": lambda: (teacher.front_end, "mean"),  # type: ignore[attr-defined]
        "EfficientAT": lambda: (teacher.log_mel, "shift"),  # type: ignore[attr-defined]
    }[family]()
    settings = front_end.settings
    front_end.settings = settings._replace(**{field: 1.01 * getattr(settings, field)})
    assert largest_difference(answer_of(teacher), TINY_ANSWERS[family]) > 5e-4


def test_a_broken_installation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: gelu(x, approximate="tanh"))
    assert by_name(list(check_known_answers(golden.load_tiny("BEATs"), CPU)))["installation"] is False


def test_a_released_file_has_a_known_answer(shared: Path) -> None:
    teacher = load_efficientat(shared / "data" / "weights" / "mn04_as_mAP_432.pt")
    assert by_name(list(check_known_answers(teacher, CPU))) == {"installation": True, "released file": True}
    teacher.log_mel.settings = teacher.log_mel.settings._replace(shift=4.0)  # type: ignore[attr-defined]
    assert by_name(list(check_known_answers(teacher, CPU)))["released file"] is False


def test_the_formula_is_a_known_one() -> None:
    """MurmurHash3's finaliser, written once more with Python's whole numbers."""

    def mixed(number: int) -> float:
        number = ((number ^ (number >> 16)) * 0x85EBCA6B) % 2**32
        number = ((number ^ (number >> 13)) * 0xC2B2AE35) % 2**32
        return (number ^ (number >> 16)) / 2**31 - 1

    expected = [mixed((place + 7 * 0x9E3779B9) % 2**32) for place in range(100)]
    np.testing.assert_array_equal(formula_noise(100, 7), expected)
    assert abs(formula_noise(100_000, 1).mean()) < 0.01
    sound = formula_sound(16000)
    assert sound.shape == (32000,)
    assert 0.45 < abs(sound).max() <= 0.5


def said_of(labels: list[Label] | None) -> list[Check]:
    teacher = Bands()
    teacher.vocabulary = None if labels is None else Vocabulary(labels=tuple(labels))  # type: ignore[assignment]
    return list(check_vocabulary(teacher))


def test_labels_are_compared_with_audiosets() -> None:
    audioset = list(audioset_vocabulary().labels)
    assert said_of(audioset)[0].detail == "527 of 527 are AudioSet's 527, by MID, in its order, all of them"
    assert said_of(audioset[::-1])[0].detail == "527 of 527 are AudioSet's 527, by MID, in another order"
    mixed = [audioset[3], Label(id="moo", name="Moo"), audioset[9]]
    assert said_of(mixed)[0].detail == "2 of 3 are AudioSet's 527, by MID, in its order; not AudioSet's: moo"
    assert by_name(said_of(mixed)) == {"labels": None, "labels' names": True}
    assert by_name(said_of(None)) == {"labels": None}


def test_a_mid_under_another_name_fails() -> None:
    first, second = audioset_vocabulary().labels[:2]
    checks = said_of([Label(id=first.id, name=second.name), second])
    assert checks[1].passed is False
    assert checks[1].detail == f"{first.id} is called {second.name!r}"
