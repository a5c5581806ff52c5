"""What goes wrong in the middle of a run is one line and exit status 2, and once it is put right the run goes on."""

import fcntl
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurestore.build import build_cache
from featurestore.cacheplan import CacheOptions, plan_cache
from featurestore.store import Store
from featurestore.teacherpool import InProcess
from featurestore.teachers.ensemble import Ensemble
from training import iterations, loop, stages
from training.checkpoint import load_checkpoint
from training.config import RunConfig, load_config
from training.iterations import run_iterations
from training.run import open_run
from training.teacher import load_checkpoint_teacher

CPU = torch.device("cpu")
LAST = "iter1/{}/last.pt"
Command = Callable[..., Any]
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Bench:
    """A run to be disturbed: its command, its store and folder, and what it is undisturbed."""

    training: Command
    preset: Path
    store: Store
    folder: Path
    clean: Path

    def go(self) -> Any:
        return self.training(
            *("run", "--iter", "1", "--preset", self.preset, "--store", self.store.root, "--run", self.folder)
        )

    def refused(self, *said: str) -> str:
        """Runs into one line that says all of `said`, and exit status 2."""
        outcome = self.go()
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert (outcome.status, len(errors)) == (2, 1), outcome.err
        assert outcome.err.endswith(f"{errors[0]}\n")
        for part in said:
            assert part in errors[0], errors[0]
        assert list(self.folder.rglob("*.partial")) == []
        return str(errors[0])

    def goes_on(self) -> None:
        """The same command now comes to the end that the undisturbed run came to, to the byte."""
        outcome = self.go()
        assert outcome.status == 0, outcome.err
        assert stream(self.folder) == stream(self.clean)
        files = sorted(path.relative_to(self.clean) for path in self.clean.glob("iter*/**/*") if path.is_file())
        assert len(files) == 6
        for file in files:
            assert (self.folder / file).read_bytes() == (self.clean / file).read_bytes(), file

    def step(self, stage: str) -> int:
        """Of the last checkpoint."""
        return load_checkpoint(self.folder / LAST.format(stage)).about.step


def stream(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("clips_per_s", "data_wait_share")} for line in lines]


@pytest.fixture(scope="module")
def clean(store: Store, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "run"
    train([store], config, folder)
    return folder


@pytest.fixture
def bench(training: Command, preset: Path, own_store: Store, clean: Path, tmp_path: Path) -> Bench:
    return Bench(training, preset, own_store, tmp_path / "run", clean)


@pytest.fixture
def halfway(bench: Bench, monkeypatch: Patch) -> Bench:
    """A run that was interrupted in its second stage, after two of six steps."""
    with monkeypatch.context() as patch:
        at_step(patch, "distill_losses", 4, interrupt)
        assert bench.go().status == 130
    assert (bench.step("multissl"), bench.step("distill")) == (6, 2)
    return bench


def interrupt() -> None:
    raise KeyboardInterrupt


def at_step(patch: Patch, losses: str, number: int, happens: Callable[[], None]) -> None:
    """Something happens before the `number`th step of a stage, the closer looks at some steps aside."""
    original, steps = getattr(stages, losses), set[bytes]()

    def disturbed(network: Any, inputs: Any, *others: Any) -> Any:
        known = len(steps)
        steps.add(inputs.fbank.numpy().tobytes())
        if known < len(steps) == number:
            happens()
        return original(network, inputs, *others)

    patch.setattr(stages, losses, disturbed)


def before_stage(patch: Patch, stage: str, happens: Callable[[], None]) -> None:
    original = iterations.train_stage

    def disturbed(plan: Any, *others: Any) -> Any:
        if plan.name.endswith(stage):
            happens()
        return original(plan, *others)

    patch.setattr(iterations, "train_stage", disturbed)


@contextmanager
def damaged(store: Store, row: int, what: str, value: float) -> Iterator[None]:
    """A value of one clip in its shard, for a while."""
    offset = int((store.fbank_offset if what == "fbank" else store.hog_offset)[row])
    path = store.root / store.tar_name(int(store.shard_of(np.array([row]))[0]))
    whole = path.read_bytes()
    with path.open("r+b") as tar:
        tar.seek(offset + 2 * 100)
        tar.write(np.float16(value).tobytes())
    assert path.read_bytes() != whole
    yield
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("what", "value", "terms"),
    [
        ("fbank", float("nan"), "intra_restore, intra_mse, intra_kl, intra_contrast, inter_restore"),
        ("fbank", float("inf"), "intra_restore, intra_mse, intra_kl, intra_contrast, inter_restore"),
        ("HOG", float("nan"), "intra_restore, inter_restore is not finite"),
        ("HOG", float("inf"), "intra_restore, inter_restore is not finite"),
    ],
)
def test_a_value_that_is_not_finite(bench: Bench, what: str, value: float, terms: str) -> None:
    row = int(bench.store.rows(split="train")[3])
    (key,) = bench.store.keys(np.array([row]))
    with damaged(bench.store, row, what, value):
        said = bench.refused("iter1/multissl, step ", terms, f"Not finite are {key}'s {what}: `featurestore verify`")
        assert "The last good checkpoint is kept" in said
    failed_step = int(said.split("step ")[1].split(":")[0])
    saved = bench.folder / LAST.format("multissl")
    assert (bench.step("multissl") if saved.exists() else 0) == (failed_step - 1) // 2 * 2
    bench.goes_on()


