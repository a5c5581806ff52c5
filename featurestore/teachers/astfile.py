"""Reads AST's files: the network, what it is fed, and its vocabulary."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from featurestore.teachers.astkeys import Naming, find_naming, in_our_names
from featurestore.teachers.asttransformer import NUM_CLASS_TOKENS, PATCH_SIZE, Ast, AstSizes, num_patches
from featurestore.teachers.checkpointfile import CheckpointFile, describe, read_checkpoint
from featurestore.teachers.labels import read_vocabulary
from manifests.audioset import audioset_vocabulary
from manifests.errors import InputError
from manifests.geometry import FbankSpec
from manifests.vocabulary import Vocabulary

EXPECTED = (
    "expected an AST file such as audioset_10_10_0.4593.pth from github.com/YuanGongND/ast, or the model.safetensors "
    "of a model such as MIT/ast-finetuned-audioset-10-10-0.4593 on huggingface.co with its config.json beside it"
)
HUB_NORM_EPS = 1e-12
HEAD_SIZE = 64  # DeiT's, of which every released AST was made
STRIDES = (10, 12, 14, 16)
LENGTHS = (1024, 512, 256, 128)
Table = TypeVar("Table", bound=BaseModel)


class Grid(NamedTuple):
    """What a position table is for."""

    num_frames: int
    frequency_stride: int
    time_stride: int


class AstSettings(NamedTuple):
    """What the network is fed; kept in the provenance."""

    num_frames: int
    mean: float
    std: float
    window: str = "hanning"


class HubConfig(BaseModel):
    """Hugging Face's config.json; what it leaves out are the defaults of its ASTConfig."""

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["audio-spectrogram-transformer"]
    num_attention_heads: int = Field(default=12, gt=0)
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: float = Field(default=HUB_NORM_EPS, gt=0)
    patch_size: Literal[16] = 16
    frequency_stride: int = Field(default=10, gt=0)
    time_stride: int = Field(default=10, gt=0)
    max_length: int = Field(default=1024, ge=PATCH_SIZE)
    num_mel_bins: Literal[128] = 128
    id2label: dict[int, str] | None = None


class HubPreprocessor(BaseModel):
    """Hugging Face's preprocessor_config.json; what it leaves out are the defaults of its ASTFeatureExtractor."""

    model_config = ConfigDict(extra="ignore")

    mean: float = -4.2677393
    std: float = Field(default=4.5689974, gt=0)
    do_normalize: Literal[True] = True
    sampling_rate: Literal[16000] = 16000


# By the number of classes, as the reference's src/run.py: AudioSet's unless it is ESC-50's or Speech Commands'.
AUDIOSET_SCALE = HubPreprocessor()
SCALES = {50: HubPreprocessor(mean=-6.6268077, std=5.358466), 35: HubPreprocessor(mean=-6.845978, std=5.5654526)}


@dataclass(frozen=True)
class AstFile:
    """What a file holds, ready for use."""

    file: CheckpointFile
    naming: Naming
    network: Ast
    settings: AstSettings
    vocabulary: Vocabulary | None


def read_ast(path: Path, num_heads: int | None = None) -> AstFile:
    """Reads an original or a Hugging Face file, and the latter's config.json and preprocessor_config.json beside it.

    Raises InputError where a file is unreadable or does not fit.
    """
    file = read_checkpoint(path, EXPECTED)
    state = file.tensors(file.content)
    naming = find_naming(file, state)
    from_hub = naming.kind != "original"
    config = _read_json(file, "config.json", HubConfig) if from_hub else None
    scale = _read_json(file, "preprocessor_config.json", HubPreprocessor) if from_hub else None
    sizes = _read_sizes(file, naming, state, config, num_heads)
    # Without storage, so that the sizes that a wrong file suggests cost nothing.
    with torch.device("meta"):
        network = Ast(sizes)
    file.load_into(network, in_our_names(file, naming, state, network.state_dict()))
    scale = scale or SCALES.get(sizes.num_classes, AUDIOSET_SCALE)
    settings = AstSettings(sizes.num_frames, scale.mean, scale.std)
    return AstFile(file, naming, network, settings, _read_vocabulary(file, config, sizes.num_classes))


