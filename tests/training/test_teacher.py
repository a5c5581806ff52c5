"""A checkpoint of ours as a teacher."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from featurestore.build import build_teacher
from featurestore.loader import sequential_batches
from featurestore.store import Store
from featurestore.teachers.base import FbankInput
from featurestore.teachers.registry import load_teacher
from manifests.errors import InputError
from manifests.geometry import FbankSpec
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.model.networks import Student
from training.model.patches import patchify


def test_it_is_found_by_name(checkpoint_path: Path, about: About) -> None:
    teacher = load_teacher("checkpoint", checkpoint_path)
    assert (teacher.name, teacher.embedding_dim) == ("checkpoint", 16)
    assert teacher.input == FbankInput(about.fbank)
    assert teacher.vocabulary == about.vocabulary
    assert teacher.provenance == {
        "checkpoint_sha256": hashlib.sha256(checkpoint_path.read_bytes()).hexdigest(),
        "iteration": 1,
        "normalisation": {"mean": about.mean, "std": about.std},
        "trained_on": about.store_fingerprint,
    }


def test_it_says_what_the_student_says(checkpoint_path: Path, student: Student, about: About, own_store: Store) -> None:
    result = build_teacher(own_store, load_teacher("checkpoint", checkpoint_path), "ours", with_tokens=True)
    assert (result.num_rows, result.failures) == (20, [])
    rows = own_store.rows()
    (batch,) = sequential_batches(own_store, rows, 64)
    patches = patchify((torch.from_numpy(batch.fbank).float() - about.mean) / about.std, student.grid)
    with torch.no_grad():
        output, tokens = student(patches), student.aft(patches)
    np.testing.assert_allclose(result.cache.embeddings(rows), output.pooled, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(result.cache.logits(rows), output.logits, rtol=2e-3, atol=1e-3)
    of_shard_2 = result.cache.read("tokens", 2)[own_store.ok[10:15]]
    np.testing.assert_allclose(of_shard_2, tokens[(rows >= 10) & (rows < 15)], rtol=2e-3, atol=2e-3)


def test_a_model_of_fewer_frames_takes_the_mean_of_its_windows(about: About, tmp_path: Path) -> None:
    longer = about.model_copy(update={"fbank": FbankSpec(num_frames=512)})
    student = Student(about.model, 3, None, torch.Generator().manual_seed(0)).eval()
    save_checkpoint(Checkpoint(longer, student.state_dict()), tmp_path / "last.pt")
    fbank = torch.randn(2, 512, 128, generator=torch.Generator().manual_seed(1))
    found = load_teacher("checkpoint", tmp_path / "last.pt").embed(fbank)
    patches = [patchify((part - about.mean) / about.std, student.grid) for part in fbank.split(256, 1)]
    with torch.no_grad():
        outputs, tokens = [student(part) for part in patches], [student.aft(part) for part in patches]
    torch.testing.assert_close(found.embedding, (outputs[0].pooled + outputs[1].pooled) / 2)
    torch.testing.assert_close(found.logits, (outputs[0].logits + outputs[1].logits) / 2)
    torch.testing.assert_close(found.tokens, torch.cat(tokens, 1))
    assert not found.embedding.requires_grad


def test_a_store_of_other_frames_is_refused(about: About, student: Student, own_store: Store, tmp_path: Path) -> None:
    longer = about.model_copy(update={"fbank": FbankSpec(num_frames=512)})
    save_checkpoint(Checkpoint(longer, student.state_dict()), tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"takes fbanks of 512 frames, and .* holds 256"):
        build_teacher(own_store, load_teacher("checkpoint", tmp_path / "last.pt"), "longer")


def test_other_files_are_refused(about: About, student: Student, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        load_teacher("checkpoint", tmp_path / "text.pt")
    with pytest.raises(InputError, match="needs its weights"):
        load_teacher("checkpoint", None)
    save_checkpoint(
        Checkpoint(about.model_copy(update={"stage": "multissl"}), student.state_dict()), tmp_path / "ssl.pt"
    )
    with pytest.raises(InputError, match="can't classify"):
        load_teacher("checkpoint", tmp_path / "ssl.pt")