def test_one_term_alone(bench: Bench, monkeypatch: Patch) -> None:
    original = stages.distill_losses

    def guilty(network: Any, inputs: Any, *others: Any) -> Any:
        terms = original(network, inputs, *others)
        regress = terms["classify"] * float("inf")
        return {**terms, "regress": regress, "loss": terms["loss"] + regress}

    with monkeypatch.context() as patch:
        patch.setattr(stages, "distill_losses", guilty)
        bench.refused("iter1/distill, step 1: regress is not finite; the batch held clip", "lower the peak_lr")
    bench.goes_on()


def test_a_shard_that_is_gone_when_a_stage_begins(bench: Bench, monkeypatch: Patch) -> None:
    shard = bench.store.root / bench.store.tar_name(2)
    aside = shard.with_suffix(".aside")
    with monkeypatch.context() as patch:
        before_stage(patch, "distill", lambda: shard.rename(aside) and None)
        bench.refused(shard.name)
    assert bench.step("multissl") == 6
    bench.refused(shard.name)
    aside.rename(shard)
    bench.goes_on()


def test_a_shard_that_is_cut_while_it_is_read(bench: Bench, monkeypatch: Patch) -> None:
    """Of six steps some are read ahead of the first, and the last isn't."""
    shards = [bench.store.root / bench.store.tar_name(number) for number in range(bench.store.snapshot.num_shards)]
    whole = [shard.read_bytes() for shard in shards]

    def cut() -> None:
        for shard in shards:
            with shard.open("r+b") as file:
                file.truncate(1024)

    with monkeypatch.context() as patch:
        at_step(patch, "multissl_losses", 1, cut)
        bench.refused("-00000", ".tar")
    for shard, content in zip(shards, whole, strict=True):
        shard.write_bytes(content)
    bench.goes_on()


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file grows beyond so many bytes: as if the disk were full, for who writes more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("num_bytes", "place", "said"),
    [
        (200, "multissl", "metrics.jsonl can't be written (File too large); make room"),
        (8_000, "multissl", "iter1/multissl/best.pt can't be written (File too large); make room"),
        (200, "distill", "metrics.jsonl can't be written (File too large); make room"),
    ],
)
def test_no_room(bench: Bench, monkeypatch: Patch, num_bytes: int, place: str, said: str) -> None:
    with monkeypatch.context() as patch, full_disk_from(patch, place, num_bytes):
        bench.refused(said, "run the same command again")
    bench.goes_on()


@contextmanager
def full_disk_from(patch: Patch, stage: str, num_bytes: int) -> Iterator[None]:
    """The disk is full from the beginning of a stage on."""
    original = iterations.train_stage

    def limited(plan: Any, *others: Any) -> Any:
        if not plan.name.endswith(stage):
            return original(plan, *others)
        with full_disk(num_bytes):
            return original(plan, *others)

    patch.setattr(iterations, "train_stage", limited)
    yield


def test_no_room_for_a_checkpoint_keeps_the_one_before(bench: Bench, monkeypatch: Patch) -> None:
    save, calls = loop.save_checkpoint, iter(range(100))

    def fourth(*arguments: Any) -> None:
        if next(calls) < 3:
            return save(*arguments)
        with full_disk(8_000):
            return save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", fourth)
        bench.refused("iter1/multissl/", ".pt can't be written (", "make room and run the same command again")
    assert bench.step("multissl") in (2, 4)
    bench.goes_on()


