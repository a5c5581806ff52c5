"""The command `featurestore`: what it prints, its exit status, and mistakes told in one line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurestore import cli
from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teachers.efficientat import ROWS, BlockSizes, MobileNet, Sizes, load_efficientat
from featurestore.waveforms import read_waveform
from tests.featurestore.teachers import astfiles

SMALL = Sizes(
    stem=3,
    blocks=tuple(BlockSizes(5, 2 if row.squeezes else 0, 3) for row in ROWS),
    embedding=11,
    head=7,
    classes=4,
)


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]
MakeStore = Callable[..., Store]


@pytest.fixture
def featurestore(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the console script's function in this process."""

    def command(*arguments: str | int | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["featurestore", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        status: int | str | None = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        assert isinstance(status, int | None)
        return Outcome(status or 0, captured.out, captured.err)

    return command


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small EfficientAT of random weights."""
    torch.manual_seed(0)
    torch.save(MobileNet(SMALL).state_dict(), tmp_path / "small.pt")
    return tmp_path / "small.pt"


def assert_error(outcome: Outcome, pattern: str) -> None:
    assert outcome.status == 2
    assert outcome.out == ""
    assert re.fullmatch(rf"error: .*{pattern}.*\n", outcome.err), outcome.err


def test_json_for_machines(featurestore: Command, store_root: Path, store_copy: Path) -> None:
    store = Store(store_root)
    said = json.loads(featurestore("info", store_root, "--json").out)
    assert (said["num_clips"], said["num_shards"], said["mean"]) == (12, 3, store.snapshot.mean)
    assert said["labels"] == list(store.file.vocabulary.ids)
    whole = featurestore("verify", store_root, "--json")
    assert (whole.status, json.loads(whole.out)) == (0, [])
    tar = store_copy / Store(store_copy).tar_name(1)
    content = bytearray(tar.read_bytes())
    content[5000] ^= 1
    tar.write_bytes(content)
    broken = featurestore("verify", store_copy, "--json")
    assert broken.status == 1
    assert {problem["shard"] for problem in json.loads(broken.out)} == {1}
    apart = featurestore("leakage", store_root, store_copy, "--json")
    assert (apart.status, json.loads(apart.out)) == (0, [])


def test_info(featurestore: Command, finished_store: Store) -> None:
    outcome = featurestore("info", finished_store.root)
    assert (outcome.status, outcome.err) == (0, "")
    snapshot = finished_store.snapshot
    for text in (
        "22 in shards, 23 asked for",
        "5 of up to 5 clips",
        "256 frames x 128 mel",
        f"{snapshot.mean:.4f}, {snapshot.std:.4f}",
        "3 classes, one a clip",
        "test: 6, train: 16",
        "1: 8, 2: 7, 3: 7",
        snapshot.fingerprint,
    ):
        assert text in outcome.out


@pytest.mark.parametrize("columns", ["40", "80"])
def test_info_shows_all_of_the_fingerprint(store_copy: Path, tmp_path: Path, columns: str) -> None:
    """On a narrow terminal as well, and beside the line of a teacher."""
    (store_copy / "teachers" / "half.zarr").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "featurestore", "info", store_copy],
        env={**os.environ, "COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    )
    cells = [line.rsplit("│", 2)[1] for line in done.stdout.splitlines() if "│" in line]
    assert Store(store_copy).snapshot.fingerprint in "".join(cell.strip() for cell in cells)
    assert "…" not in done.stdout


def test_info_takes_the_only_store(
    featurestore: Command, store_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_error(featurestore("info"), r"no store under \./data; make one \(`ingest demo`\)")
    (tmp_path / "data").mkdir()
    store_copy.rename(tmp_path / "data" / "tiny")
    assert "data/tiny" in featurestore("info").out
    (tmp_path / "data/other").mkdir()
    (tmp_path / "data/other/store.json").touch()
    assert_error(featurestore("verify"), r"several stores under \./data: data/other, data/tiny; choose one")


def test_info_names_unusable_caches(featurestore: Command, store_copy: Path) -> None:
    (store_copy / "teachers/half.zarr").mkdir(parents=True)
    outcome = featurestore("info", store_copy)
    assert outcome.status == 0
    assert "teacher half" in outcome.out
    assert "unusable: " in outcome.out


def test_verify(featurestore: Command, store_copy: Path) -> None:
    outcome = featurestore("verify", store_copy)
    assert (outcome.status, outcome.out) == (0, f"{store_copy}: 22 clips in 5 shards, all as they should be\n")
    (store_copy / "shards/tiny-000003.tar").unlink()
    (store_copy / "shards/extra").touch()
    outcome = featurestore("verify", store_copy)
    assert outcome.status == 1
    lines = outcome.out.splitlines()
    assert lines[:2] == [
        "shards/extra: is not in SHA256SUMS: it doesn't belong to the store",
        "shards/tiny-000003.tar: is missing",
    ]
    assert lines[2].startswith(f"{store_copy}: 2 problems; ")
    assert len(lines) == 3


def test_repair(featurestore: Command, grown_copy: Path, fbank_stats: Any) -> None:
    repair = ("repair", grown_copy, "--workers", "0")
    outcome = featurestore(*repair)
    assert (outcome.status, outcome.out) == (0, f"{grown_copy}: nothing to mend\n")
    (grown_copy / "shards/tiny-000003.tar").unlink()
    (grown_copy / "shards/tiny-000005.parquet").unlink()
    assert "`featurestore repair" in featurestore("verify", grown_copy).out
    outcome = featurestore(*repair)
    assert outcome.status == 0
    assert outcome.out.startswith(f"{grown_copy}: 3 problems found; made anew: tiny-000003, tiny-000005\n")
    assert featurestore("verify", grown_copy).status == 0
    chunk = Path(build_teacher(Store(grown_copy), fbank_stats(), "stats").cache.path) / "embedding/c/0/0"
    chunk.write_bytes(b"")
    outcome = featurestore(*repair)
    assert outcome.status == 1
    assert "made anew: no shard" in outcome.out
    assert "the teacher cache stats is mended by its `featurestore build-teacher` command, run again" in outcome.out


def test_repair_without_sources(featurestore: Command, growing: Any) -> None:
    store = growing.ingest_first()
    (store.root / "shards/tiny-000002.tar").unlink()
    for path in growing.corpus.glob("*.wav"):
        path.unlink()
    outcome = featurestore("repair", store.root, "--workers", "0")
    assert (outcome.status, outcome.out) == (2, "")
    last = outcome.err.splitlines()[-1]
    assert re.fullmatch(r"error: clip clip\d\d is in tiny-000002 and can't be had any more .* Restore the source", last)


def build_command(store: Store, weights: Path) -> tuple[str | Path, ...]:
    model = ("--model", "efficientat", "--checkpoint", weights)
    return ("build-teacher", *model, "--store", store.root, "--workers", "0")


def test_build_teacher(featurestore: Command, make_store: MakeStore, weights: Path) -> None:
    store = make_store(["bark", "bell", "rain", "rain"])
    build = build_command(store, weights)
    outcome = featurestore(*build)
    path = store.root / "teachers/efficientat.zarr"
    assert (outcome.status, outcome.out) == (0, f"{path}: 4 of 4 clips, embedding of 11 (embedding, logits)\n")
    assert "Traceback" not in outcome.err
    row = 2
    direct = load_efficientat(weights).embed(torch.from_numpy(read_waveform(store, row, 32000))[None])
    cached = TeacherCache(store, "efficientat")
    np.testing.assert_allclose(cached.embeddings(np.array([row])), direct.embedding, rtol=2e-3, atol=1e-5)
    assert direct.logits is not None
    np.testing.assert_allclose(cached.logits(np.array([row])), direct.logits, rtol=2e-3, atol=1e-5)
    assert "embedding of 11 by efficientat" in featurestore("info", store.root).out
    assert featurestore(*build).out == outcome.out
    named = featurestore(*build, "--name", "second")
    assert named.out.startswith(f"{store.root / 'teachers/second.zarr'}: 4 of 4")


def test_build_teacher_tells_of_clips_without_a_row(
    featurestore: Command, make_store: MakeStore, weights: Path
) -> None:
    store = make_store(["bark", "bell", "rain"])
    (store.root.parent / "corpus/clip01.wav").unlink()
    build = build_command(store, weights)
    outcome = featurestore(*build)
    assert outcome.status == 1
    first, second, third = outcome.out.splitlines()
    assert first.endswith("2 of 3 clips, embedding of 11 (embedding, logits)")
    assert (second, third) == ("1 clips have no row (NaN):", "  clip01: missing: no such file")


def test_build_teacher_tells_the_size_of_tokens_first(featurestore: Command, store_copy: Path, tmp_path: Path) -> None:
    path = astfiles.save(astfiles.made_up(), tmp_path)
    build = ("build-teacher", "--model", "ast", "--checkpoint", path, "--store", store_copy, "--workers", 0)
    first, second = featurestore(*build, "--tokens").out.splitlines()
    assert first == "tokens: 22 clips x 300 x 64 of 2 bytes, up to 0.000845 GB on disk"
    assert second.endswith("22 of 22 clips, embedding of 64 (embedding, logits, tokens)")


def test_build_teacher_of_an_ensemble(featurestore: Command, store_copy: Path, weights: Path, tmp_path: Path) -> None:
    ast = astfiles.save(astfiles.made_up(), tmp_path)
    members = ("--model", "efficientat", "--checkpoint", weights, "--model", "ast", "--checkpoint", ast)
    outcome = featurestore("build-teacher", *members, "--store", store_copy, "--workers", 0, "--views", 2)
    path = store_copy / "teachers/efficientat-ast.zarr"
    assert outcome.out == f"{path}: 22 of 22 clips, embedding of 75 (embedding, embedding_views)\n"
    cache = TeacherCache(Store(store_copy), "efficientat-ast")
    assert cache.row_shape("embedding_views") == (2, 75)
    names = [(one["name"], one["embedding_dim"]) for one in cache.attributes.provenance["members"]]
    assert names == [("efficientat", 11), ("ast", 64)]
    assert_error(
        featurestore("build-teacher", *members[:6], "--store", store_copy, "--workers", 0),
        "--model is given 2 times and --checkpoint 1 times",
    )


def test_mistakes_of_build_teacher(featurestore: Command, store_copy: Path, weights: Path) -> None:
    def build(*arguments: str | Path) -> Outcome:
        return featurestore("build-teacher", "--workers", "0", "--store", store_copy, *arguments)

    assert_error(build("--model", "beets"), "there is no teacher 'beets'; there are: .*checkpoint, efficientat")
    assert_error(build("--model", "efficientat"), "needs its weights: give the file with --checkpoint")
    assert_error(build("--model", "efficientat", "--checkpoint", "none.pt"), "none.pt: No such file")
    usual = ("--model", "efficientat", "--checkpoint", weights)
    assert_error(build(*usual, "--name", "../up"), r"--name '\.\./up' can't be a cache's name: use letters")
    assert_error(build(*usual, "--tokens"), "leave --tokens out")
    weights.write_bytes(b"no weights")
    assert_error(build(*usual), "cannot read tensors from .*small.pt")
    assert not (store_copy / "teachers").exists()


def test_ast_from_the_store_s_fbanks(featurestore: Command, store_copy: Path, tmp_path: Path) -> None:
    """No source is asked for: a cache of its own name, made of what the shards hold."""
    checkpoint = astfiles.save(astfiles.made_up(), tmp_path)
    arguments = ("build-teacher", "--workers", "0", "--store", store_copy, "--from-fbank", "--checkpoint", checkpoint)
    done = featurestore(*arguments, "--model", "ast")
    assert done.status == 0, done.err
    assert "ast-fbank.zarr: 22 of 22 clips" in done.out
    assert_error(
        featurestore(*arguments, "--model", "beats"), "there is no teacher 'beats-fbank'; there are: ast, ast-"
    )


def test_mistakes_of_all_commands(featurestore: Command, tmp_path: Path, store_copy: Path) -> None:
    for command in ("info", "verify"):
        assert_error(featurestore(command, tmp_path / "none"), r"none is not a store: it has no store.json; make one")
    assert_error(
        featurestore("build-teacher", "--model", "efficientat", "--store", tmp_path), "is not a store: it has no"
    )
    (store_copy / "store.json").write_text("{")
    assert_error(featurestore("info", store_copy), r"store\.json is damaged .* run the ingest command again")


def test_a_place_that_fails_is_one_line(featurestore: Command, store_copy: Path) -> None:
    (store_copy / ".lock").unlink()
    (store_copy / ".lock").mkdir()
    assert_error(featurestore("repair", store_copy), r"\.lock: Is a directory")


def test_a_mistake_is_one_line_where_a_library_says_more(featurestore: Command, store_copy: Path) -> None:
    (store_copy / "manifest.parquet").write_bytes(b"PAR1" + bytes(60) + b"PAR1")
    assert_error(featurestore("info", store_copy), r"manifest\.parquet is not a readable manifest .* run the ingest")


def test_wrong_options(featurestore: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no store to be found
    assert featurestore("build-teacher").status == 2
    assert featurestore("inspect").status == 2
    assert featurestore("--help").status == 0


def test_the_console_script(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("featurestore")
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [str(script), "verify", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert_error(Outcome(done.returncode, done.stdout, done.stderr), "is not a store: it has no store.json")
