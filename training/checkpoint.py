"""Checkpoints: one file that says what it is, whole or absent, loaded without pickles; or exported as safetensors."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile, is_zipfile

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ingest.atomic import atomic_path, atomic_write
from ingest.sourcefile import file_sha256
from manifests.errors import InputError
from manifests.geometry import FbankSpec
from manifests.vocabulary import Vocabulary
from training.config import DataConfig, ModelConfig, Stage
from training.inputs import Normalisation
from training.model.aft import AudioFeatureTransformer
from training.model.networks import Student
from training.written import cannot_write

FORMAT: Literal[1] = 1
SAFETENSORS = ".safetensors"
WEIGHTS_FILE = "model.safetensors"  # in an exported folder, as Hugging Face names it
# The one entry of a safetensors file's metadata: of several, their order would vary from call to call.
DESCRIPTION_KEY = "acm-sskd"

# What reading any other file leads to.
NOT_OURS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    BadZipFile,
    pickle.UnpicklingError,
    SafetensorError,
)


class Training(BaseModel):
    """What weights were trained on: clips of stores' snapshots, of the first without what the run held out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    with_labels: bool
    store_fingerprint: str
    other_fingerprints: tuple[str, ...] = ()
    data: DataConfig
    seed: int


class About(BaseModel):
    """All that is needed to use a checkpoint without the run that made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    stage: Stage
    iteration: int
    step: int  # steps done
    num_steps: int
    best: float | None = None  # the best score so far: a metric of held-out clips, or minus the loss
    model: ModelConfig
    fbank: FbankSpec
    mean: float
    std: float
    vocabulary: Vocabulary
    one_label: bool
    classifies: bool = True  # whether the classifier was trained, where there is one
    teacher_dim: int | None
    teacher: dict[str, Any] | None = None  # whose embeddings were regressed: name and provenance of the cache
    store_fingerprint: str
    other_fingerprints: tuple[str, ...] = ()  # of the other stores that were trained on with it
    data: DataConfig
    seed: int
    held_out: str  # what the run held out, in words
    before: tuple[Training, ...] = ()  # of the weights that the run started from, as far as they told

    @property
    def finished(self) -> bool:
        return self.step == self.num_steps

    @property
    def trainings(self) -> tuple[Training, ...]:
        """All that the weights were trained on."""
        own = Training(
            with_labels=self.stage == "distill" and self.classifies,
            store_fingerprint=self.store_fingerprint,
            other_fingerprints=self.other_fingerprints,
            data=self.data,
            seed=self.seed,
        )
        return own, *self.before

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.mean, self.std)

    @property
    def window(self) -> FbankSpec:
        """The fbank that the model takes: its store's, of so many frames as the model sees."""
        return self.fbank.model_copy(update={"num_frames": self.model.num_frames})

    @property
    def can_classify(self) -> bool:
        """Whether there is a trained classifier of any class: not after Multi-SSL alone, nor without labels."""
        return self.stage == "distill" and self.classifies and len(self.vocabulary) > 0


@dataclass(frozen=True)
class Checkpoint:
    """`network` and `optimiser` are state dicts; `optimiser` is absent from best.pt."""

    about: About
    network: dict[str, Tensor]
    optimiser: dict[str, Any] | None = None


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint, replacing an older one only when the new one is whole."""
    content = {
        "about": json.dumps(checkpoint.about.model_dump(mode="json")),
        "network": checkpoint.network,
        "optimiser": checkpoint.optimiser,
    }
    try:
        # Into an open file: given a path, torch puts its name into the archive, and that of a temporary file varies.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise cannot_write(path, error) from error


def save_safetensors(checkpoint: Checkpoint, description: dict[str, Any], path: Path) -> None:
    """Writes the network, without the optimiser; `description` (JSON) lies beside `about` in the file's metadata."""
    content = {**description, "about": checkpoint.about.model_dump(mode="json")}
    weights = {name: part.contiguous() for name, part in checkpoint.network.items()}
    try:
        atomic_write(path, safetensors.torch.save(weights, {DESCRIPTION_KEY: json.dumps(content)}))
    except OSError as error:
        raise cannot_write(path, error) from error


def _load_safetensors(path: Path, device: torch.device | str) -> Checkpoint:
    """What :func:`save_safetensors` wrote. Raises OSError, SafetensorError, or ValueError for another's file."""
    with path.open("rb"), safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        if DESCRIPTION_KEY not in metadata:
            raise ValueError("its metadata don't say so")
        about = About.model_validate(json.loads(metadata[DESCRIPTION_KEY])["about"])
        return Checkpoint(about, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint of ours, or its weights as safetensors. Raises InputError for any other file."""
    try:
        if path.suffix == SAFETENSORS:
            return _load_safetensors(path, device)
        # torch takes a file that is no archive for one of its old formats, and says of it whatever its bytes lead to.
        with path.open("rb") as file:
            if not is_zipfile(file):
                raise ValueError("it is no archive, or only the beginning of one")
        content = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(content, dict):
            raise ValueError("it holds something else")
        about = About.model_validate(json.loads(content["about"]))
        return Checkpoint(about, content["network"], content["optimiser"])
    except OSError as error:
        raise InputError(f"the checkpoint {path} can't be read: {error.strerror or error}") from error
    except NOT_OURS as error:
        reason = (
            "it has other fields"
            if isinstance(error, ValidationError)
            else (str(error) or type(error).__name__).splitlines()[0][:200]
        )
        raise InputError(
            f"{path} is not a whole checkpoint of this trainer ({reason}); expected one like RUN/iter1/distill/last.pt"
        ) from error


def provenance_of(path: Path, about: About) -> dict[str, Any]:
    """What says which model a checkpoint is, and where it comes from."""
    return {
        "checkpoint_sha256": file_sha256(path),
        "stage": about.stage,
        "iteration": about.iteration,
        "step": about.step,
        "trained_on": about.store_fingerprint,
    }


def load_student(checkpoint: Checkpoint) -> Student:
    """The network of a distillation checkpoint, in evaluation mode. Raises InputError for one of another stage."""
    about = checkpoint.about
    if about.stage != "distill":
        raise InputError(
            "this checkpoint is of the Multi-SSL stage and can't classify; take one of a distill stage, "
            "like RUN/iter1/distill/last.pt"
        )
    student = Student(about.model, len(about.vocabulary), about.teacher_dim, torch.Generator())
    student.load_state_dict(checkpoint.network)
    return student.eval()


def aft_weights(network: dict[str, Tensor]) -> dict[str, Tensor]:
    """The AFT's part of a network's state dict."""
    prefix = "aft."
    return {name.removeprefix(prefix): weight for name, weight in network.items() if name.startswith(prefix)}


def load_aft(checkpoint: Checkpoint) -> AudioFeatureTransformer:
    """The transformer of a checkpoint of either stage, in evaluation mode."""
    aft = AudioFeatureTransformer(checkpoint.about.model)
    aft.load_state_dict(aft_weights(checkpoint.network))
    return aft.eval()
