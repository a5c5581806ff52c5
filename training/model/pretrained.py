"""Backbones that were trained elsewhere, read into the AFT's names: ViTs of images, AST, SSAST, our checkpoints."""

import hashlib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from featurestore.teachers.astfile import find_grid
from featurestore.teachers.astkeys import Naming, find_naming
from featurestore.teachers.asttransformer import num_patches
from featurestore.teachers.checkpointfile import CheckpointFile, read_checkpoint
from manifests.errors import InputError
from manifests.geometry import PatchGrid
from training.checkpoint import WEIGHTS_FILE, Training, load_checkpoint
from training.config import ModelConfig
from training.model.aft import AudioFeatureTransformer

TIMM = "timm"
EXPECTED = (
    "expected the weights of a ViT as timm names them (patch_embed.proj.weight, pos_embed, blocks.0...), of an AST or "
    "SSAST (module.v.blocks.0...), of a Hugging Face ASTModel (embeddings.cls_token, ...), or a checkpoint of this "
    "trainer like RUN/iter1/distill/last.pt, also exported"
)
BLOCK_PARTS = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.output",
    "norm2": "perceptron_norm",
    "mlp.fc1": "perceptron.expand",
    "mlp.fc2": "perceptron.contract",
}
LAYER_SCALES = {"ls1.gamma": "attention.output", "ls2.gamma": "perceptron.contract"}
NUM_AXES = {"patch_embed.proj.weight": 4, "pos_embed": 3}
MATRICES = tuple(f"{part}.weight" for part in BLOCK_PARTS if "norm" not in part)
CLASS_TOKENS, REGISTERS = ("cls_token", "dist_token"), ("reg_token", "register_tokens")
# Layers between the patches and the blocks, which the AFT lacks.
OTHER_LAYERS = ("patch_embed.", "norm_pre.")
OWN_TENSOR = "aft.embedding.project.weight"  # in an exported model.safetensors, which has no other table around it
AST_INPUT_SCALE = 0.5  # AST and SSAST divide by twice the deviation, and the AFT's fbanks are divided by it once


@dataclass(frozen=True)
class Pretrained:
    """A backbone: `weights` by the AFT's names, but for the patches' kernel (D, C, h, w) and the positions.

    As AST sees an fbank, a picture's height is frequency and its width time: `positions` is (frequency, time, D).
    `folded` says by LayerScale's names in the file in which layer its factors are now; `ignored` are names of the file.
    """

    file: CheckpointFile
    kind: str
    num_blocks: int
    weights: dict[str, Tensor]
    kernel: Tensor
    positions: Tensor
    folded: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    # Of a checkpoint of ours: its sizes, and what it was trained on.
    model: ModelConfig | None = None
    trainings: tuple[Training, ...] = ()


def read_pretrained(source: str) -> Pretrained:
    """Reads a file, an exported folder's, or with timm:NAME has timm fetch it.

    Raises InputError for a file that can't be read, has none of the layouts, or is of a network that the AFT is not.
    """
    if source.startswith(f"{TIMM}:"):
        return _read_vit(_fetch_with_timm(source))
    path = Path(source)
    if path.is_dir() and not (path / WEIGHTS_FILE).exists():
        raise InputError(
            f"{path} is a folder without {WEIGHTS_FILE}, so no exported model; of a run give a checkpoint's file, like "
            f"{path}/iter1/multissl/last.pt"
        )
    file = read_checkpoint(path / WEIGHTS_FILE if path.is_dir() else path, EXPECTED)
    content = file.content
    if not isinstance(content, dict):
        raise file.error("holds no table of tensors")
    if "about" in content or OWN_TENSOR in content:
        return _read_own(file)
    # As DeiT's, MAE's and other training scripts wrap it.
    inner = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)), content)
    return _read_vit(replace(file, content=inner))


