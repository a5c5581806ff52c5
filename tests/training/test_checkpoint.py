"""Checkpoints: whole or absent, and nothing else is taken for one."""

import pickle
import random
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.errors import InputError
from training.checkpoint import About, Checkpoint, load_checkpoint, load_student, save_checkpoint
from training.model.networks import MultiSSLNetwork, Student

NOT_OURS = "is not a whole checkpoint of this trainer"


def test_round_trip(about: About, student: Student, tmp_path: Path) -> None:
    optimiser = torch.optim.AdamW(Student(about.model, 3, None, torch.Generator()).parameters(), lr=0.5)
    for group in optimiser.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    optimiser.step()
    about = about.model_copy(update={"best": 0.1 + 0.2, "step": 3})
    save_checkpoint(Checkpoint(about, student.state_dict(), optimiser.state_dict()), tmp_path / "last.pt")
    read = load_checkpoint(tmp_path / "last.pt")
    assert read.about == about
    assert not read.about.finished
    assert all((read.network[name] == weight).all() for name, weight in student.state_dict().items())
    assert read.optimiser is not None
    torch.testing.assert_close(read.optimiser, optimiser.state_dict(), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    # The same content gives the same bytes: a teacher's cache is named by its checkpoint's hash.
    save_checkpoint(read, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "last.pt").read_bytes()


def test_the_student_is_the_one_that_was_saved(checkpoint_path: Path, student: Student) -> None:
    loaded = load_student(load_checkpoint(checkpoint_path))
    patches = torch.randn(2, 128, 256, generator=torch.Generator().manual_seed(0))
    assert not loaded.training
    assert (loaded(patches).logits == student(patches).logits).all()


def test_the_multissl_stage_cannot_classify(about: About, tmp_path: Path) -> None:
    network = MultiSSLNetwork(about.model, torch.Generator())
    about = about.model_copy(update={"stage": "multissl"})
    save_checkpoint(Checkpoint(about, network.state_dict()), tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"of the Multi-SSL stage and can't classify.*iter1/distill/last\.pt"):
        load_student(load_checkpoint(tmp_path / "last.pt"))


def test_truncated(checkpoint_path: Path, tmp_path: Path) -> None:
    whole, path = checkpoint_path.read_bytes(), tmp_path / "cut.pt"
    rng = random.Random(0)
    for length in (0, 1, 2, 100, len(whole) // 2, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=NOT_OURS):
            load_checkpoint(path)


def test_garbage(tmp_path: Path) -> None:
    path, rng = tmp_path / "garbage.pt", random.Random(1)
    for start in (b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"PK\x05\x06"):
        for _ in range(30):
            path.write_bytes(start + rng.randbytes(rng.choice((1, 5, 20, 300))))
            with pytest.raises(InputError, match=NOT_OURS):
                load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(InputError, match=NOT_OURS):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [1, 2],
        "text",
        {"model": {"weight": torch.zeros(2)}},
        {"about": 3, "network": {}, "optimiser": None},
        {"about": "{}", "network": {}, "optimiser": None},
        {"about": "[1", "network": {}, "optimiser": None},
    ],
)
@pytest.mark.parametrize("as_zip", [True, False])
def test_other_content(content: Any, as_zip: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(InputError, match=NOT_OURS):
        load_checkpoint(tmp_path / "other.pt")


def test_another_format_is_refused(about: About, tmp_path: Path) -> None:
    later = about.model_copy(update={"format": 2})
    save_checkpoint(Checkpoint(later, {}), tmp_path / "later.pt")
    with pytest.raises(InputError, match=r"it has other fields"):
        load_checkpoint(tmp_path / "later.pt")


class Code:
    """Unpickled, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_not_run(about: About, tmp_path: Path) -> None:
    trap = tmp_path / "it-ran"
    content = {"about": about.model_dump_json(), "network": Code(trap), "optimiser": None}
    torch.save(content, tmp_path / "code.pt")
    (tmp_path / "code.pkl").write_bytes(pickle.dumps(Code(trap)))
    for name in ("code.pt", "code.pkl"):
        with pytest.raises(InputError, match=NOT_OURS):
            load_checkpoint(tmp_path / name)
    assert not trap.exists()


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pt can't be read: No such file"):
        load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        load_checkpoint(tmp_path)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import torch
from training import checkpoint
path = Path(sys.argv[1])
old = checkpoint.load_checkpoint(path)
save = torch.save
def save_half(content, file):
    save(content, file)
    file.truncate(file.tell() // 2)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = save_half
checkpoint.save_checkpoint(checkpoint.Checkpoint(old.about.model_copy(update={"step": 5}), old.network), path)
"""


def test_a_writer_killed_in_the_middle_leaves_the_old_one(checkpoint_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(checkpoint_path.read_bytes())
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.read_bytes() == checkpoint_path.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2  # and the half


def test_a_full_disk_is_told(about: About, student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"can't be written .*; make room and run the same command again"):
        save_checkpoint(Checkpoint(about, student.state_dict()), tmp_path / "last.pt")
    assert list(tmp_path.iterdir()) == []
