"""An AFT that starts from a file says what the file's network says; layouts, sizes and refusals."""

import json
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from manifests.errors import InputError
from tests.featurestore.teachers.astfiles import from_hub
from tests.training.model.vits import DEPTH, NUM_HEADS, WIDTH, features, made_up, rand
from training.checkpoint import WEIGHTS_FILE, About, Checkpoint, load_checkpoint, save_checkpoint, save_safetensors
from training.config import ModelConfig
from training.model.aft import AudioFeatureTransformer
from training.model.initialise import Initialised, initialise_aft
from training.model.networks import MultiSSLNetwork, Student
from training.model.patches import patchify
from training.model.resample import resize_kernel, resize_positions
from training.model.transformer import initialise

SHARED = Path(__file__).parents[4] / "shared"
CONFIG = ModelConfig(
    num_frames=256, width=WIDTH, depth=DEPTH, num_heads=NUM_HEADS, mae_width=8, mae_depth=1, mae_num_heads=2
)
FBANK = rand(2, 256, 128, seed=99)


def fresh(**changes: int) -> AudioFeatureTransformer:
    aft = AudioFeatureTransformer(CONFIG.model_copy(update=changes))
    initialise(aft, torch.Generator().manual_seed(7))
    return aft.eval()


def written(state: Mapping[str, Any], folder: Path, name: str = "vit.pt") -> str:
    save_file(dict(state), folder / name) if name.endswith(".safetensors") else torch.save(dict(state), folder / name)
    return str(folder / name)


def like_ast(state: Mapping[str, Tensor], before: str = "") -> dict[str, Tensor]:
    """A ViT's tensors with a second class token, and named as in AST's own files."""
    two = {"dist_token": rand(1, 1, WIDTH), "pos_embed": torch.cat([rand(1, 1, WIDTH), state["pos_embed"]], 1)}
    return {f"{before}v.{name}": tensor for name, tensor in ({**state, **two}).items() if "head" not in name}


def time_major(tokens: Tensor) -> Tensor:
    """(B, 8 * 16, D), frequency by time, in the AFT's order."""
    return tokens.unflatten(1, (8, 16)).transpose(1, 2).flatten(1, 2)


@torch.no_grad()
def said_by(aft: AudioFeatureTransformer) -> Tensor:
    features: Tensor = aft(patchify(FBANK, aft.config.grid))
    return features


@pytest.mark.parametrize("name", ["vit.pt", "wrapped.bin", "vit.safetensors"])
def test_a_vit_of_images(name: str, tmp_path: Path) -> None:
    """Its places all have the same position, so that its grid, which is square, may be any."""
    state = made_up(14 * 14)
    state["pos_embed"] = rand(1, 1, WIDTH).repeat(1, 14 * 14 + 1, 1)
    content = {"model": state, "epoch": 3} if name.startswith("wrapped") else state
    aft = fresh()
    untouched = [weight.clone() for weight in aft.perceptrons.parameters()]
    found = initialise_aft(aft, written(content, tmp_path, name))
    image = FBANK.transpose(1, 2)[:, None].expand(-1, 3, -1, -1)  # height is frequency
    expected = time_major(features(state, image, state["pos_embed"][:, :1]))
    torch.testing.assert_close(said_by(aft), expected, rtol=0, atol=1e-5)
    assert all((old == new).all() for old, new in zip(untouched, aft.perceptrons.parameters(), strict=True))
    assert (found.kind, found.num_blocks, found.num_blocks_there) == ("ViT, named as in timm", DEPTH, DEPTH)
    assert found.folded == tuple(f"blocks.{block}.{scale}.gamma" for block in range(DEPTH) for scale in ("ls1", "ls2"))
    assert set(found.ignored) == {"cls_token", "head.weight", "head.bias"}
    assert found.resampled == {"embedding.positions": "14x14 to 8x16"}
    assert {*found.taken, *found.kept} == set(aft.state_dict())
    assert all(name.startswith("perceptrons.") for name in found.kept)
    assert json.loads(json.dumps(found.as_dict()))["sha256"] == found.sha256
    assert str(found).endswith(
        "(ViT, named as in timm): 29 tensors, 2 of its 2 blocks; made to fit: embedding.positions 14x14 to 8x16; "
        "4 factors of LayerScale folded in; not used: cls_token, head.bias, head.weight; "
        "as initialised: perceptrons.0.expand.weight, perceptrons.0.expand.bias, perceptrons.0.contract.weight "
        "and 5 more"
    )


