"""What AST's files must hold, and what is read of the configuration beside Hugging Face's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from featurestore.teachers.astfile import Grid, find_grid
from featurestore.teachers.astteacher import AstTeacher, load_ast
from featurestore.teachers.asttransformer import Ast, AstSizes
from manifests.audioset import audioset_vocabulary
from manifests.errors import InputError
from tests.featurestore.teachers.astfiles import (
    CONFIG,
    SIZES,
    from_hub,
    made_up,
    of_input,
    save,
    write_json,
)


def full_size() -> dict[str, Tensor]:
    """The tensors of a full-size original file, each of one number's storage, with those that are unused."""
    sizes = AstSizes(768, 3072, 12, 12, 527, 1024, 10, 10, 1e-6, 1e-5)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Ast(sizes).state_dict().items()}
    shapes |= {f"v.{head}.weight": torch.Size([1000, 768]) for head in ("head", "head_dist")}
    shapes |= {f"v.{head}.bias": torch.Size([1000]) for head in ("head", "head_dist")}
    return {f"module.{name}": torch.zeros(1).expand(shape) for name, shape in shapes.items()}


def test_a_full_size_file_loads_strictly(tmp_path: Path) -> None:
    state = full_size()
    assert len(state) == 3 + 2 + 12 * 12 + 2 + 4 + 4
    assert state["module.v.pos_embed"].shape == (1, 1214, 768)
    teacher = load_ast(save(state, tmp_path))
    assert isinstance(teacher, AstTeacher)
    # As Hugging Face counts the parameters of MIT/ast-finetuned-audioset-10-10-0.4593: 86.6 million.
    assert sum(p.numel() for p in teacher.network.parameters()) == 86_594_063
    assert teacher.network.sizes.num_heads == 12
    assert teacher.vocabulary == audioset_vocabulary()
    assert (
        teacher.provenance["input"] | {"num_frames": 1024, "mean": -4.2677393, "std": 4.5689974}
        == (teacher.provenance["input"])
    )


@pytest.mark.parametrize("name", ["module.v.blocks.11.attn.qkv.bias", "module.mlp_head.0.weight", "module.v.norm.bias"])
def test_a_full_size_file_must_be_whole(tmp_path: Path, name: str) -> None:
    state = full_size()
    del state[name]
    with pytest.raises(InputError, match=rf"{name} is missing \(differences: 1\).*YuanGongND/ast"):
        load_ast(save(state, tmp_path))


@pytest.mark.parametrize("generation", [4, 5])
def test_differences_are_in_the_files_own_names(tmp_path: Path, generation: int) -> None:
    state = from_hub(made_up(), generation)
    query = next(name for name in state if "0.attention" in name and ".q" in name and name.endswith(".weight"))
    norm = next(name for name in state if name.endswith("1.layernorm_after.bias"))
    del state[query]
    state |= {norm: torch.zeros(3), "classifier.scale": torch.zeros(1)}
    with pytest.raises(InputError) as raised:
        load_ast(save(state, tmp_path))
    said = f"{query} is missing; classifier.scale is not part of the network; {norm} has shape (3,), expected (64,)"
    assert f"{said} (differences: 3)" in str(raised.value)


@pytest.mark.parametrize("before", ["module.", ""])
def test_what_data_parallel_adds_to_names_is_no_matter(tmp_path: Path, before: str) -> None:
    named = {before + name: tensor for name, tensor in made_up().items()}
    teacher = load_ast(save(named, tmp_path))
    reference = Ast(SIZES).eval()
    reference.load_state_dict(made_up())
    fbank = torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(of_input(teacher, fbank)[0], reference(fbank)[0].detach())


@pytest.mark.parametrize(
    ("frames", "stride", "num_positions"),
    [(1024, 10, 1212), (1024, 12, 850), (1024, 14, 657), (1024, 16, 512), (512, 10, 600), (128, 10, 144)],
)
def test_the_position_table_tells_length_and_stride(frames: int, stride: int, num_positions: int) -> None:
    assert find_grid(num_positions) == Grid(frames, stride, stride)


def test_other_lengths_are_of_stride_10() -> None:
    # 99 patches of time from 996 frames, as from any up to 1005.
    assert find_grid(12 * 99) == Grid(996, 10, 10)
    assert find_grid(1213) is None
    assert find_grid(0) is None


