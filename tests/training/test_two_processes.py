"""A run under torchrun in two processes over gloo is the run of one process: DDP, FSDP2, and going on with either."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from ingest.sourcefile import file_sha256
from manifests.errors import InputError
from training import stages
from training.checkpoint import load_checkpoint
from training.config import load_config
from training.iterations import run_iterations
from training.run import open_run
from training.teacher import load_checkpoint_teacher

CPU = torch.device("cpu")
# Batches that two processes can share.
CHANGES = ["multissl.optimiser.batch_size=6", "distill.optimiser.batch_size=6", "distill.augment.gain_db=3"]
TWO = ("--standalone", "--nproc-per-node", "2")
UNEQUAL = ("clips_per_s", "data_wait_share")


def torchrun(preset: Path, stores: list[Store], run: Path, *options: str) -> None:
    changes = [part for change in CHANGES for part in ("--set", change)]
    named = [part for store in stores for part in ("--store", str(store.root))]
    command = ["run", "--preset", str(preset), *named, "--run", str(run), *changes, *options]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *TWO, "-m", "--", "training", *command],
        capture_output=True,
        text=True,
        timeout=300,
        # Of several network names, gloo would ask for this machine's.
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def assert_same_stream(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [(line["stage"], line["step"]) for line in found] == [(line["stage"], line["step"]) for line in expected]
    for line, other in zip(found, expected, strict=True):
        for name in line.keys() - UNEQUAL:
            if isinstance(line[name], float):
                # Sums in another order; the norm of a gradient that nearly cancels feels it most.
                tolerance = 1e-3 if "norm" in name else 1e-4
                assert math.isclose(line[name], other[name], rel_tol=tolerance, abs_tol=1e-5), (line["step"], name)
            else:
                assert line[name] == other[name], name


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # The gradient of a key's bias is 0 but for rounding, which Adam makes as large as any other.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def copied(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(Path(shutil.copytree(store.root, tmp_path_factory.mktemp("two") / "store")))


def read(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_ddp_over_two_stores_is_one_process(
    copied: Store, unlabelled_store: Store, preset: Path, tmp_path: Path
) -> None:
    stores = [copied, Store(Path(shutil.copytree(unlabelled_store.root, tmp_path / "unlabelled")))]
    with open_run(stores, load_config(str(preset), CHANGES), tmp_path / "one", CPU) as run:
        run_iterations(run, 2)
    torchrun(preset, stores, tmp_path / "two", "--iter", "2")
    # The own teachers have the weights' last bits in their names and values.
    assert_same_stream(read(tmp_path / "two"), read(tmp_path / "one"))
    ends = [load_checkpoint(tmp_path / name / "iter2/distill/last.pt") for name in ("one", "two")]
    unequal = {"teacher": None, "best": None}
    assert ends[0].about.model_copy(update=unequal) == ends[1].about.model_copy(update=unequal)
    assert_same_weights(ends[1].network, ends[0].network)
    # Each process filled its shards of the own teacher's caches.
    first = tmp_path / "two/iter1/distill/last.pt"
    for store in map(Store, (stores[0].root, stores[1].root)):
        alone = build_teacher(store, load_checkpoint_teacher(first), "alone").cache
        together = TeacherCache(store, f"own-{file_sha256(first)[:12]}")
        for shard in range(store.snapshot.num_shards):
            assert together.has_shard(shard)
            for output, values in alone.shard_values(shard).items():
                np.testing.assert_allclose(together.read(output, shard), values, rtol=1e-2, atol=1e-2)


def test_a_teacher_alone(copied: Store, preset: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    """The classifier is no part of the loss, and has no gradients to wait for."""
    build_teacher(copied, load_checkpoint_teacher(checkpoint_path), "taught")
    alone = ["distill.teacher=taught", "distill.classify=false", "multissl.optimiser.epochs=0"]
    with open_run([copied], load_config(str(preset), [*CHANGES, *alone]), tmp_path / "one", CPU) as run:
        run_iterations(run, 1)
    changes = [part for change in alone for part in ("--set", change)]
    torchrun(preset, [copied], tmp_path / "two", "--iter", "1", *changes)
    assert_same_stream(read(tmp_path / "two"), read(tmp_path / "one"))


def test_fsdp_goes_on_where_one_process_stopped(
    copied: Store, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(str(preset), [*CHANGES, "parallel=fsdp"])
    with open_run([copied], config, tmp_path / "one", CPU) as run:
        run_iterations(run, 1)
    losses, calls = stages.multissl_losses, iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "multissl_losses", interrupted)
        with pytest.raises(KeyboardInterrupt), open_run([copied], config, tmp_path / "two", CPU) as run:
            run_iterations(run, 1)
    assert load_checkpoint(tmp_path / "two/iter1/multissl/last.pt").optimiser is not None
    torchrun(preset, [copied], tmp_path / "two", "--iter", "1", "--set", "parallel=fsdp")
    found, expected = read(tmp_path / "two"), read(tmp_path / "one")
    # Divided weights are whole only inside a pass, so that the terms' norms aren't looked at.
    for line in (*expected, *found):
        for name in [name for name in line if name.startswith("gradient_norm/")]:
            del line[name]
    assert_same_stream(found, expected)
    ends = [load_checkpoint(tmp_path / name / "iter1/distill/last.pt").network for name in ("one", "two")]
    assert_same_weights(ends[1], ends[0])


def test_a_batch_that_cannot_be_shared_is_refused(
    copied: Store, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.run.world_size", lambda: 2)
    with (
        pytest.raises(InputError, match="batches of 5 can't be divided among 2 processes"),
        open_run([copied], load_config(str(preset), []), tmp_path / "run", CPU),
    ):
        pass
    assert not (tmp_path / "run").exists()