def _fetch_with_timm(source: str) -> CheckpointFile:
    name = source.removeprefix(f"{TIMM}:")
    try:
        timm = importlib.import_module(TIMM)
    except ImportError as error:
        raise InputError(f"initialise={source} needs timm: pip install 'acm-sskd[timm]'") from error
    try:
        state = timm.create_model(name, pretrained=True).state_dict()
    # What a download raises depends on the libraries beneath timm.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"timm can't give the weights of {name!r} ({reason}); give a file instead") from error
    digest = hashlib.sha256(safetensors.torch.save({key: part.contiguous() for key, part in state.items()}))
    return CheckpointFile(Path(source), EXPECTED, state, digest.hexdigest())


def _read_own(file: CheckpointFile) -> Pretrained:
    checkpoint = load_checkpoint(file.path)
    about, prefix = checkpoint.about, "aft."
    model = about.model
    weights = {name.removeprefix(prefix): part for name, part in checkpoint.network.items() if name.startswith(prefix)}
    with torch.device("meta"):
        file.check(AudioFeatureTransformer(model).state_dict(), weights)
    grid, size = model.grid, model.grid.patch_size
    kernel = weights.pop("embedding.project.weight").reshape(-1, 1, size, size)  # (D, 1, time, frequency)
    positions = weights.pop("embedding.positions").reshape(grid.num_time, grid.num_freq, -1)
    return Pretrained(
        file,
        f"a checkpoint of the {about.stage} stage",
        model.depth,
        weights,
        kernel.transpose(2, 3),
        positions.transpose(0, 1),
        model=model,
        trainings=about.trainings,
    )


def _read_vit(file: CheckpointFile) -> Pretrained:
    state = file.tensors(file.content)
    naming = _find_layout(file, state)
    table = _VitTable(file, naming, state)
    kernel, num_blocks = table["patch_embed.proj.weight"], naming.num_layers(state)
    if kernel.shape[2] != kernel.shape[3]:
        raise file.error(f"does not fit, its patches are {'x'.join(map(str, kernel.shape[2:]))}, not square")
    of_sound = naming.kind != TIMM and kernel.shape[1] == 1
    weights = {"embedding.project.bias": table["patch_embed.proj.bias"]}
    for block in range(max(num_blocks, 1)):
        for theirs, ours in BLOCK_PARTS.items():
            for leaf in ("weight", "bias"):
                weights[f"transformer.blocks.{block}.{ours}.{leaf}"] = table[f"blocks.{block}.{theirs}.{leaf}"]
    folded = table.fold_layer_scales(weights, num_blocks)
    # Some ViTs have a norm after pooling instead, which is part of their head.
    if naming.names("v.norm.weight")[0] in state:
        weights |= {f"transformer.norm.{leaf}": table[f"norm.{leaf}"] for leaf in ("weight", "bias")}
    positions = table.positions(of_sound)
    ignored = table.unused()
    scale = AST_INPUT_SCALE if of_sound else 1.0
    return Pretrained(file, table.kind(of_sound), num_blocks, weights, kernel * scale, positions, folded, ignored)


def _find_layout(file: CheckpointFile, state: Mapping[str, Tensor]) -> Naming:
    for before in ("", "module."):
        if f"{before}patch_embed.proj.weight" in state:
            return Naming(TIMM, before, "blocks", {}, {}, None)
    try:
        return find_naming(file, state)
    except InputError as error:
        seen = f"{', '.join(list(state)[:3])} and others, {len(state)} in all" if state else "nothing"
        raise file.error(f"has none of the known layouts: it holds {seen}") from error