def test_another_number_of_positions_is_refused(tmp_path: Path) -> None:
    state = made_up() | {"v.pos_embed": torch.zeros(1, 303, 64)}
    with pytest.raises(InputError, match="its positions are for 301 patches, which no length and stride gives"):
        load_ast(save(state, tmp_path))


@pytest.mark.parametrize(("width", "problem"), [(96, "no multiple of 64"), (48, "no multiple of 64")])
def test_a_width_that_heads_do_not_divide_is_refused(tmp_path: Path, width: int, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load_ast(save(made_up(SIZES._replace(width=width)), tmp_path))


@pytest.mark.parametrize("state", [{"weight": torch.zeros(1)}, {}])
def test_other_tables_of_tensors_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=r"v\.cls_token or embeddings\.cls_token is missing"):
        load_ast(save(state, tmp_path))


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (["Dog", "Speech", "Music", "Silence", "Rain"], ["/m/0bt9lr", "/m/09x0r", "/m/04rlf", "/m/028v0c", "/m/06mb1"]),
        (["/m/0bt9lr", "/m/09x0r", "a", "b", "c"], ["/m/0bt9lr", "/m/09x0r", "a", "b", "c"]),
        (["Dog", "up", "down", "left", "right"], ["Dog", "up", "down", "left", "right"]),
        ([f"LABEL_{index}" for index in range(5)], None),
        (None, None),
    ],
)
def test_labels_are_the_configurations(tmp_path: Path, labels: list[str] | None, ids: list[str] | None) -> None:
    named = {str(index): label for index, label in enumerate(labels)} if labels else None
    write_json(tmp_path, "config.json", CONFIG | {"id2label": named})
    vocabulary = load_ast(save(from_hub(made_up(), 4), tmp_path)).vocabulary
    assert (vocabulary.ids if vocabulary else None) == ids


def test_audiosets_names_are_mapped_in_any_order(tmp_path: Path) -> None:
    names = audioset_vocabulary().names[::-1]
    write_json(tmp_path, "config.json", CONFIG | {"id2label": dict(enumerate(names))})
    teacher = load_ast(save(from_hub(made_up(SIZES._replace(num_classes=527)), 5), tmp_path))
    assert teacher.vocabulary is not None
    assert teacher.vocabulary.ids == audioset_vocabulary().ids[::-1]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", CONFIG | {"model_type": "vit"}, "model_type"),
        ("config.json", CONFIG | {"hidden_act": "relu"}, "hidden_act"),
        ("config.json", CONFIG | {"max_length": 1}, "max_length"),
        ("config.json", [], "dictionary"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, name: str, content: Any, problem: str) -> None:
    write_json(tmp_path, name, content)
    with pytest.raises(InputError, match=rf"{name}, beside the checkpoint, is not an AST's: .*{problem}"):
        load_ast(save(from_hub(made_up(), 5), tmp_path))


def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="beside the checkpoint, is not an AST's"):
        load_ast(save(from_hub(made_up(), 5), tmp_path))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_attention_heads": 3}, "is 64 wide, which 3 heads do not divide"),
        ({"time_stride": 16}, r"position_embeddings has shape \(1, 302, 64\), expected \(1, 194, 64\)"),
        ({"id2label": {"0": "up"}}, "names 1 labels, which are not those of the 5 classes"),
    ],
)
def test_a_configuration_must_fit_the_tensors(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    write_json(tmp_path, "config.json", CONFIG | change)
    with pytest.raises(InputError, match=problem):
        load_ast(save(from_hub(made_up(), 4), tmp_path))


def test_the_normalisation_is_the_preprocessors(tmp_path: Path) -> None:
    write_json(tmp_path, "preprocessor_config.json", {"mean": -1.5, "std": 2.5, "max_length": 256})
    provenance = load_ast(save(from_hub(made_up(), 4), tmp_path)).provenance
    assert (provenance["input"]["mean"], provenance["input"]["std"]) == (-1.5, 2.5)
    assert json.loads(json.dumps(provenance)) == provenance
    assert (provenance["family"], provenance["sizes"]["naming"]) == ("AST", "transformers 4")
