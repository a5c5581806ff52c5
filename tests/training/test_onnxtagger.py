"""Exported ONNX files as taggers, against the checkpoints that they were made from."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch

from ingest.synthesis import SOUNDS, synthesise
from manifests.errors import InputError
from training import onnxtagger
from training.checkpoint import About
from training.checkpointtagger import load_checkpoint_tagger
from training.export.kinds import Format
from training.export.save import export_model
from training.onnxtagger import OnnxTagger, load_onnx
from training.tagger import Tagger

CPU = torch.device("cpu")
NUM_REAL_CLIPS = 8


@pytest.fixture(scope="module")
def exported(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "out"
    export_model(checkpoint_path, [Format.ONNX], out)
    return out / "model.onnx"


@pytest.fixture
def tagger(exported: Path) -> OnnxTagger:
    return load_onnx(exported)


def assert_same(one: Tagger, other: Tagger, waveforms: list[np.ndarray]) -> None:
    found, expected = (of.hear([of.prepare(waveform) for waveform in waveforms]) for of in (one, other))
    assert expected.probabilities is not None
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-3)
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-3)


def test_all_that_is_known_is_in_the_file(tagger: OnnxTagger, about: About, checkpoint_path: Path) -> None:
    own = load_checkpoint_tagger(checkpoint_path, CPU)
    for name in ("sample_rate_hz", "window_samples", "least_samples", "embedding_dim", "vocabulary"):
        assert getattr(tagger, name) == getattr(own, name), name
    assert tagger.provenance["checkpoint_sha256"] == own.provenance["checkpoint_sha256"]
    assert tagger.provenance["store_fingerprint"] == about.store_fingerprint


def test_synthetic_sounds_of_several_lengths(tagger: OnnxTagger, checkpoint_path: Path) -> None:
    made = [synthesise(label, np.random.default_rng(place), 16_000) for place, label in enumerate(SOUNDS)]
    assert_same(tagger, load_checkpoint_tagger(checkpoint_path, CPU), [*made, made[0][:400], np.zeros(500, np.float32)])
    prepared = tagger.prepare(made[0][:1000])
    assert prepared.shape == (41_200,)
    np.testing.assert_array_equal(prepared[1000:2000], made[0][:1000])


def test_real_clips(tagger: OnnxTagger, checkpoint_path: Path, shared: Path) -> None:
    paths = sorted((shared / "data/esc10/audio").glob("*.ogg"))
    if not paths:
        pytest.skip("no clips of ESC-10")
    clips = []
    for path in paths[:: len(paths) // NUM_REAL_CLIPS]:
        sound, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        # Every third sample of 48 kHz: aliased, and as real as any for this purpose.
        clips.append(np.ascontiguousarray(sound.mean(1)[:: max(1, rate_hz // 16_000)]))
    assert_same(tagger, load_checkpoint_tagger(checkpoint_path, CPU), clips)


def test_embeddings_alone(exported: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    """As a model without a classifier is exported, here made from one that has it."""
    content = onnx.load(exported)
    del content.graph.output[:2]
    metadata = {entry.key: entry.value for entry in content.metadata_props} | {"labels": "[]"}
    onnx.helper.set_model_props(content, metadata)
    onnx.save(content, tmp_path / "embedding.onnx")
    tagger, own = load_onnx(tmp_path / "embedding.onnx"), load_checkpoint_tagger(checkpoint_path, CPU)
    waveform = synthesise("bell", np.random.default_rng(0), 16_000)
    found = tagger.hear([tagger.prepare(waveform)])
    assert (tagger.vocabulary, found.probabilities, found.tokens) == (None, None, None)
    np.testing.assert_allclose(found.embedding, own.hear([own.prepare(waveform)]).embedding, atol=1e-3)


def test_other_files_are_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:5000])
    (tmp_path / "empty.onnx").touch()
    for name in ("text", "cut", "empty"):
        with pytest.raises(InputError, match=rf"{name}\.onnx is not a whole ONNX model"):
            load_onnx(tmp_path / f"{name}.onnx")
    with pytest.raises(InputError, match=r"absent\.onnx can't be read: No such file"):
        load_onnx(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        load_onnx(tmp_path)
    content = onnx.load(exported)
    del content.metadata_props[:]
    onnx.save(content, tmp_path / "bare.onnx")
    with pytest.raises(InputError, match=r"bare\.onnx does not say of itself .* expected a model\.onnx of"):
        load_onnx(tmp_path / "bare.onnx")
    monkeypatch.setattr(onnxtagger, "RUNTIME", "no_such_runtime")
    with pytest.raises(InputError, match=r"onnxruntime, which is missing: pip install 'acm-sskd\[export\]'"):
        load_onnx(exported)