@pytest.mark.parametrize("layout", ["AST, original", "SSAST", "AST, named as in transformers 4", "transformers 5"])
def test_files_of_sound_with_their_places(layout: str, tmp_path: Path) -> None:
    """8 x 16 patches side by side; AST halves its input, which the kernel makes up for."""
    state = made_up(8 * 16, channels=1, layer_scale=False)
    if layout.endswith(("4", "5")):
        content = from_hub(like_ast(state), int(layout[-1]), head=False)
    else:
        content = like_ast(state, "module.")
    if layout == "SSAST":
        content |= {"module.p_input_fdim": torch.tensor(128), "module.p_input_tdim": torch.tensor(256)}
        content |= {"module.mask_embed": rand(1, 1, WIDTH), "module.cpredlayer.0.weight": rand(WIDTH, WIDTH)}
    aft = fresh()
    found = initialise_aft(aft, written(content, tmp_path))
    expected = time_major(features(state, FBANK.transpose(1, 2)[:, None] / 2, state["pos_embed"][:, 1:]))
    torch.testing.assert_close(said_by(aft), expected, rtol=0, atol=1e-5)
    assert found.kind.endswith(layout)
    assert (found.resampled, found.folded) == ({}, ())
    unused = {"cls_token", "dist_token", "distillation_token", "mask_embed", "weight"}
    assert {name.split(".")[-1] for name in found.ignored} <= unused


def test_an_images_height_is_frequency(tmp_path: Path) -> None:
    """One pixel of the kernel, and a table that counts rows in hundreds and columns in ones."""
    state = made_up(8 * 16, channels=1, layer_scale=False)
    state["patch_embed.proj.weight"] = torch.zeros(WIDTH, 1, 16, 16)
    state["patch_embed.proj.weight"][3, 0, 2, 5] = 1.0
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(16.0), indexing="ij")
    state["pos_embed"][0, 1:] = (100 * rows + columns).flatten()[:, None]
    aft = fresh()
    initialise_aft(aft, written(like_ast(state), tmp_path))
    weight = aft.embedding.project.weight
    assert (weight.count_nonzero(), weight[3, 16 * 5 + 2]) == (1, 0.5)
    for time, freq in ((0, 1), (1, 0), (15, 7), (6, 3)):
        assert (aft.embedding.positions[8 * time + freq] == 100 * freq + time).all()


def test_other_patches_grids_and_colours(tmp_path: Path) -> None:
    state, aft = made_up(9 * 9, patch=14), fresh()
    found = initialise_aft(aft, written(state, tmp_path))
    kernel = resize_kernel(state["patch_embed.proj.weight"], 16).sum(1)  # (D, frequency, time)
    expected = kernel.transpose(1, 2).reshape(WIDTH, 256)
    torch.testing.assert_close(aft.embedding.project.weight, expected, rtol=0, atol=1e-5)
    table = resize_positions(state["pos_embed"][0, 1:].reshape(9, 9, WIDTH), (8, 16))
    assert (aft.embedding.positions == table.transpose(0, 1).reshape(128, WIDTH)).all()
    assert found.resampled == {
        "embedding.project.weight": "14x14 to 16x16",
        "embedding.positions": "9x9 to 8x16",
    }


def test_strides_of_10_are_resampled(tmp_path: Path) -> None:
    state, aft = made_up(12 * 25, channels=1, layer_scale=False), fresh()
    found = initialise_aft(aft, written(like_ast(state, "module."), tmp_path))
    table = resize_positions(state["pos_embed"][0, 1:].reshape(12, 25, WIDTH), (8, 16))
    assert (aft.embedding.positions == table.transpose(0, 1).reshape(128, WIDTH)).all()
    assert found.resampled == {"embedding.positions": "12x25 to 8x16"}


