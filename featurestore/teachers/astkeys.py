"""How AST's files name its tensors: the original ones, and Hugging Face's in two generations.

`asttransformer.py` has the original names without what DataParallel put before them. Hugging Face's ASTModel and
ASTForAudioClassification were named anew in transformers 5, which reads both.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from featurestore.teachers.checkpointfile import CheckpointFile

QKV = "attn.qkv"
# Of the image network that AST began as; no AST uses them.
UNUSED = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
OUTSIDE_BLOCKS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
NORMS = {"norm1": ("layernorm_before",), "norm2": ("layernorm_after",)}
TRANSFORMERS_4 = {
    **NORMS,
    QKV: tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
TRANSFORMERS_5 = {
    **NORMS,
    QKV: tuple(f"attention.{name}_proj" for name in "qkv"),
    "attn.proj": ("attention.o_proj",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}


@dataclass(frozen=True)
class Naming:
    """One kind of file: what stands before the backbone's names, and what the parts of it are called.

    `kind` is "original", "transformers 4" or "transformers 5"; `head` is the two names of the head, None without one.
    """

    kind: str
    backbone: str
    blocks: str
    outside: Mapping[str, str]
    inside: Mapping[str, tuple[str, ...]]
    head: tuple[str, str] | None

    def names(self, name: str) -> tuple[str, ...]:
        """What the file calls the tensor `name` of ours: three names where it has query, key and value apart."""
        part, leaf = re.fullmatch(r"(.+?)(\.weight|\.bias)?", name).groups(default="")  # type: ignore[union-attr]
        if block := re.fullmatch(r"v\.blocks\.(\d+)\.(.+)", part):
            number, inside = block.groups()
            before = f"{self.backbone}{self.blocks}.{number}."
            return tuple(f"{before}{each}{leaf}" for each in self.inside.get(inside, (inside,)))
        if self.head and part.startswith("mlp_head."):
            return (self.head[int(part[-1])] + leaf,)
        outside = part.removeprefix("v.")
        return (f"{self.backbone}{self.outside.get(outside, outside)}{leaf}",)

    def num_layers(self, names: Iterable[str]) -> int:
        """Blocks that a file's names speak of."""
        pattern = re.compile(re.escape(f"{self.backbone}{self.blocks}.") + r"(\d+)\.")
        return len({found[1] for name in names if (found := pattern.match(name))})


def find_naming(file: CheckpointFile, state: Mapping[str, Tensor]) -> Naming:
    """Which kind of file this is; raises InputError where it is none of AST's."""
    for before in ("module.", ""):
        if f"{before}v.cls_token" in state:
            return Naming("original", f"{before}v.", "blocks", {}, {}, (f"{before}mlp_head.0", f"{before}mlp_head.1"))
    for before in ("audio_spectrogram_transformer.", ""):
        if f"{before}embeddings.cls_token" in state:
            head = ("classifier.layernorm", "classifier.dense") if before else None
            if any(name.startswith(f"{before}layers.") for name in state):
                return Naming("transformers 5", before, "layers", OUTSIDE_BLOCKS, TRANSFORMERS_5, head)
            return Naming("transformers 4", before, "encoder.layer", OUTSIDE_BLOCKS, TRANSFORMERS_4, head)
    raise file.error("does not fit, v.cls_token or embeddings.cls_token is missing")


def in_our_names(
    file: CheckpointFile, naming: Naming, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The file's tensors by our names, which are those of `expected`.

    Raises InputError, in the file's own names, unless it has exactly these, in their shapes.
    """
    unused = {naming.backbone + name for name in UNUSED} if naming.kind == "original" else set()
    parts = {
        theirs: part
        for name, tensor in expected.items()
        for theirs, part in zip(naming.names(name), tensor.chunk(len(naming.names(name))), strict=True)
    }
    file.check(parts, {name: tensor for name, tensor in state.items() if name not in unused})
    found = {name: [state[theirs] for theirs in naming.names(name)] for name in expected}
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in found.items()}