def find_grid(num_positions: int) -> Grid | None:
    """The input that a table of `num_positions` patches is for; None where there is none.

    Each released combination of stride and length has another number; other lengths are taken to have stride 10.
    """
    num_mel_bins = FbankSpec().num_mel_bins
    for num_frames in LENGTHS:
        for stride in STRIDES:
            if num_patches(num_mel_bins, stride) * num_patches(num_frames, stride) == num_positions:
                return Grid(num_frames, stride, stride)
    num_time, rest = divmod(num_positions, num_patches(num_mel_bins, STRIDES[0]))
    return None if rest or not num_time else Grid((num_time - 1) * STRIDES[0] + PATCH_SIZE, STRIDES[0], STRIDES[0])


def _read_sizes(
    file: CheckpointFile, naming: Naming, state: Mapping[str, Tensor], config: HubConfig | None, num_heads: int | None
) -> AstSizes:
    def dimension(name: str, axis: int = 0) -> int:
        return file.dimension(state, naming.names(name)[0], axis)

    width, num_positions = dimension("v.pos_embed", 2), dimension("v.pos_embed", 1) - NUM_CLASS_TOKENS
    if config:
        grid: Grid | None = Grid(config.max_length, config.frequency_stride, config.time_stride)
    else:
        grid = find_grid(num_positions)
    if grid is None:
        raise file.error(
            f"does not fit, its positions are for {num_positions} patches, which no length and stride gives"
        )
    norm_eps, head_norm_eps = _epsilons(naming, config)
    return AstSizes(
        width=width,
        hidden=dimension("v.blocks.0.mlp.fc1.weight"),
        num_layers=naming.num_layers(state),
        num_heads=_num_heads(file, width, config, num_heads),
        num_classes=dimension("mlp_head.1.weight") if naming.head else 0,
        **grid._asdict(),
        norm_eps=norm_eps,
        head_norm_eps=head_norm_eps,
    )


def _num_heads(file: CheckpointFile, width: int, config: HubConfig | None, asked: int | None) -> int:
    """The number of heads, which no tensor tells: as asked, as configured, else as DeiT has them."""
    if known := asked or (config and config.num_attention_heads):
        if width % known:
            raise file.error(f"is {width} wide, which {known} heads do not divide")
        return known
    if width % HEAD_SIZE:
        raise file.error(f"is {width} wide, which is no multiple of {HEAD_SIZE}, the width of a head")
    return width // HEAD_SIZE


def _epsilons(naming: Naming, config: HubConfig | None) -> tuple[float, float]:
    """Of the backbone's and the head's norms."""
    if naming.kind == "original":
        return 1e-6, 1e-5
    eps = config.layer_norm_eps if config else HUB_NORM_EPS
    return eps, eps


def _read_json(file: CheckpointFile, name: str, table: type[Table]) -> Table | None:
    """A file beside the checkpoint; None where there is none."""
    path = file.path.with_name(name)
    if not path.is_file():
        return None
    try:
        return table.model_validate(json.loads(path.read_bytes()))
    except (ValueError, OSError) as error:
        reason = describe(error) if isinstance(error, ValidationError) else error
        where = f"{path}, beside the checkpoint"
        raise InputError(f"{where}, is not an AST's: {reason}; take the one of the same model") from error


def _read_vocabulary(file: CheckpointFile, config: HubConfig | None, num_classes: int) -> Vocabulary | None:
    """The file's own labels, AudioSet's where it has none and as many classes, else None."""
    labels = config.id2label if config else None
    if num_classes and labels and not all(label == f"LABEL_{index}" for index, label in labels.items()):
        return read_vocabulary(file, labels, num_classes)
    return audioset_vocabulary() if num_classes == len(audioset_vocabulary()) else None
