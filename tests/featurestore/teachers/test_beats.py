"""BEATs against its reference implementation, and what its files must hold."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.teachers.base import Teacher, TeacherOutput, WaveformInput
from featurestore.teachers.beats import BeatsInput, BeatsSettings, BeatsTeacher, load_beats
from featurestore.teachers.beatsmodel import Beats, BeatsConfig, relative_buckets
from featurestore.teachers.golden import TINY_BEATS
from manifests.errors import InputError

HEAD = ("finetuned_model", "predictor_class")
CFG: dict[str, Any] = {name: value for name, value in TINY_BEATS.items() if name not in HEAD} | {"dropout": 0.1}
LABELS = {0: "/m/0bt9lr", 1: "/m/09x0r", 2: "/m/unknown"}  # Dog, Speech
TABLES = [f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight" for layer in range(2)]


def made_up(num_classes: int = 0) -> dict[str, Any]:
    """The content of a small file, fine-tuned where there are classes."""
    torch.manual_seed(0)
    cfg = CFG | ({"finetuned_model": True, "predictor_class": num_classes} if num_classes else {})
    state = Beats(BeatsConfig.model_validate(cfg)).state_dict()
    state = {name: torch.randn(tensor.shape) * 0.2 for name, tensor in state.items()}
    state[TABLES[1]] = state[TABLES[0]]
    labels = {"label_dict": dict(list(LABELS.items())[:num_classes])} if num_classes else {}
    return {"cfg": cfg, "model": state} | labels


def save(content: object, folder: Path) -> Path:
    torch.save(content, folder / "beats.pt")
    return folder / "beats.pt"


def tone(num_samples: int) -> Tensor:
    noise = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(1))
    return (torch.arange(num_samples) * 0.2).sin() * 0.3 + 0.01 * noise


def outputs(teacher: Teacher, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    said: TeacherOutput = teacher.embed(batch)
    assert said.logits is not None
    assert said.tokens is not None
    return said.embedding, said.logits, said.tokens


@pytest.fixture
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "beats_tiny.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_the_fbank_is_the_references(golden: dict[str, Tensor]) -> None:
    found, expected = BeatsInput(BeatsSettings(), 16)(golden["waveform"]), golden["fbank"]
    # Below this the FFT's rounding is heard, which differs between processors for torchaudio too (by up to .005).
    audible = expected > -1.0
    assert audible.float().mean() > 0.5
    torch.testing.assert_close(found[audible], expected[audible], atol=1e-4, rtol=0)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_the_network_is_the_references(golden: dict[str, Tensor], shared: Path) -> None:
    teacher = load_beats(shared / "golden" / "beats_tiny.pt")
    assert isinstance(teacher, BeatsTeacher)
    with torch.inference_mode():
        tokens = teacher.network(golden["fbank"])
    torch.testing.assert_close(tokens, golden["features"], atol=1e-4, rtol=0)


def test_waveforms_give_the_references_outputs(golden: dict[str, Tensor], shared: Path) -> None:
    teacher = load_beats(shared / "golden" / "beats_tiny.pt")
    pooled, logits, tokens = outputs(teacher, golden["waveform"])
    torch.testing.assert_close(pooled, golden["pooled"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.sigmoid(), golden["probabilities"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens, golden["features"], atol=2e-3, rtol=0)


@pytest.fixture
def full_size(shared: Path) -> dict[str, Any]:
    """The content of a full-size file, whose tensors all are one number's storage."""
    listed = json.loads((shared / "golden" / "beats_full_keys.json").read_text())
    state = {name: torch.zeros(1).expand(shape) for name, shape in listed["keys"].items()}
    labels = {index: f"/m/{index}" for index in range(527)}
    return {"cfg": listed["cfg"], "model": state, "label_dict": labels}


def test_a_full_size_file_loads_strictly(full_size: dict[str, Any], tmp_path: Path) -> None:
    teacher = load_beats(save(full_size, tmp_path))
    assert isinstance(teacher, BeatsTeacher)
    assert len(teacher.network.state_dict()) == 252
    # The table of position biases is one, though 12 names are for it.
    assert sum(parameter.numel() for parameter in teacher.network.parameters()) == 90_717_055
    assert (teacher.embedding_dim, teacher.input) == (768, WaveformInput(16_000))


