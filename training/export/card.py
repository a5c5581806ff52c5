"""The model card: README.md of an exported model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.licences import Terms
from training.checkpoint import WEIGHTS_FILE, Checkpoint
from training.export.check import Difference
from training.export.facts import Origin
from training.export.formats import ONNX_FILE, TORCH_FILE
from training.iterations import RANDOM

CARD_FILE = "README.md"
WHAT_FILES_ARE = {
    WEIGHTS_FILE: "the weights; `training {command} --model` reads them",
    TORCH_FILE: "torch.export's program: waveform in, no code of ours",
    ONNX_FILE: "waveform in, for onnxruntime",
    "config.json": "sizes and labels, as Hugging Face names them",
    "preprocessor_config.json": "from a waveform to what the network takes",
}


@dataclass(frozen=True)
class Exported:
    """A file of an export: its size, and for one of weights how far it is from the model."""

    name: str
    num_bytes: int
    difference: Difference | None


def model_card(
    checkpoint: Checkpoint,
    description: dict[str, Any],
    origin: Origin,
    files: Sequence[Exported],
    checked_on: str,
) -> str:
    """README.md: YAML front matter, what the model is and how it was made, its figures, use, limits and licences."""
    names = [file.name for file in files]
    parts = [
        _front_matter(description),
        _what(checkpoint, description),
        _usage(description, names),
        _files(description, files, checked_on),
        _training(checkpoint, origin),
        _figures(origin),
        _labels(description),
        _limits(description),
        _licences(origin),
        _provenance(description),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(description: dict[str, Any]) -> str:
    lines = ["---", f"library_name: {description['provenance']['package']}"]
    tags = ["- audio", "- fbank", "- acm-sskd"]
    if description["labels"]:
        lines += ["pipeline_tag: audio-classification"]
        tags += ["- audio-tagging"]
    return "\n".join([*lines, "tags:", *tags, "---", ""])


def _what(checkpoint: Checkpoint, description: dict[str, Any]) -> str:
    about, given = checkpoint.about, description["input"]
    model, num = about.model, len(description["labels"])
    size = sum(part.numel() for part in checkpoint.network.values()) / 1e6
    tags = f"probabilities of {num} labels, and " if num else ""
    rule = ""
    if num:
        rule = (
            " A clip has one label: the probabilities sum to 1."
            if about.one_label
            else " A clip may have several labels: each probability stands for itself."
        )
    title = f"Audio tagger of {num} labels" if num else "Audio embeddings"
    return f"""# {title}

A transformer over log-mel patches ({size:.1f} M parameters: width {model.width}, depth {model.depth}, \
{model.num_heads} heads{", SimAM gates" if model.parameter_free_attention else ""}). It takes sound and gives {tags}an \
embedding of {model.width} numbers.{rule}

- **In**: `waveform` float32 (batch, num_samples): mono, {given["sample_rate_hz"]} Hz, in [-1, 1]. One window is \
{given["window_samples"]} samples, {given["window_samples"] / given["sample_rate_hz"]:.3f} s;
  a shorter waveform is repeated to it inside the graph, of a longer one the beginning is taken. \
{given["least_samples"]} samples at least.
- **Out**: {", ".join(f"`{name}` ({', '.join(map(str, shape))})" for name, shape in description["outputs"].items())}.
"""


_ONNX_TAGS = """import json, numpy as np, onnxruntime, soundfile
session = onnxruntime.InferenceSession("model.onnx")
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
sound, rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)  # rate must be RATE
probabilities, logits, embedding = session.run(None, {"waveform": sound.mean(1)[None]})
print([(labels[i]["name"], float(probabilities[0, i])) for i in np.argsort(-probabilities[0])[:5]])
"""

_ONNX_EMBEDDING = """import onnxruntime, soundfile
session = onnxruntime.InferenceSession("model.onnx")
sound, rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)  # rate must be RATE
(embedding,) = session.run(None, {"waveform": sound.mean(1)[None]})
"""

_TORCH = """import torch
model = torch.export.load("model.pt2").module()
OUTPUTS = model(torch.zeros(1, SAMPLES))
"""


def _usage(description: dict[str, Any], names: Sequence[str]) -> str:
    given = description["input"]
    parts = ["## Use\n"]
    if ONNX_FILE in names:
        code = _ONNX_TAGS if description["labels"] else _ONNX_EMBEDDING
        parts += [
            "With onnxruntime, numpy and soundfile alone, in this folder:\n",
            f"```python\n{code.replace('RATE', str(given['sample_rate_hz']))}```\n",
            "Longer sounds: cut them into windows, and take the mean over these.\n",
        ]
    if TORCH_FILE in names:
        outputs = ", ".join(description["outputs"]) + ("" if description["labels"] else ",")
        code = _TORCH.replace("SAMPLES", str(given["window_samples"])).replace("OUTPUTS", outputs)
        parts += [f"With PyTorch alone (open only files whose maker you trust):\n\n```python\n{code}```\n"]
    if WEIGHTS_FILE in names:
        words = "predict clip.mp3" if description["labels"] else "embed clip.mp3 --out clip.parquet"
        parts += [f"With acm-sskd, files of any length and format:\n\n    training {words} --model .\n"]
    return "\n".join(parts)


def _files(description: dict[str, Any], files: Sequence[Exported], checked_on: str) -> str:
    command = "predict" if description["labels"] else "embed"
    rows = [
        f"| {file.name} | {WHAT_FILES_ARE[file.name].format(command=command)} | {said_size(file.num_bytes)} "
        f"| {_said(file.difference)} |"
        for file in files
    ]
    table = "\n".join(["| file | what it is | size | largest difference |", "|---|---|---|---|", *rows])
    return f"""## Files, and how they were checked