class _VitTable:
    """A file's tensors by timm's names, in float32; it knows which were asked for."""

    def __init__(self, file: CheckpointFile, naming: Naming, state: Mapping[str, Tensor]) -> None:
        self._file, self._naming, self._state = file, naming, state
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        """Raises InputError where it is missing or misshapen: the file is another network's, or a part of one."""
        names = self._naming.names(f"v.{name}")
        if lacking := [each for each in names if each not in self._state]:
            raise self._file.error(f"does not fit, {lacking[0]} is missing")
        parts = [self._state[each] for each in names]
        num_axes = NUM_AXES.get(name, 2 if name.endswith(MATRICES) else 1)
        for each, part in zip(names, parts, strict=True):
            fits = part.ndim == num_axes and part.shape == parts[0].shape
            if not fits or not part.numel() or not part.is_floating_point():
                raise self._file.error(f"does not fit, {each} has shape {tuple(part.shape)} and holds {part.dtype}")
        self._used |= set(names)
        return torch.cat(parts).float()

    def kind(self, of_sound: bool) -> str:
        """What the file is, in words."""
        if of_sound and self._naming.kind == "original":
            return "SSAST" if self._ssast_grid() else "AST, original"
        return f"{'AST' if of_sound else 'ViT'}, named as in {self._naming.kind}"

    def fold_layer_scales(self, weights: dict[str, Tensor], num_blocks: int) -> dict[str, str]:
        """Multiplies the layers before LayerScale's factors with these; which, and where they went."""
        folded: dict[str, str] = {}
        for block in range(num_blocks):
            for theirs, ours in LAYER_SCALES.items():
                name = f"blocks.{block}.{theirs}"
                if self._naming.names(f"v.{name}")[0] in self._state:
                    layer, gamma = f"transformer.blocks.{block}.{ours}", self[name]
                    if not len(gamma) == len(weights[f"{layer}.weight"]) == len(weights[f"{layer}.bias"]):
                        raise self._file.error(f"does not fit, {name} is {len(gamma)} long, and the layer before isn't")
                    weights[f"{layer}.weight"] = gamma[:, None] * weights[f"{layer}.weight"]
                    weights[f"{layer}.bias"] = gamma * weights[f"{layer}.bias"]
                    folded[self._naming.names(f"v.{name}")[0]] = layer
        return folded

    def positions(self, of_sound: bool) -> Tensor:
        """The position table, (frequency, time, D), without the prefix tokens."""
        table = self["pos_embed"].flatten(0, -2)
        num_classes, num_all = self._count(CLASS_TOKENS), self._count(CLASS_TOKENS + REGISTERS)
        # timm has positions for all tokens or for patches alone, DINOv2's own files for all but the registers.
        for num_prefix in (num_all,) if of_sound else (num_all, num_classes, 0):
            grid = self._grid(len(table) - num_prefix, of_sound)
            if grid and math.prod(grid) == len(table) - num_prefix > 0:
                return table[num_prefix:].reshape(*grid, -1)
        layout = "AST's lengths and strides" if of_sound else "a square image"
        raise self._file.error(f"does not fit, its {len(table)} positions are not those of {layout}")

    def unused(self) -> tuple[str, ...]:
        """What else is in the file; raises InputError where it is part of the computation."""
        names = [name for name in self._state if name not in self._used]
        backbone = self._naming.backbone
        inside = tuple(backbone + part for part in (f"{self._naming.blocks}.", *OTHER_LAYERS))
        if parts := [name for name in names if name.startswith(inside)]:
            raise self._file.error(f"is of another network than a plain ViT: it has {parts[0]}")
        return tuple(sorted(names))

    def _count(self, tokens: tuple[str, ...]) -> int:
        names = (self._naming.names(f"v.{token}")[0] for token in tokens)
        return sum(self._state[name].shape[1] for name in names if name in self._state and self._state[name].ndim == 3)

    def _grid(self, num_positions: int, of_sound: bool) -> tuple[int, int] | None:
        """Patches in frequency and time."""
        if not of_sound:
            return (math.isqrt(max(num_positions, 0)),) * 2
        if ssast := self._ssast_grid():
            return ssast
        found = find_grid(num_positions)
        if found is None:
            return None
        num_freq = num_patches(PatchGrid().num_mel_bins, found.frequency_stride)
        return num_freq, num_patches(found.num_frames, found.time_stride)

    def _ssast_grid(self) -> tuple[int, int] | None:
        """SSAST keeps the size of its input; its patches lie side by side."""
        before = self._naming.backbone.removesuffix("v.")
        names = [f"{before}p_input_{axis}dim" for axis in "ft"]
        sizes = [self._state[name] for name in names if name in self._state]
        if [(size.numel(), size.dtype) for size in sizes] != [(1, torch.int64)] * 2:
            return None
        self._used |= set(names)
        patch = self["patch_embed.proj.weight"].shape[2]
        num_freq, num_time = (int(size) // patch for size in sizes)
        return num_freq, num_time