@pytest.mark.parametrize("name", ["predictor.bias", "encoder.layers.7.self_attn.grep_a", TABLES[1]])
def test_a_full_size_file_must_be_whole(full_size: dict[str, Any], tmp_path: Path, name: str) -> None:
    del full_size["model"][name]
    with pytest.raises(InputError, match=rf"{name} is missing \(differences: 1\).*unilm"):
        load_beats(save(full_size, tmp_path))


def test_differences_are_named_and_counted(tmp_path: Path) -> None:
    content = made_up()
    state = content["model"]
    del state["layer_norm.bias"]
    state |= {
        "mask_emb": torch.zeros(2),
        "layer_norm.weight": torch.zeros(13),
        "encoder.layer_norm.bias": torch.ones(1),
    }
    with pytest.raises(InputError) as raised:
        load_beats(save(content, tmp_path))
    assert "layer_norm.bias is missing; mask_emb is not part of the network; " in str(raised.value)
    assert "has shape (13,), expected (12,) (differences: 4)" in str(raised.value)


def test_files_without_a_head_have_no_logits(tmp_path: Path) -> None:
    teacher = load_beats(save(made_up(), tmp_path))
    said = teacher.embed(tone(4_000))
    assert said.logits is None
    assert teacher.vocabulary is None
    assert said.tokens is not None
    # 23 frames: one patch of time, 8 of frequency.
    assert said.tokens.shape == (2, 8, 16)
    torch.testing.assert_close(said.embedding, said.tokens.mean(1))


def test_logits_are_the_mean_of_the_tokens_own(tmp_path: Path) -> None:
    content = made_up(3)
    teacher = load_beats(save(content, tmp_path))
    _, logits, tokens = outputs(teacher, tone(16_000))
    each = tokens @ content["model"]["predictor.weight"].T + content["model"]["predictor.bias"]
    torch.testing.assert_close(logits, each.mean(1), atol=1e-5, rtol=0)


def test_tokens_are_time_major(tmp_path: Path) -> None:
    teacher = load_beats(save(made_up(), tmp_path))
    assert isinstance(teacher, BeatsTeacher)
    seen: list[Tensor] = []
    teacher.network.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fbank = torch.randn(1, 48, 128, generator=torch.Generator().manual_seed(0))
    changed = fbank.clone()
    changed[:, 16:32, 32:48] += 1.0
    for one in (fbank, changed):
        teacher.network(one)
    differs = (seen[0] != seen[1]).any(2)[0]
    assert differs.nonzero().flatten().tolist() == [1 * 8 + 2]


