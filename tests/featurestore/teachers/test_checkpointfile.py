"""Files that no teacher may take: each is one error that names the file, and nothing in them is run."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featurestore.teachers.astteacher import load_ast, load_ast_fbank
from featurestore.teachers.base import Teacher
from featurestore.teachers.beats import load_beats
from featurestore.teachers.checkpointfile import read_checkpoint
from featurestore.teachers.efficientat import load_efficientat
from manifests.errors import InputError

Load = Callable[[Path], Teacher]
LOADERS = [
    pytest.param(load_beats, "unilm", id="beats"),
    pytest.param(load_ast, "huggingface", id="ast"),
    pytest.param(load_ast_fbank, "huggingface", id="ast-fbank"),
    pytest.param(load_efficientat, "releases", id="efficientat"),
]
every_teacher = pytest.mark.parametrize(("load", "where"), LOADERS)
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


class Shell:
    """Unpickled with code allowed, it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


@every_teacher
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, load: Load, where: str) -> None:
    marker, plain, zipped = tmp_path / "ran", tmp_path / "plain.pt", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps(Shell(marker)))
    torch.save({"cfg": Shell(marker), "model": {}}, zipped)
    for path in (plain, zipped):
        with pytest.raises(InputError, match=rf"cannot read tensors from {re.escape(str(path))}.*{where}"):
            load(path)
    assert not marker.exists()


@every_teacher
@pytest.mark.parametrize("name", ["weights.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights here", b"PK\x03\x04", bytes(range(256)) * 8, b"\x80\x02."])
def test_other_files_are_refused(tmp_path: Path, load: Load, where: str, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot read tensors from .*{re.escape(name)}: no .* file.*{where}"):
        load(tmp_path / name)


@every_teacher
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, load: Load, where: str) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(InputError, match=rf"cannot open the checkpoint {re.escape(str(path))}: .*{where}"):
            load(path)


@every_teacher
@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, torch.ones(1), {3: torch.ones(1)}, {}])
def test_torch_files_of_something_else_are_refused(tmp_path: Path, load: Load, where: str, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=rf"other\.pt (does not|has no) .*{where}"):
        load(tmp_path / "other.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path, state = tmp_path / name, {"weight": torch.randn(100, 100)}
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=rf"cannot read tensors from .*{name}.*; expected a lamp"):
        read_checkpoint(path, "expected a lamp")


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, folder / "linear.pt")
    return folder / "linear.pt"


def linear() -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(3, 2)


def test_a_network_gets_its_tensors_frozen_and_in_its_own_precision(tmp_path: Path) -> None:
    file = read_checkpoint(saved(tmp_path, {name: tensor.half() for name, tensor in STATE.items()}), "expected x")
    network = linear()
    file.load_into(network, file.tensors(file.content))
    torch.testing.assert_close(network.state_dict(), STATE, check_device=True)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_first_three_differences_are_named_and_all_counted(tmp_path: Path) -> None:
    found = {f"extra{index}": torch.zeros(1) for index in range(4)} | {"weight": torch.zeros(3, 2)}
    file = read_checkpoint(saved(tmp_path, found), "expected a linear layer")
    with pytest.raises(InputError) as raised:
        file.load_into(linear(), file.tensors(file.content))
    said = "bias is missing; extra0 is not part of the network; extra1 is not part of the network (differences: 6)"
    assert str(raised.value) == f"{tmp_path / 'linear.pt'} does not fit, {said}; expected a linear layer"


@pytest.mark.parametrize("name", ["absent", "empty", "scalar"])
def test_a_dimension_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    file = read_checkpoint(saved(tmp_path, {"empty": torch.zeros(0, 2), "scalar": torch.zeros(())}), "expected x")
    with pytest.raises(InputError, match=f"does not fit, {name} is missing or empty; expected x"):
        file.dimension(file.content, name)
