"""Exported files: run by their own runtimes, whole or absent, and with all that is needed to use them."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch

from featurestore.store import Store
from ingest.sourcefile import file_sha256
from manifests.errors import InputError
from training.checkpoint import About, Checkpoint, load_checkpoint, load_student, save_checkpoint
from training.checkpointtagger import load_checkpoint_tagger
from training.export import check, formats
from training.export.check import CheckClips, Difference, check_file, expect
from training.export.hub import hub_config
from training.export.kinds import Format
from training.export.save import export_model
from training.model.networks import MultiSSLNetwork
from training.modelfile import find_checkpoint

CPU = torch.device("cpu")
FILES = ["README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors", "preprocessor_config.json"]


def test_all_formats_beside_one_another(done: Any) -> None:
    assert sorted(path.name for path in done.folder.iterdir()) == FILES
    assert [path.name for path in done.folder.parent.iterdir()] == ["tiny"]
    assert {file.name for file in done.export.files} == set(FILES) - {"README.md"}
    assert done.export.checked_on == "4 clips of tiny"
    (ordinary := done.folder.parent.parent / "ordinary").touch()
    for file in done.export.files:
        path = done.folder / file.name
        assert path.stat().st_size == file.num_bytes
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
        if file.difference is not None:
            assert file.difference.probabilities <= 1e-3
            assert 0 <= file.difference.embedding <= 1e-3


def test_onnx_in_its_own_runtime(done: Any, about: About, waveform: np.ndarray) -> None:
    session = onnxruntime.InferenceSession(done.folder / "model.onnx")
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("waveform", ["batch", "num_samples"])]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [
        ("probabilities", ["batch", 3]),
        ("logits", ["batch", 3]),
        ("embedding", ["batch", 16]),
    ]
    tagger = load_checkpoint_tagger(done.checkpoint, CPU)
    expected = tagger.hear([tagger.prepare(waveform)])
    for num_clips in (1, 5):
        found = session.run(None, {"waveform": np.repeat(waveform[None], num_clips, 0)})
        for row in range(num_clips):
            np.testing.assert_allclose(found[0][row], expected.probabilities[0], atol=1e-3)
            np.testing.assert_allclose(found[2][row], expected.embedding[0], atol=1e-3)
    content = onnx.load(done.folder / "model.onnx")
    onnx.checker.check_model(content)
    assert [(one.domain, one.version) for one in content.opset_import] == [("", 18)]
    known = {entry.key: json.loads(entry.value) for entry in content.metadata_props}
    assert [label["id"] for label in known["labels"]] == about.vocabulary.ids
    assert known["preprocessing"]["mean"] == about.mean
    assert known["input"]["window_samples"] == 41_200
    assert known["provenance"]["checkpoint_sha256"] == file_sha256(done.checkpoint)
    assert known["provenance"]["store_fingerprint"] == about.store_fingerprint


def test_torch_program(done: Any, waveform: np.ndarray) -> None:
    extra = {"description.json": ""}
    run = torch.export.load(done.folder / "model.pt2", extra_files=extra).module()
    tagger = load_checkpoint_tagger(done.checkpoint, CPU)
    expected = tagger.hear([tagger.prepare(waveform)])
    found = run(torch.from_numpy(waveform)[None])
    np.testing.assert_allclose(found[0].numpy(), expected.probabilities, atol=1e-3)
    np.testing.assert_allclose(found[2].numpy(), expected.embedding, atol=1e-3)
    assert json.loads(extra["description.json"])["one_label"] is True


def test_the_folder_is_a_checkpoint_again(done: Any) -> None:
    path = find_checkpoint(done.folder)
    assert path == done.folder / "model.safetensors"
    original, read = load_checkpoint(done.checkpoint), load_checkpoint(path)
    assert (read.about, read.optimiser) == (original.about, None)
    assert read.network.keys() == original.network.keys()
    assert all(torch.equal(read.network[name], part) for name, part in original.network.items())
    assert load_student(read).classifier.bias.shape == (3,)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "bark", "1": "bell", "2": "rain"}
    assert (config["hidden_size"], config["problem_type"]) == (16, "single_label_classification")
    taken = json.loads((done.folder / "preprocessor_config.json").read_text())
    assert (taken["sampling_rate"], taken["num_samples"], taken["max_length"]) == (16_000, 41_200, 256)


def test_other_safetensors_are_no_checkpoint(done: Any, tmp_path: Path) -> None:
    whole = (done.folder / "model.safetensors").read_bytes()
    for number, content in enumerate((b"", b"x" * 100, whole[:-1], whole[:50])):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a whole checkpoint of this trainer"):
            load_checkpoint(path)
    with pytest.raises(InputError, match=r"absent\.safetensors can't be read: No such file"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_the_same_model_gives_the_same_bytes(done: Any, tmp_path: Path) -> None:
    export_model(done.checkpoint, [Format.FOLDER, Format.TORCH], tmp_path / "again")
    for name in sorted(set(FILES) - {"README.md", "model.onnx"}):
        assert (tmp_path / "again" / name).read_bytes() == (done.folder / name).read_bytes(), name


def test_no_file_knows_this_machine(done: Any, run_folder: Path) -> None:
    places = (str(Path(__file__).parents[3]), str(Path(torch.__file__).parent), str(run_folder), "/home/me")
    for path in done.folder.iterdir():
        content = path.read_bytes()
        assert [place for place in places if place.encode() in content] == [], path.name


def test_the_card_says_how_and_its_lines_run(
    done: Any, waveform: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (done.folder / "README.md").read_text()
    for said in (
        "| mAP | 0.432 |",
        "On 5 of the 6 clips of test",
        "started from vit.pt",
        "2. rain (`rain`)",
        "4 clips of",
    ):
        assert said in card
    assert "d'" not in card  # it has no finite value
    assert "The terms of tiny are not stated" in card
    for name in ("model.onnx", "model.pt2"):
        (tmp_path / name).symlink_to(done.folder / name)
    soundfile.write(tmp_path / "clip.wav", waveform, 16_000, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 2
    names: dict[str, Any] = {}
    exec(snippets[0], names)
    tagger = load_checkpoint_tagger(done.checkpoint, CPU)
    expected = tagger.hear([tagger.prepare(waveform)]).probabilities
    np.testing.assert_allclose(names["probabilities"], expected, atol=1e-3)
    assert "bark" in capsys.readouterr().out
    exec(snippets[1], names)
    assert names["probabilities"].shape == (1, 3)


def test_a_file_that_differs_is_not_kept(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def louder(path: Path) -> Callable[..., Any]:
        run = formats.open_torch(path)
        return lambda waveforms: run(3 * waveforms)

    monkeypatch.setattr(check, "open_torch", louder)
    with pytest.raises(
        InputError, match=r"model\.pt2 gives other values .* on 4 clips of tiny, where 0\.001 is allowed"
    ):
        export_model(done.checkpoint, [Format.TORCH, Format.SAFETENSORS], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nan_is_a_difference() -> None:
    assert Difference(0.0, 1e-3).passes
    assert not Difference(0.0, float("nan")).passes
    assert not Difference(float("nan"), 0.0).passes
    assert not Difference(1.1e-3, 0.0).passes


def test_short_clips_are_checked(done: Any) -> None:
    clips = CheckClips([np.full(400, 0.1, np.float32)], "a clip")
    assert check_file(done.folder / "model.onnx", expect(load_checkpoint(done.checkpoint), clips)).passes


def test_a_folder_with_files_is_left_alone(done: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files already \(notes\.txt\); choose another folder with --out"):
        export_model(done.checkpoint, [Format.SAFETENSORS], tmp_path)
    with pytest.raises(InputError, match="is a file"):
        export_model(done.checkpoint, [Format.SAFETENSORS], tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    export_model(done.checkpoint, [Format.SAFETENSORS], tmp_path / "empty")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["README.md", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes.txt"]


def test_without_the_extra(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ONNX_LIBRARIES", ("onnx", "no_such_library"))
    with pytest.raises(InputError, match=r"--format onnx .* need no_such_library: pip install 'acm-sskd\[export\]'"):
        export_model(done.checkpoint, [Format.ONNX], tmp_path / "named")
    found = export_model(done.checkpoint, [], tmp_path / "default")
    assert found.left_out == ["onnx was left out: ONNX files need no_such_library: pip install 'acm-sskd[export]'"]
    assert not (tmp_path / "default/model.onnx").exists()


def test_too_large_for_onnx(done: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(formats, "MAX_ONNX_WEIGHT_BYTES", 1000)
    with pytest.raises(InputError, match=r"an ONNX file holds 2 GiB at most, .* take --format torch"):
        export_model(done.checkpoint, [Format.ONNX], tmp_path / "out")


@pytest.mark.parametrize("there", ["another store", "an empty folder"])
def test_a_store_that_is_not_the_one_trained_on(
    run_folder: Path, tmp_path: Path, there: str, unlabelled_store: Store
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    about = json.loads((run / "store.json").read_text())
    place = unlabelled_store.root if there == "another store" else tmp_path / "empty"
    place.mkdir(exist_ok=True)
    (run / "store.json").write_text(json.dumps({**about, "store": str(place)}))
    found = export_model(run / "iter1/distill/last.pt", [Format.SAFETENSORS], tmp_path / "out")
    assert "4 synthetic sounds, since the store that it was trained on is out of reach" in found.checked_on


LIMITED = """import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from training.cli import main
main()
"""


@pytest.mark.parametrize("form", ["safetensors", "torch", "onnx"])
def test_a_full_disk(run_folder: Path, tmp_path: Path, form: str) -> None:
    """In a process of its own: torch's own writer would end this one."""
    words = ["export", str(run_folder), "--format", form, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(formats.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: .* can't be written \(File too large\); make room .*\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


def test_labels_of_one_name(about: About) -> None:
    labels = [{"id": "/m/1", "name": "Bell"}, {"id": "/m/2", "name": "Bell"}]
    description = {"labels": labels, "one_label": True}
    config = hub_config(Checkpoint(about, {}), description)
    assert config["label2id"] == {"/m/1": 0, "/m/2": 1}
    assert config["id2label"] == {"0": "/m/1", "1": "/m/2"}


def test_multissl_gives_embeddings_checked_on_made_sounds(about: About, tmp_path: Path) -> None:
    network = MultiSSLNetwork(about.model, torch.Generator().manual_seed(0))
    about = about.model_copy(update={"stage": "multissl"})
    save_checkpoint(Checkpoint(about, network.state_dict()), tmp_path / "last.pt")
    found = export_model(tmp_path / "last.pt", [Format.TORCH, Format.FOLDER], tmp_path / "out")
    assert "4 synthetic sounds, since the store that it was trained on is out of reach" in found.checked_on
    assert {file.difference.probabilities for file in found.files if file.difference} == {None}
    assert load_checkpoint(find_checkpoint(tmp_path / "out")).about.stage == "multissl"
    card = (tmp_path / "out/README.md").read_text()
    assert "# Audio embeddings" in card
    assert "## Labels" not in card
    assert "(embedding," not in card
    assert "embedding, = model(" in card
    assert "training predict" not in card
    assert "audio-tagging" not in card
    assert "| model.safetensors | the weights; `training embed --model` reads them |" in card
    assert "\n    training embed clip.mp3 --out clip.parquet --model .\n" in card


def test_the_command(training: Callable[..., Any], run_folder: Path, tmp_path: Path, waveform: np.ndarray) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile(waveform, 5), 16_000)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    given = ("export", run_folder, "--format", "safetensors", "--out", tmp_path / "out")
    failed = training(*given, "--check", tmp_path / "a.wav", "--check", tmp_path / "b.wav")
    assert (failed.status, (tmp_path / "out").exists()) == (2, False)
    assert "b.wav" in failed.err
    outcome = training(*given, "--check", tmp_path / "a.wav")
    assert outcome.status == 0, outcome.err
    assert "checked on 1 given file" in outcome.out
    assert "model.safetensors" in outcome.out
    help_text = training("export", "--help").out
    assert "Example: training export" in help_text
