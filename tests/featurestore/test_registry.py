"""Teachers are found by name, and what is missing is said in one line."""

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from featurestore.teachers import registry
from featurestore.teachers.registry import load_teacher, load_teachers
from manifests.errors import InputError


def test_unknown_names_list_those_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^there is no teacher 'effcientat'; there are: .*checkpoint, efficientat"):
        load_teacher("effcientat", tmp_path / "any.pt")


def test_weights_are_needed() -> None:
    with pytest.raises(InputError, match=r"^the teacher 'efficientat' needs its weights: give the file with"):
        load_teacher("efficientat", None)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot open the checkpoint .*none\.pt: No such file"):
        load_teacher("efficientat", tmp_path / "none.pt")


def test_any_package_can_add_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry's function is called with the path of the weights: here Path.name, called on it."""
    points = EntryPoints([EntryPoint("theirs", "pathlib:PurePath.as_posix", registry.GROUP)])
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    assert load_teacher("theirs", tmp_path / "weights.pt") == (tmp_path / "weights.pt").as_posix()  # type: ignore[comparison-overlap]
    with pytest.raises(InputError, match="there are: theirs"):
        load_teacher("efficientat", None)


def test_spfa_explains_itself() -> None:
    with pytest.raises(InputError, match=r"^the teacher 'spfa' .* has no public code or weights: train one .*--ch"):
        load_teachers(["spfa"], [])


@pytest.mark.parametrize(("num_models", "num_checkpoints"), [(1, 2), (2, 1), (2, 0), (2, 3)])
def test_each_member_of_an_ensemble_has_its_weights(tmp_path: Path, num_models: int, num_checkpoints: int) -> None:
    expected = rf"--model is given {num_models} times and --checkpoint {num_checkpoints} times; give one --checkpoint"
    with pytest.raises(InputError, match=expected):
        load_teachers(["efficientat"] * num_models, [tmp_path / "any.pt"] * num_checkpoints)
