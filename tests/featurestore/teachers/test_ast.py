"""AST against its reference implementation, and what it is fed."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor

from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.teachers.astteacher import AstTeacher, load_ast, load_ast_fbank
from featurestore.teachers.base import FbankInput, WaveformInput
from manifests.errors import InputError
from manifests.geometry import FbankSpec
from tests.featurestore.teachers.astfiles import (
    CONFIG,
    SIZES,
    from_hub,
    made_up,
    of_input,
    outputs,
    save,
    tone,
    write_json,
)


@pytest.fixture
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "ast_tiny.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture
def golden_state(shared: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(shared / "golden" / "ast_tiny.pth", weights_only=True)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def test_original_files_give_the_references_outputs(golden: dict[str, Tensor], shared: Path) -> None:
    # Its heads are 12 wide, and only released files' are known to be 64 wide.
    pooled, logits = of_input(load_ast(shared / "golden" / "ast_tiny.pth", num_heads=4), golden["input"])
    torch.testing.assert_close(pooled, golden["pooled"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("generation", [4, 5])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hub_files_give_the_references_outputs(
    golden: dict[str, Tensor], golden_state: dict[str, Tensor], tmp_path: Path, generation: int, name: str
) -> None:
    labels = {str(index): f"word{index}" for index in range(11)}
    write_json(tmp_path, "config.json", CONFIG | {"num_attention_heads": 4, "id2label": labels})
    teacher = load_ast(save(from_hub(golden_state, generation), tmp_path, name))
    pooled, logits = of_input(teacher, golden["input"])
    torch.testing.assert_close(pooled, golden["pooled"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("generation", [4, 5])
def test_hub_files_without_a_head(
    golden: dict[str, Tensor], golden_state: dict[str, Tensor], tmp_path: Path, generation: int
) -> None:
    state = from_hub(golden_state, generation, head=False)
    assert "embeddings.cls_token" in state
    # Without config.json the sizes are read off the tensors, and the norms' epsilon is the hub's 1e-12, not 1e-6.
    teacher = load_ast(save(state, tmp_path, "model.safetensors"), num_heads=4)
    pooled, logits = of_input(teacher, golden["input"])
    torch.testing.assert_close(pooled, golden["pooled"], atol=1e-3, rtol=0)
    assert logits is None
    assert teacher.vocabulary is None


def test_a_block_has_these_names_in_the_hubs_files() -> None:
    names = {4: from_hub(made_up(), 4), 5: from_hub(made_up(), 5)}
    before = "audio_spectrogram_transformer."
    assert f"{before}encoder.layer.1.attention.attention.query.bias" in names[4]
    assert f"{before}encoder.layer.1.output.dense.weight" in names[4]
    assert f"{before}layers.1.attention.q_proj.bias" in names[5]
    assert f"{before}layers.1.mlp.fc2.weight" in names[5]


@pytest.mark.parametrize(
    ("num_classes", "mean", "std"), [(5, -4.2677393, 4.5689974), (50, -6.6268077, 5.358466), (35, -6.845978, 5.5654526)]
)
def test_waveforms_are_padded_with_zeros_before_they_are_normalised(
    tmp_path: Path, num_classes: int, mean: float, std: float
) -> None:
    teacher = load_ast(save(made_up(SIZES._replace(num_classes=num_classes)), tmp_path))
    assert isinstance(teacher, AstTeacher)
    assert teacher.input == WaveformInput(16_000)
    waveforms = tone(16_000)
    expected = torch.zeros(2, 256, 128)
    for one, into in zip(waveforms, expected, strict=True):
        into[:98] = kaldi.fbank((one - one.mean())[None], window_type="hanning", num_mel_bins=128, htk_compat=True)
    expected = (expected - mean) / (2 * std)
    torch.testing.assert_close(teacher.front_end(waveforms), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs(teacher, waveforms)[0], of_input(teacher, expected)[0], atol=1e-3, rtol=0)


def test_longer_waveforms_are_cut(tmp_path: Path) -> None:
    teacher = load_ast(save(made_up(), tmp_path))
    assert isinstance(teacher, AstTeacher)
    # Its mean is removed from the whole, so the end must not change that.
    waveforms = torch.cat([tone(41_200) - tone(41_200).mean(1, keepdim=True), torch.zeros(2, 9_999)], 1)
    found, expected = teacher.front_end(waveforms), teacher.front_end(waveforms[:, :41_200])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_less_than_a_frame_is_zeros(tmp_path: Path, num_samples: int) -> None:
    teacher = load_ast(save(made_up(), tmp_path))
    assert isinstance(teacher, AstTeacher)
    expected = of_input(teacher, teacher.front_end.normalise(torch.zeros(2, 256, 128)))[0]
    torch.testing.assert_close(outputs(teacher, tone(num_samples))[0], expected)


def test_tokens_are_frequency_major_behind_the_class_tokens(tmp_path: Path) -> None:
    teacher = load_ast(save(made_up(), tmp_path))
    assert isinstance(teacher, AstTeacher)
    seen: list[Tensor] = []
    teacher.network.v.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fbank = torch.randn(1, 256, 128, generator=torch.Generator().manual_seed(0))
    changed = fbank.clone()
    # The one frame and bin that only the patch 2 up and 7 on has in common with no other.
    changed[:, 77, 27] += 1.0
    for one in (fbank, changed):
        of_input(teacher, one)
    differs = (seen[0] != seen[1]).any(2)[0].nonzero().flatten().tolist()
    assert differs == [2 + 2 * 25 + 7]
    tokens = outputs(teacher, tone(16_000))[2]
    assert tokens.shape == (2, 12 * 25, 64)


def test_the_stores_fbanks_are_another_teacher(tmp_path: Path) -> None:
    path = save(made_up(), tmp_path)
    waveforms, fbanks = load_ast(path), load_ast_fbank(path)
    assert fbanks.input == FbankInput(FbankSpec(num_frames=256))
    assert (waveforms.name, fbanks.name) == ("ast", "ast-fbank")
    assert waveforms.provenance["input"]["source"] == "waveform"
    assert fbanks.provenance["input"]["source"] == "fbank"
    raw = torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(3)) * 4 - 5
    expected = of_input(waveforms, (raw + 4.2677393) / (2 * 4.5689974))
    torch.testing.assert_close(outputs(fbanks, raw)[:2], expected)


def test_no_store_has_128_frames(tmp_path: Path) -> None:
    path = save(made_up(SIZES._replace(num_frames=128)), tmp_path)
    assert isinstance(load_ast(path).input, WaveformInput)
    with pytest.raises(InputError, match="takes 128 frames, and stores have 256, 512 or 1024"):
        load_ast_fbank(path)


def test_bfloat16_is_close(tmp_path: Path) -> None:
    teacher = load_ast(save(made_up(), tmp_path))
    exact = outputs(teacher, tone(16_000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = outputs(teacher, tone(16_000))
    for low, full in zip(lowered, exact, strict=True):
        assert (low.float() - full).norm() < 0.03 * full.norm()


def test_a_store_gets_rows_of_both_kinds(tmp_path: Path, store_copy: Path) -> None:
    store, path = Store(store_copy), save(made_up(), tmp_path)
    heard = build_teacher(store, load_ast(path), "ast")
    seen = build_teacher(store, load_ast_fbank(path), "ast-fbank", with_tokens=True)
    assert heard.failures == seen.failures == []
    assert np.isfinite(heard.cache.embeddings(store.rows())).all()
    assert seen.cache.row_shape("tokens") == (300, 64)
    # Of a clip that fills its window both were shown the same.
    full = [row for row in store.rows().tolist() if store.ledger(row)["num_frames"] == 256]
    assert full
    rows = np.array(full)
    np.testing.assert_allclose(heard.cache.embeddings(rows), seen.cache.embeddings(rows), atol=0.02)
