"""The preset `spfa`, from its run to a teacher's cache."""

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurestore.build import build_teacher
from featurestore.loader import sequential_batches
from featurestore.store import Store
from featurestore.teachers.registry import load_teacher
from manifests.errors import InputError
from training.checkpoint import load_checkpoint, load_student
from training.config import differences, load_config
from training.inputs import Inputs
from training.model.networks import MultiSSLNetwork
from training.model.patches import patchify
from training.multissl import multissl_losses

PRESET = str(files("training") / "presets" / "spfa.toml")
SMALL = [
    *("model.num_frames=256", "model.width=16", "model.depth=2", "model.num_heads=2", "model.mae_width=8"),
    *("model.mae_depth=1", "model.mae_num_heads=2"),
    *(f"{stage}.optimiser.{change}" for stage in ("multissl", "distill") for change in ("epochs=1", "batch_size=5")),
]


def test_it_is_base_with_its_own_attention_and_restoration_alone() -> None:
    changed = {line.split(" ")[0] for line in differences(load_config("base"), load_config(PRESET))}
    assert changed == {
        "source",
        "model.parameter_free_attention",
        *(f"multissl.{key}" for key in ("intra", "feature_mse", "feature_kl", "contrast", "hog_weight", "sampling")),
        "distill.teacher",
    }


def test_it_restores_masked_patches_and_knows_nothing_of_hog(inputs: Inputs) -> None:
    config = load_config(PRESET, SMALL)
    network = MultiSSLNetwork(config.model, torch.Generator().manual_seed(0))
    other = replace(inputs, gradient_magnitude=inputs.gradient_magnitude.flip(1))
    terms, again = (
        multissl_losses(network, each, config.multissl, torch.Generator().manual_seed(1)) for each in (inputs, other)
    )
    losses = {name for name in terms if "_" in name and name.split("_")[0] in ("intra", "inter")}
    assert losses == {"inter_restore"}
    assert terms["loss"] == terms["inter_restore"] == again["loss"]


def test_its_checkpoint_teaches(training: Callable[..., Any], own_store: Store, tmp_path: Path) -> None:
    changes = [part for change in SMALL for part in ("--set", change)]
    outcome = training(
        "run", "--iter", "1", "--preset", PRESET, "--store", own_store.root, "--run", tmp_path / "run", *changes
    )
    assert outcome.status == 0, outcome.err
    path = tmp_path / "run" / "iter1" / "distill" / "last.pt"
    teacher = load_teacher("spfa", path)
    assert (teacher.name, teacher.embedding_dim) == ("spfa", 16)
    result = build_teacher(own_store, teacher, "spfa")
    assert (result.num_rows, result.failures) == (20, [])
    checkpoint = load_checkpoint(path)
    assert checkpoint.about.model.parameter_free_attention
    student, about = load_student(checkpoint), checkpoint.about
    (batch,) = sequential_batches(own_store, own_store.rows(), 64)
    with torch.no_grad():
        said = student(patchify((torch.from_numpy(batch.fbank).float() - about.mean) / about.std, student.grid))
        for block in student.aft.transformer.blocks:
            block.gated = False
        without = student(patchify((torch.from_numpy(batch.fbank).float() - about.mean) / about.std, student.grid))
    cached = result.cache.embeddings(own_store.rows())
    np.testing.assert_allclose(cached, said.pooled, rtol=2e-3, atol=1e-3)
    assert abs(cached - without.pooled.numpy()).max() > 0.01


def test_other_models_are_no_spfa(checkpoint_path: Path) -> None:
    with pytest.raises(InputError, match=r"last\.pt holds a model without parameter-free attention, so no spfa; give"):
        load_teacher("spfa", checkpoint_path)