@pytest.mark.parametrize(
    ("tokens", "num_rows"),
    [
        ({}, 1),
        ({"dist_token": 1}, 2),
        ({"reg_token": 4}, 5),
        ({"reg_token": 4}, 0),  # timm: positions for patches alone
        ({"register_tokens": 4}, 1),  # DINOv2's own files: no positions for registers
        ({"cls_token": 0}, 0),
    ],
)
def test_tokens_before_the_patches_are_dropped(tokens: dict[str, int], num_rows: int, tmp_path: Path) -> None:
    state, aft = made_up(8 * 8), fresh()
    plain = state["pos_embed"][:, 1:]
    state["pos_embed"] = torch.cat([rand(1, num_rows, WIDTH), plain], 1)
    for name, number in tokens.items():
        state[name] = rand(1, number, WIDTH)
    initialise_aft(aft, written({name: part for name, part in state.items() if part.numel()}, tmp_path))
    table = resize_positions(plain[0].reshape(8, 8, WIDTH), (8, 16))
    assert (aft.embedding.positions == table.transpose(0, 1).reshape(128, WIDTH)).all()


def test_a_hidden_layer_that_is_narrower(tmp_path: Path) -> None:
    """The units that are added are not heard, and can learn."""
    state, aft = made_up(8 * 16, channels=1, layer_scale=False, hidden=24), fresh()
    found = initialise_aft(aft, written(like_ast(state), tmp_path))
    expected = time_major(features(state, FBANK.transpose(1, 2)[:, None] / 2, state["pos_embed"][:, 1:]))
    torch.testing.assert_close(said_by(aft), expected, rtol=0, atol=1e-5)
    assert found.resampled["transformer.blocks.*.perceptron"] == "24 to 64 hidden units"
    aft(patchify(FBANK, aft.config.grid))[..., 0].sum().backward()
    gradient = aft.transformer.blocks[0].perceptron.contract.weight.grad
    assert gradient[:, 24:].abs().min() > 0


def test_the_first_blocks_of_a_deeper_network(tmp_path: Path) -> None:
    state, aft = made_up(8 * 8), fresh(depth=1)
    found = initialise_aft(aft, written(state, tmp_path))
    gamma = state["blocks.0.ls1.gamma"]
    block = aft.transformer.blocks[0]
    assert (block.attention.output.weight == gamma[:, None] * state["blocks.0.attn.proj.weight"]).all()
    assert (block.attention.output.bias == gamma * state["blocks.0.attn.proj.bias"]).all()
    assert (aft.transformer.norm.weight == 1).all()
    assert (found.num_blocks, found.num_blocks_there) == (1, 2)
    assert found.folded == ("blocks.0.ls1.gamma", "blocks.0.ls2.gamma")
    assert {"transformer.norm.weight", "transformer.norm.bias"} < set(found.kept)


