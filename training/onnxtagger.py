"""Exported ONNX files as taggers: all that is known of the model is read from the file itself."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from ingest.featurise import looped
from ingest.sourcefile import file_sha256
from manifests.errors import InputError, first_line
from manifests.vocabulary import Label, Vocabulary
from training.export.graph import EMBEDDING, PROBABILITIES, WAVEFORM
from training.tagger import Heard, Prepared

RUNTIME = "onnxruntime"
EXPECTED = "expected a model.onnx of `training export`"


class OnnxTagger:
    """A file run by onnxruntime on the CPU, see :class:`training.tagger.Tagger`; it gives no tokens."""

    def __init__(self, session: Any, about: dict[str, Any], sha256: str) -> None:
        """`about`: the metadata that `training export` writes. Raises LookupError or ValueError for others' files."""
        given, outputs = about["input"], about["outputs"]
        self.name = "onnx"
        self.sample_rate_hz = int(given["sample_rate_hz"])
        self.window_samples = int(given["window_samples"])
        self.least_samples = int(given["least_samples"])
        self.embedding_dim = int(outputs[EMBEDDING][1])
        labels = tuple(Label.model_validate(label) for label in about["labels"])
        self.vocabulary = Vocabulary(labels=labels) if labels else None
        self.provenance: dict[str, Any] = {"onnx_sha256": sha256, **about["provenance"]}
        self._session = session
        self._outputs = [PROBABILITIES, EMBEDDING] if labels else [EMBEDDING]
        there = {output.name for output in session.get_outputs()}
        if not there.issuperset(self._outputs) or [one.name for one in session.get_inputs()] != [WAVEFORM]:
            raise ValueError(f"its outputs are {', '.join(sorted(there))}")

    def prepare(self, waveform: NDArray[np.float32]) -> Prepared:
        """The waveform repeated, or cut, to a window (window_samples,), as the graph would do by itself.

        So waveforms of several lengths can be heard together.
        """
        return looped(waveform, self.window_samples)

    def hear(self, prepared: list[Prepared]) -> Heard:
        """Probabilities (B, C), where the model has labels, and embedding (B, D) of windows."""
        *said, embedding = self._session.run(self._outputs, {WAVEFORM: np.stack(prepared).astype(np.float32)})
        return Heard(said[0] if said else None, embedding)


def load_onnx(path: Path) -> OnnxTagger:
    """Opens a model.onnx of ours. Raises InputError for any other file, and where onnxruntime is not installed."""
    session = open_session(path)
    metadata = session.get_modelmeta().custom_metadata_map
    try:
        return OnnxTagger(session, {name: json.loads(value) for name, value in metadata.items()}, file_sha256(path))
    except (LookupError, TypeError, ValueError, ValidationError, InputError) as error:
        raise InputError(f"{path} does not say of itself what its outputs are ({error!r}); {EXPECTED}") from error


def open_session(path: Path) -> Any:
    """An onnxruntime.InferenceSession on the CPU, with as many threads as torch has; raises as :func:`load_onnx`."""
    try:
        runtime = importlib.import_module(RUNTIME)
    except ImportError as error:
        raise InputError(f"{path} is run by onnxruntime, which is missing: pip install 'acm-sskd[export]'") from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it would print is in the error that it raises
    try:
        with path.open("rb"):
            return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise InputError(f"the model {path} can't be read: {error.strerror or error}") from error
    # onnxruntime's own errors have no class in common but this one.
    except Exception as error:
        raise InputError(f"{path} is not a whole ONNX model ({first_line(error)[:200]}); {EXPECTED}") from error