@pytest.mark.parametrize("name", ["write_predictions", "write_json"])
def test_no_room_for_what_is_kept_of_an_evaluation(bench: Bench, monkeypatch: Patch, name: str) -> None:
    original = getattr(iterations, name)

    def limited(*arguments: Any) -> None:
        with full_disk(50):
            original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(iterations, name, limited)
        file = "predictions.parquet" if name == "write_predictions" else "eval.json"
        bench.refused(f"iter1/{file} can't be written (", "make room and run the same command again")
    assert not (bench.folder / "iter1/eval.json").exists()
    assert bench.step("distill") == 6
    bench.goes_on()


@pytest.mark.parametrize("before", ["_keep_predictions", "write_json"])
def test_killed_between_the_last_checkpoint_and_the_evaluation(bench: Bench, monkeypatch: Patch, before: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(iterations, before, lambda *_: interrupt())
        assert bench.go().status == 130
    last = load_checkpoint(bench.folder / LAST.format("distill"))
    assert last.about.finished
    assert last.optimiser is None
    bench.goes_on()


def test_a_checkpoint_that_is_cut(halfway: Bench) -> None:
    path = halfway.folder / LAST.format("distill")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    halfway.refused("iter1/distill/last.pt is not a whole checkpoint")
    path.write_bytes(whole)
    halfway.goes_on()


def test_a_checkpoint_of_another_stage(halfway: Bench) -> None:
    path = halfway.folder / LAST.format("distill")
    whole = path.read_bytes()
    shutil.copy(halfway.folder / LAST.format("multissl"), path)
    halfway.refused("iter1/distill/last.pt belongs to another configuration or store")
    path.write_bytes(whole)
    halfway.goes_on()


def test_the_best_in_the_place_of_the_last(halfway: Bench) -> None:
    """It has no optimiser's state, with which alone the stream stays the same."""
    path = halfway.folder / LAST.format("distill")
    shutil.copy(path.with_name("best.pt"), path)
    halfway.refused("last.pt is of step 2 of 6 and has no optimiser's state", "delete it to train the stage anew")
    path.unlink()
    halfway.goes_on()


@pytest.mark.parametrize("change", ["lacking", "shape", "optimiser"])
def test_a_checkpoint_of_other_weights(halfway: Bench, change: str) -> None:
    path = halfway.folder / LAST.format("distill")
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    name = next(iter(content["network"]))
    if change == "lacking":
        del content["network"][name]
    elif change == "shape":
        content["network"][name] = content["network"][name][:1]
    else:
        content["optimiser"]["param_groups"].pop()
    torch.save(content, path)
    halfway.refused("last.pt has other weights than this version's network (")
    path.write_bytes(whole)
    halfway.goes_on()


def test_a_finished_stage_whose_checkpoint_is_another(bench: Bench) -> None:
    shutil.copytree(bench.clean, bench.folder)
    last, other = bench.folder / LAST.format("distill"), bench.folder / LAST.format("multissl")
    whole = last.read_bytes()
    shutil.copy(other, last)
    bench.refused("last.pt is of step 6 of 6 of iter1/multissl", "expected the end of iter1/distill")
    last.unlink()
    bench.refused("iter1/distill/last.pt can't be read: No such file")
    last.write_bytes(whole)
    bench.goes_on()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{", "config.json is not a configuration that this version reads"),
        ("config.json", None, "it differs in seed (3 and 0): choose another folder with --run"),
        ("config.json", '{"seed": "x"}', "config.json is not a configuration that this version reads (source: "),
        ("store.json", "[]", "store.json is damaged, it names no store"),
        ("store.json", "{}", "store.json is damaged, it names no store"),
        ("store.json", '{"store": "a", "fingerprint": "b", "others": 3}', "store.json is damaged"),
        ("environment.json", "{}", "environment.json is damaged, it is no list of calls; delete it"),
        ("environment.json", "[", "environment.json is damaged"),
    ],
)
def test_files_edited_by_hand(halfway: Bench, file: str, content: str | None, said: str) -> None:
    path = halfway.folder / file
    whole = path.read_text()
    path.write_text(whole.replace('"seed": 0', '"seed": 3') if content is None else content)
    halfway.refused(said)
    path.write_text(whole)
    halfway.goes_on()