@pytest.fixture
def own(about: About, tmp_path: Path) -> Callable[[str], tuple[str, dict[str, Tensor]]]:
    """Writes a checkpoint of a stage; its path, and the AFT in it."""

    def write(stage: str) -> tuple[str, dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(3)
        network = MultiSSLNetwork(CONFIG, draw) if stage == "multissl" else Student(CONFIG, 3, None, draw)
        told = about.model_copy(update={"model": CONFIG, "stage": stage})
        save_checkpoint(Checkpoint(told, network.state_dict()), tmp_path / "last.pt")
        return str(tmp_path / "last.pt"), network.aft.state_dict()

    return write


@pytest.mark.parametrize("stage", ["multissl", "distill"])
def test_a_checkpoint_of_ours_bit_by_bit(stage: str, own: Callable[[str], tuple[str, dict[str, Tensor]]]) -> None:
    path, theirs = own(stage)
    aft = fresh()
    found = initialise_aft(aft, path)
    assert all(torch.equal(weight, theirs[name]) for name, weight in aft.state_dict().items())
    assert (found.kind, found.resampled, found.kept) == (f"a checkpoint of the {stage} stage", {}, ())


@pytest.mark.parametrize("named", ["folder", "file"])
def test_an_exported_model_is_its_checkpoint(
    named: str, own: Callable[[str], tuple[str, dict[str, Tensor]]], tmp_path: Path
) -> None:
    path, theirs = own("distill")
    exported = tmp_path / "exported"
    exported.mkdir()
    save_safetensors(load_checkpoint(Path(path)), {}, exported / WEIGHTS_FILE)
    aft = fresh()
    found = initialise_aft(aft, str(exported if named == "folder" else exported / WEIGHTS_FILE))
    assert all(torch.equal(weight, theirs[name]) for name, weight in aft.state_dict().items())
    assert found.kind == "a checkpoint of the distill stage"


def test_a_checkpoint_of_ours_of_other_frames(own: Callable[[str], tuple[str, dict[str, Tensor]]]) -> None:
    path, theirs = own("distill")
    aft = fresh(num_frames=512)
    found = initialise_aft(aft, path)
    assert found.resampled == {"embedding.positions": "8x16 to 8x32"}
    table = resize_positions(theirs["embedding.positions"].reshape(16, 8, WIDTH), (32, 8))
    torch.testing.assert_close(aft.embedding.positions.detach(), table.reshape(256, WIDTH))
    same = [name for name in theirs if name != "embedding.positions"]
    assert all(torch.equal(aft.state_dict()[name], theirs[name]) for name in same)
    with pytest.raises(InputError, match=r"stage\) has 2 heads, and the model 4: set model\.num_heads=2$"):
        initialise_aft(fresh(num_heads=4), path)


@pytest.mark.parametrize("layout", ["timm", "SSAST", "transformers 4"])
def test_a_tensor_of_any_other_shape_is_refused(layout: str, tmp_path: Path) -> None:
    """None but those that aren't used, or are resampled, may have another shape; and nothing is half done."""
    state = made_up(8 * 8, layer_scale=layout == "timm")
    if layout != "timm":
        state = like_ast(made_up(8 * 16, channels=1, layer_scale=False), "module." * (layout == "SSAST"))
        sizes = {"module.p_input_fdim": torch.tensor(128), "module.p_input_tdim": torch.tensor(256)}
        state = state | sizes if layout == "SSAST" else from_hub(state, 4, head=False)
    aft = fresh()
    before = {name: weight.clone() for name, weight in aft.state_dict().items()}
    others = torch.tensor(0.0), rand(0), rand(3), rand(3, 3), rand(3, WIDTH), rand(WIDTH, 0), rand(2, 2).long()
    for name in state:
        if "token" in name or "head" in name or "p_input" in name:
            continue
        for other in others:
            with pytest.raises(InputError, match=r"does not fit|is 3 wide"):
                initialise_aft(aft, written(state | {name: other}, tmp_path))
    assert all(torch.equal(weight, before[name]) for name, weight in aft.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"width": 24},
            r"\(ViT, named as in timm\) is 16 wide, and the model 24: set model\.width=16, and model\.num_h",
        ),
        ({"depth": 3}, r"has 2 blocks, and the model 3: set model\.depth=2 or less"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        initialise_aft(fresh(**changes), written(made_up(8 * 8), tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"blocks.1.mlp.fc1.weight": None},
            r"does not fit, blocks\.1\.mlp\.fc1\.weight is missing; expected the weights",
        ),
        ({"pos_embed": None}, "pos_embed is missing"),
        ({"pos_embed": rand(1, 60, WIDTH)}, "its 60 positions are not those of a square image"),
        (
            {"blocks.0.attn.q_norm.weight": rand(8)},
            r"of another network than a plain ViT: it has blocks\.0\.attn\.q_norm",
        ),
        ({"norm_pre.weight": rand(8)}, r"of another network .* has norm_pre\.weight"),
        ({"patch_embed.proj.weight": rand(WIDTH, 1, 128, 2)}, "its patches are 128x2, not square"),
        ({"norm.bias": torch.full((WIDTH,), torch.nan)}, r"damaged, transformer\.norm\.bias .* not finite"),
        (
            {"blocks.0.mlp.fc1.weight": rand(80, WIDTH)},
            r"0\.perceptron\.expand\.weight has shape \(80, 16\), expected \(64",
        ),
        (
            {"patch_embed.proj.weight": None},
            r"none of the known layouts: it holds cls_token, pos_embed, patch_embed\.proj",
        ),
    ],
)
def test_networks_that_are_no_such_vit(change: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    state = {name: part for name, part in (made_up(8 * 8) | change).items() if part is not None}
    with pytest.raises(InputError, match=message):
        initialise_aft(fresh(), written(state, tmp_path))


def test_files_that_hold_no_network(tmp_path: Path) -> None:
    source, aft = written(made_up(8 * 8), tmp_path), fresh()
    before = {name: weight.clone() for name, weight in aft.state_dict().items()}
    content = Path(source).read_bytes()
    (tmp_path / "short.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "short.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Path("x")))
    written({}, tmp_path, "empty.pt")
    torch.save([rand(2)], tmp_path / "list.pt")
    for name, message in (
        ("short.pt", r"cannot read tensors from .*short\.pt: no torch file, damaged, cut short, or with code in it"),
        ("short.safetensors", "cannot read tensors from .* no safetensors file"),
        ("code.pt", "or with code in it; expected the weights of a ViT"),
        ("absent.pt", r"cannot open the checkpoint .*absent\.pt: No such file"),
        ("empty.pt", "none of the known layouts: it holds nothing; expected"),
        ("list.pt", "holds no table of tensors; expected"),
    ):
        with pytest.raises(InputError, match=message):
            initialise_aft(aft, str(tmp_path / name))
    assert all(torch.equal(weight, before[name]) for name, weight in aft.state_dict().items())


