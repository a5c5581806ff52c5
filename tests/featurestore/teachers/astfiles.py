"""Small files of AST with made-up weights, in each of the namings."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from featurestore.teachers.astteacher import AstTeacher
from featurestore.teachers.asttransformer import Ast, AstSizes
from featurestore.teachers.base import Teacher, TeacherOutput

SIZES = AstSizes(64, 32, 2, 1, 5, 256, 10, 10, 1e-6, 1e-5)
CONFIG = {
    "model_type": "audio-spectrogram-transformer",
    "num_attention_heads": 1,
    "layer_norm_eps": 1e-6,
    "max_length": 256,
    "id2label": {str(index): f"word{index}" for index in range(5)},
    "architectures": ["ASTForAudioClassification"],
}
# As transformers' own conversion from the original files, and its renaming of version 5, have them.
OUTSIDE = [
    ("v.cls_token", "embeddings.cls_token"),
    ("v.dist_token", "embeddings.distillation_token"),
    ("v.pos_embed", "embeddings.position_embeddings"),
    ("v.patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("v.norm", "layernorm"),
    (".norm1", ".layernorm_before"),
    (".norm2", ".layernorm_after"),
    ("mlp_head.0", "classifier.layernorm"),
    ("mlp_head.1", "classifier.dense"),
]
GENERATIONS = {
    4: [
        *OUTSIDE,
        ("v.blocks", "encoder.layer"),
        (".attn.proj", ".attention.output.dense"),
        (".attn.q", ".attention.attention.query"),
        (".attn.k", ".attention.attention.key"),
        (".attn.v", ".attention.attention.value"),
        (".mlp.fc1", ".intermediate.dense"),
        (".mlp.fc2", ".output.dense"),
    ],
    5: [
        *OUTSIDE,
        ("v.blocks", "layers"),
        (".attn.proj", ".attention.o_proj"),
        (".attn.q", ".attention.q_proj"),
        (".attn.k", ".attention.k_proj"),
        (".attn.v", ".attention.v_proj"),
    ],
}


def made_up(sizes: AstSizes = SIZES) -> dict[str, Tensor]:
    """A small file's tensors, named as the original's without `module.`."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(t.shape, generator=generator) * 0.2 for name, t in Ast(sizes).state_dict().items()}


def from_hub(state: Mapping[str, Tensor], generation: int, *, head: bool = True) -> dict[str, Tensor]:
    """The same tensors as Hugging Face's ASTForAudioClassification, or as its ASTModel, names them."""
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                apart[name.replace("qkv", letter)] = part.contiguous()
        else:
            apart[name] = tensor
    renamed = {}
    for name, tensor in apart.items():
        new = name
        for old, other in GENERATIONS[generation]:
            new = new.replace(old, other)
        if new.startswith("classifier."):
            renamed |= {new: tensor} if head else {}
        else:
            renamed["audio_spectrogram_transformer." * head + new] = tensor
    return renamed


def save(state: Mapping[str, Tensor], folder: Path, name: str = "ast.pth") -> Path:
    if name.endswith(".safetensors"):
        save_file(dict(state), folder / name)
    else:
        torch.save(dict(state), folder / name)
    return folder / name


def write_json(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def tone(num_samples: int) -> Tensor:
    noise = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(1))
    return 0.02 + (torch.arange(num_samples) * 0.2).sin() * 0.3 + 0.01 * noise


def outputs(teacher: Teacher, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    said: TeacherOutput = teacher.embed(batch)
    assert said.logits is not None
    assert said.tokens is not None
    return said.embedding, said.logits, said.tokens


def of_input(teacher: Teacher, fbank: Tensor) -> tuple[Tensor, Tensor | None]:
    assert isinstance(teacher, AstTeacher)
    with torch.inference_mode():
        return teacher.network(fbank)[:2]