@pytest.mark.parametrize(
    "torn", [b'{"stage": "iter1/distill", "st', b"\xff\xfe\x00", b"3\n", b"[]\n", b'{"loss": 1}\n', b"\0" * 9]
)
def test_a_torn_line_of_metrics(halfway: Bench, torn: bytes) -> None:
    with (halfway.folder / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    halfway.goes_on()


def test_two_at_once(halfway: Bench) -> None:
    with (halfway.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        halfway.refused(f"another training is at work on {halfway.folder}")
    halfway.goes_on()


def test_a_folder_that_cannot_be_written_to(bench: Bench) -> None:
    """Not even by root."""
    outcome = bench.training(
        "run", "--iter", "1", "--preset", bench.preset, "--store", bench.store.root, "--run", "/proc"
    )
    assert outcome.status == 2
    assert outcome.err.startswith("error: /proc/.lock can't be written (")
    assert outcome.err.count("\n") == 1


def test_the_file_to_start_from_is_needed_until_there_is_a_checkpoint(
    bench: Bench, checkpoint_path: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    start = Path(shutil.copy(checkpoint_path, tmp_path / "start.pt"))
    command = ("run", "--iter", "1", "--preset", bench.preset, "--store", bench.store.root, "--init", start, "--run")
    clean = tmp_path / "clean"
    assert bench.training(*command, clean).status == 0
    with monkeypatch.context() as patch:
        at_step(patch, "multissl_losses", 1, interrupt)
        assert bench.training(*command, bench.folder).status == 130
    whole = start.read_bytes()
    content = torch.load(start, weights_only=True)
    content["network"]["aft.transformer.norm.bias"] += 1.0
    torch.save(content, start)
    replaced = bench.training(*command, bench.folder)
    assert (replaced.status, "start.pt is another file than the one that" in replaced.err) == (2, True)
    start.write_bytes(whole)
    told = bench.folder / "initialised.json"
    kept = told.read_text()
    told.write_text("{}")
    edited = bench.training(*command, bench.folder)
    assert (edited.status, "initialised.json is damaged" in edited.err) == (2, True)
    told.write_text(kept)
    with monkeypatch.context() as patch:
        at_step(patch, "multissl_losses", 4, interrupt)
        assert bench.training(*command, bench.folder).status == 130
    start.unlink()
    assert bench.training(*command, bench.folder).status == 0
    assert stream(bench.folder) == stream(clean)
    assert (bench.folder / LAST.format("distill")).read_bytes() == (clean / LAST.format("distill")).read_bytes()


def test_all_that_is_drawn_is_drawn_again(
    own_store: Store,
    growing_store: tuple[Store, Callable[[], Store]],
    preset: Path,
    checkpoint_path: Path,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    """Two stores, balanced classes, a teacher's views, mixup, gain and SpecAugment, and saves that divide nothing."""
    other, _ = growing_store
    for store in (own_store, other):
        teacher = Ensemble([load_checkpoint_teacher(checkpoint_path)])
        build_cache(plan_cache(store, teacher, "ours", CacheOptions(num_views=3)), InProcess())
    label_changes = ["mixup_share=0.5", "gain_db=4", "time_mask_frames=40", "freq_mask_bins=20"]
    config = load_config(
        str(preset),
        [
            *("distill.teacher=ours", "distill.views=true", "distill.balanced=true", "distill.proportions=[2, 1]"),
            *("multissl.augment.gain_db=3", "multissl.optimiser.epochs=1", "checkpoint_every_steps=3"),
            *(f"distill.augment.{change}" for change in label_changes),
        ],
    )
    for name, stops in (("clean", []), ("run", [("multissl_losses", 4), ("distill_losses", 5), ("distill_losses", 3)])):
        for losses, number in stops:
            with monkeypatch.context() as patch:
                at_step(patch, losses, number, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    train([own_store, other], config, tmp_path / name)
        train([own_store, other], config, tmp_path / name)
    assert stream(tmp_path / "run") == stream(tmp_path / "clean")
    for file in ("multissl/last.pt", "distill/last.pt", "distill/best.pt", "predictions.parquet"):
        one, two = (tmp_path / name / "iter1" / file for name in ("run", "clean"))
        assert one.read_bytes() == two.read_bytes(), file


def train(stores: list[Store], config: RunConfig, folder: Path) -> None:
    with open_run(stores, config, folder, CPU) as run:
        run_iterations(run, 1)