def test_timm_is_asked_for_its_pretrained_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of timm only what is called is here: what it gives is treated as a file's content."""
    state, asked = made_up(8 * 8), []

    def create_model(name: str, *, pretrained: bool) -> SimpleNamespace:
        if name != "vit_made_up":
            raise RuntimeError(f"Unknown model ({name})")
        asked.append(pretrained)
        return SimpleNamespace(state_dict=lambda: state)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    aft, same = fresh(), fresh()
    found = initialise_aft(aft, "timm:vit_made_up")
    initialise_aft(same, written(state, tmp_path))
    assert asked == [True]
    assert (found.source, len(found.sha256)) == ("timm:vit_made_up", 64)
    assert all(torch.equal(one, other) for one, other in zip(aft.parameters(), same.parameters(), strict=True))
    with pytest.raises(
        InputError, match=r"timm can't give the weights of 'vit_x' \(Unknown model \(vit_x\)\); give a fi"
    ):
        initialise_aft(aft, "timm:vit_x")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"^initialise=timm:vit_x needs timm: pip install 'acm-sskd\[timm\]'$"):
        initialise_aft(fresh(), "timm:vit_x")


def test_a_vit_of_timms_own(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    sizes = {"patch_size": 16, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": NUM_HEADS, "init_values": 0.5}
    vit = timm.models.VisionTransformer(img_size=128, num_classes=0, class_token=False, global_pool="", **sizes)
    vit.pos_embed.data.copy_(rand(1, 1, WIDTH).expand(1, 64, -1))
    aft = fresh()
    initialise_aft(aft, written(vit.state_dict(), tmp_path))
    image = FBANK[:, :128].transpose(1, 2)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = vit.forward_features(image).unflatten(1, (8, 8)).transpose(1, 2).flatten(1, 2)
        placed = aft.place(aft.embedding(patchify(FBANK, aft.config.grid)))[:, :64]
        torch.testing.assert_close(aft.encode(placed), expected, rtol=0, atol=1e-5)


def of_shared(path: str) -> str:
    if not (SHARED / path).is_file():
        pytest.skip(f"no {path} here")
    return str(SHARED / path)


@pytest.mark.parametrize("depth", [12, 6])
def test_dinov2s_weights(depth: int) -> None:
    aft = fresh(width=384, num_heads=6, depth=depth)
    found = initialise_aft(aft, of_shared("data/weights/vit_small_patch14_dinov2.fp16.safetensors"))
    assert said_by(aft).isfinite().all()
    assert found.resampled == {"embedding.project.weight": "14x14 to 16x16", "embedding.positions": "37x37 to 8x16"}
    assert (found.num_blocks, found.num_blocks_there, found.ignored) == (depth, 12, ("cls_token",))


def test_the_golden_ast() -> None:
    aft = fresh(width=48, num_heads=4)
    found: Initialised = initialise_aft(aft, of_shared("golden/ast_tiny.pth"))
    assert said_by(aft).isfinite().all()
    assert (found.kind, found.resampled["embedding.positions"]) == ("AST, original", "12x25 to 8x16")


def test_a_folder_without_an_exported_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder without model\.safetensors, .*/iter1/multissl/last\.pt$"):
        initialise_aft(fresh(), str(tmp_path))