def test_labels_keep_their_mids_in_the_files_own_order(tmp_path: Path) -> None:
    vocabulary = load_beats(save(made_up(3), tmp_path)).vocabulary
    assert vocabulary is not None
    assert vocabulary.ids == list(LABELS.values())
    assert vocabulary.names == ["Dog", "Speech", "/m/unknown"]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (None, "has no `label_dict`"),
        ({"0": "/m/a"}, "has no `label_dict`"),
        ({0: "/m/a", 1: "/m/b"}, "names 2 labels, which are not those of the 3 classes"),
        ({1: "/m/a", 2: "/m/b", 3: "/m/c"}, "names 3 labels, which are not those"),
        ({0: "/m/a", 1: "/m/b", 2: "/m/a"}, "names the label '/m/a' twice"),
    ],
)
def test_other_labels_are_refused(tmp_path: Path, labels: object, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load_beats(save(made_up(3) | {"label_dict": labels}, tmp_path))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"encoder_layers": "2"}, "encoder_layers: "),
        ({"encoder_layers": 0}, "encoder_layers: "),
        ({"encoder_layers": 10**12}, "encoder_layers: "),
        ({"encoder_attention_heads": 3}, "encoder_embed_dim 16 is no multiple of encoder_attention_heads"),
        ({"max_distance": 4}, "max_distance 4 is too small for 16 buckets"),
        ({"layer_norm_first": True}, "layer_norm_first: "),
        ({"gru_rel_pos": False}, "gru_rel_pos: "),
        ({"finetuned_model": True}, "finetuned_model without predictor_class"),
        ({"embed_dim": 13}, r"patch_embedding.weight has shape \(12, 1, 16, 16\), expected \(13, "),
    ],
)
def test_sizes_are_the_files_own_and_checked(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    content = made_up()
    content["cfg"] = CFG | change
    with pytest.raises(InputError, match=problem):
        load_beats(save(content, tmp_path))


@pytest.mark.parametrize("name", ["num_buckets", "conv_pos", "encoder_embed_dim"])
def test_a_size_that_the_file_lacks_is_no_default(tmp_path: Path, name: str) -> None:
    content = made_up()
    content["cfg"] = {key: value for key, value in CFG.items() if key != name}
    with pytest.raises(InputError, match=rf"another network, {name}: .*required.*differences: 1"):
        load_beats(save(content, tmp_path))


@pytest.mark.parametrize("content", [{"model": {}}, {"cfg": CFG}, [CFG], {"cfg": [1], "model": {}}])
def test_other_torch_files_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(InputError, match=r"beats\.pt has (no `cfg` and `model`|a `cfg` of another network)"):
        load_beats(save(content, tmp_path))


def test_layers_with_tables_of_their_own_are_refused(tmp_path: Path) -> None:
    content = made_up()
    content["model"][TABLES[1]] = content["model"][TABLES[0]] + 1
    with pytest.raises(InputError, match=r"another table of position biases under encoder\.layers\.1"):
        load_beats(save(content, tmp_path))


@pytest.mark.parametrize("num_samples", [0, 1, 399, 400, 2_799, 2_800])
def test_clips_below_one_patch_are_followed_by_silence(tmp_path: Path, num_samples: int) -> None:
    teacher = load_beats(save(made_up(3), tmp_path))
    padded = torch.cat([tone(num_samples), torch.zeros(2, 2_800 - num_samples)], 1)
    found = outputs(teacher, tone(num_samples))
    torch.testing.assert_close(found, outputs(teacher, padded), atol=0, rtol=0)
    assert all(output.isfinite().all() for output in found)


def test_relative_buckets_are_as_published() -> None:
    offsets = torch.tensor([0, 1, -1, 3, -3, 4, -4, 10, -10, 39, 40, -1000, 1000])
    # 16 buckets, 8 a sign, 4 of them exact, and 4 + 4 log(d / 4) / log(10) up to the last.
    far = [4 + math.floor(4 * math.log(d / 4) / math.log(10)) for d in (10, 39)]
    expected = [0, 9, 1, 11, 3, 12, 4, 8 + far[0], far[0], 8 + far[1], 15, 7, 15]
    assert relative_buckets(offsets, 16, 40).tolist() == expected


def test_bfloat16_is_close(tmp_path: Path) -> None:
    teacher = load_beats(save(made_up(3), tmp_path))
    exact = outputs(teacher, tone(16_000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = outputs(teacher, tone(16_000))
    for low, full in zip(lowered, exact, strict=True):
        assert (low.float() - full).norm() < 0.03 * full.norm()


def test_provenance_is_json(tmp_path: Path) -> None:
    provenance = load_beats(save(made_up(3), tmp_path)).provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert (provenance["family"], provenance["checkpoint"], provenance["format"]) == ("BEATs", "beats.pt", 1)
    assert (provenance["input"]["window"], provenance["sizes"]["num_classes"]) == ("povey", 3)


def test_a_store_gets_a_row_of_every_clip(tmp_path: Path, store_copy: Path) -> None:
    store = Store(store_copy)
    result = build_teacher(store, load_beats(save(made_up(3), tmp_path)), "beats")
    assert result.failures == []
    assert np.isfinite(result.cache.embeddings(store.rows())).all()
    assert result.cache.logits(store.rows()).shape == (len(store), 3)
