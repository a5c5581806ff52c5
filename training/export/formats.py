"""The files of an export, each written whole and read back as its users would."""

import importlib.util
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ingest.atomic import atomic_path, atomic_write
from training.checkpoint import WEIGHTS_FILE, Checkpoint, save_safetensors
from training.export.facts import ONNX_OPSET
from training.export.graph import WAVEFORM, WaveformModel, trace
from training.export.hub import CONFIG_FILE, PREPROCESSOR_FILE, hub_config, preprocessor_config
from training.export.kinds import Format
from training.onnxtagger import open_session
from training.written import write_json, writing

ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"
DESCRIPTION_FILE = "description.json"  # inside model.pt2
ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
# A protobuf message, which an ONNX file is, can't be larger.
MAX_ONNX_BYTES = 2**31 - 1
MAX_ONNX_WEIGHT_BYTES = MAX_ONNX_BYTES - 2**24  # the rest for the graph and the fbank
# It warns of operators of torchvision, which no model of ours has.
_REGISTRATION_LOG = "torch.onnx._internal.exporter._registration"

Waveforms = NDArray[np.float32]
Outputs = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Source:
    """What is exported: a checkpoint, the same as a model of waveforms, and its description."""

    checkpoint: Checkpoint
    model: WaveformModel
    description: dict[str, Any]


def why_not(form: Format, checkpoint: Checkpoint) -> str | None:
    """Why a model can't be had in a format here, and what to do about it; None where it can."""
    if form is not Format.ONNX:
        return None
    lacking = [name for name in ONNX_LIBRARIES if importlib.util.find_spec(name) is None]
    if lacking:
        return f"ONNX files need {', '.join(lacking)}: pip install 'acm-sskd[export]'"
    num_bytes = sum(part.numel() * part.element_size() for part in checkpoint.network.values())
    if num_bytes > MAX_ONNX_WEIGHT_BYTES:
        size_gib = num_bytes / 2**30
        return f"an ONNX file holds 2 GiB at most, and these weights are {size_gib:.1f} GiB; take --format torch"
    return None


def write_files(formats: list[Format], source: Source, folder: Path) -> list[str]:
    """Writes the formats' files into an empty folder; returns their names, those of weights first."""
    names: list[str] = []
    if Format.SAFETENSORS in formats or Format.FOLDER in formats:
        save_safetensors(source.checkpoint, source.description, folder / WEIGHTS_FILE)
        names.append(WEIGHTS_FILE)
    if Format.TORCH in formats or Format.ONNX in formats:
        program = trace(source.model)
        if Format.TORCH in formats:
            _write_torch(program, source.description, folder / TORCH_FILE)
            names.append(TORCH_FILE)
        if Format.ONNX in formats:
            _write_onnx(program, source, folder / ONNX_FILE)
            names.append(ONNX_FILE)
    if Format.FOLDER in formats:
        write_json(folder / CONFIG_FILE, hub_config(source.checkpoint, source.description))
        write_json(folder / PREPROCESSOR_FILE, preprocessor_config(source.description))
        names += [CONFIG_FILE, PREPROCESSOR_FILE]
    return names


def _write_torch(program: torch.export.ExportedProgram, description: dict[str, Any], path: Path) -> None:
    # Into memory: on a full disk, torch's own writer ends the whole process.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={DESCRIPTION_FILE: json.dumps(description)})
    with writing(path):
        atomic_write(path, content.getbuffer())


def _write_onnx(program: torch.export.ExportedProgram, source: Source, path: Path) -> None:
    with _quiet_registration():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=ONNX_OPSET,
            input_names=[WAVEFORM],
            output_names=source.model.output_names,
            dynamic_shapes={WAVEFORM: {0: "batch", 1: "num_samples"}},
            verbose=False,
        )
    if exported is None:
        raise TypeError("torch.onnx.export gives a program where it is given no file")
    model: Any = exported.model
    for part in (model.graph, *model.graph.all_nodes(), *model.graph.inputs, *model.graph.outputs):
        # What each came from, with the places of that code on this machine.
        part.metadata_props.clear()
        part.doc_string = None
    model.metadata_props.clear()
    model.metadata_props.update({name: json.dumps(value) for name, value in source.description.items()})
    with atomic_path(path) as temporary:
        exported.save(temporary, external_data=False)


@contextmanager
def _quiet_registration() -> Iterator[None]:
    log = logging.getLogger(_REGISTRATION_LOG)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def open_torch(path: Path) -> Callable[[Waveforms], Outputs]:
    """What model.pt2 says of waveforms (B, num_samples): its outputs, in their order."""
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(waveforms: Waveforms) -> Outputs:
        return tuple(output.numpy() for output in module(torch.from_numpy(waveforms)))

    return run


def open_onnx(path: Path) -> Callable[[Waveforms], Outputs]:
    """What model.onnx says of waveforms (B, num_samples), run by onnxruntime: its outputs, in their order."""
    session = open_session(path)
    return lambda waveforms: tuple(session.run(None, {WAVEFORM: waveforms}))