{table}

Differences are those from PyTorch with the fbank that the training data were made with, on {checked_on}; one at a
time (one of them much shorter than the window), and three together.
"""


def said_size(num_bytes: int) -> str:
    """In kB or MB, of 1000."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def _said(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if not difference.embedding and not difference.probabilities:
        return "none"
    tags = "" if difference.probabilities is None else f"probabilities {difference.probabilities:.1e}, "
    return f"{tags}embedding {difference.embedding:.1e}"


def _training(checkpoint: Checkpoint, origin: Origin) -> str:
    about, config = checkpoint.about, origin.config
    lines = ["## How it was trained\n"]
    if config is None:
        lines += ["Its run was not at hand when it was exported; what the checkpoint says of itself:\n"]
    stage = "Multi-SSL alone, without labels" if about.stage == "multissl" else "labels and distillation"
    lines += [f"- {stage}: iteration {about.iteration}, {about.step} of {about.num_steps} steps; seed {about.seed}"]
    if about.stage == "distill":
        teacher = "none" if about.teacher is None else str(about.teacher.get("name", "unnamed"))
        lines += [f"- teacher: {teacher}"]
    if config is not None:
        start = config.initialise if config.initialise == RANDOM else Path(config.initialise).name
        epochs = f"{config.multissl.optimiser.epochs:g} of Multi-SSL, {config.distill.optimiser.epochs:g} of labels"
        lines += [
            f"- data: {', '.join(name for name, _ in origin.datasets)}",
            f"- epochs an iteration: {epochs}; started from {start}",
        ]
    lines += [f"- held out: {about.held_out}", ""]
    return "\n".join(lines)


def _figures(origin: Origin) -> str:
    found = origin.evaluation
    if found is None:
        return "## Figures\n\nNone: it was not evaluated in its run, or the run was not at hand.\n"
    rows = [("mAP", f"{found.mean_average_precision:.3f}")]
    rows += [] if found.accuracy is None else [("accuracy", f"{found.accuracy:.1%}")]
    rows += [] if found.mean_auc is None else [("mAUC", f"{found.mean_auc:.3f}")]
    rows += [] if found.d_prime is None else [("d'", f"{found.d_prime:.2f}")]
    table = "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    return f"""## Figures

On {found.num_evaluated} of the {found.num_listed} clips of {found.split}, {found.num_classes_evaluated} of \
{found.num_classes} classes among them, computed in its run:

{table}
"""


def _labels(description: dict[str, Any]) -> str:
    labels = description["labels"]
    if not labels:
        return ""
    rows = [f"{place}. {label['name']} (`{label['id']}`)" for place, label in enumerate(labels)]
    return "\n".join(["## Labels\n\nIn the order of the outputs, from 0:\n", *rows, ""])


def _limits(description: dict[str, Any]) -> str:
    given = description["input"]
    return f"""## Limits

- It has heard what its data hold: other microphones, rooms and sounds may be taken for what they are not.{
        " It knows no label but those above." if description["labels"] else ""
    }
- It takes {given["sample_rate_hz"]} Hz: nothing above {given["sample_rate_hz"] // 2} Hz is heard, and sound at \
another rate has to be resampled first.
- The exported files ran on CPU; another provider or device of theirs may round otherwise.
"""


def _licences(origin: Origin) -> str:
    lines = ["## Licences\n", "The weights' licence is their publisher's to choose; the data's terms may bind it.\n"]
    if not origin.datasets:
        lines += ["Which data it was trained on was not known when it was exported."]
    for name, terms in origin.datasets:
        lines += [f"- {_terms(name, terms)}"]
    if origin.config is not None and origin.config.initialise != RANDOM:
        lines += [f"- {Path(origin.config.initialise).name}, which it started from, has its own licence."]
    return "\n".join([*lines, ""])


def _terms(name: str, terms: Terms) -> str:
    known = " ".join(f"{licence.terms} {licence.url}" for licence in terms.licences.values())
    unstated = f" The terms of {', '.join(terms.unstated)} are not stated." if terms.unstated else ""
    return f"{name}: {known}{unstated}".replace("  ", " ")


def _provenance(description: dict[str, Any]) -> str:
    return f"""## Provenance

The same stands in each file of weights, with labels and preprocessing: in model.onnx's metadata, under `acm-sskd` in
those of model.safetensors, and as `description.json` in model.pt2.

```json
{json.dumps(description["provenance"], indent=1)}
```
"""
