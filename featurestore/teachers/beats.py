"""BEATs as a teacher: files that were only pretrained, and files fine-tuned on AudioSet, which have a head."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput, WaveformInput
from featurestore.teachers.beatsmodel import Beats, BeatsConfig
from featurestore.teachers.checkpointfile import CheckpointFile, describe, read_checkpoint
from featurestore.teachers.kaldi import KaldiFbank
from featurestore.teachers.labels import read_vocabulary
from manifests.vocabulary import Vocabulary

EXPECTED = (
    "expected a BEATs file such as BEATs_iter3_plus_AS2M.pt or its fine-tuned ones; download it from the page of BEATs "
    "at github.com/microsoft/unilm"
)
SIZES = (
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "input_patch_size",
    "num_classes",
)


class BeatsSettings(NamedTuple):
    """The input that every released model was trained on; kept in the provenance."""

    sample_rate_hz: int = 16000
    waveform_scale: float = 32768.0
    window: str = "povey"
    mean: float = 15.41663
    std: float = 6.55582


class BeatsInput(nn.Module):
    """Normalised fbanks (B, T, 128) of waveforms (B, num_samples) in [-1, 1]."""

    def __init__(self, settings: BeatsSettings, patch_size: int) -> None:
        super().__init__()
        self.settings = settings
        self.kaldi = KaldiFbank("povey")
        self.least_samples = self.kaldi.spec.frame_length + (patch_size - 1) * self.kaldi.spec.frame_shift

    def forward(self, waveform: Tensor) -> Tensor:
        # Clips too short for one patch are followed by silence, and no others are touched.
        waveform = F.pad(waveform, (0, max(0, self.least_samples - waveform.shape[1])))
        fbank: Tensor = self.kaldi(waveform * self.settings.waveform_scale)
        return (fbank - self.settings.mean) / (2 * self.settings.std)


class BeatsTeacher(nn.Module):
    """The frozen front end and network; see `Teacher`."""

    name = "beats"

    def __init__(self, network: Beats, vocabulary: Vocabulary | None, provenance: dict[str, Any]) -> None:
        super().__init__()
        settings = BeatsSettings()
        self.input: WaveformInput | FbankInput = WaveformInput(settings.sample_rate_hz)
        self.front_end = BeatsInput(settings, network.config.input_patch_size)
        self.network = network
        self.embedding_dim = network.config.encoder_embed_dim
        self.vocabulary = vocabulary
        self.provenance = provenance

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        """Mean of the tokens (B, D), logits (B, C), and tokens (B, L, D), time-major, of waveforms (B, num_samples).

        The logits are the mean over the tokens of each one's, and the reference's probabilities are their sigmoid.
        """
        tokens = self.network(self.front_end(batch.to(self.front_end.kaldi.window)))
        pooled = tokens.mean(1)
        # The head is linear, so the mean of its outputs is its output for the mean.
        logits = None if self.network.predictor is None else self.network.predictor(pooled)
        return TeacherOutput(pooled, logits, tokens)


def load_beats(checkpoint: Path) -> Teacher:
    """The teacher in an official file; raises InputError where the file is missing, unreadable or does not fit."""
    file = read_checkpoint(checkpoint, EXPECTED)
    content = file.content
    if not (isinstance(content, dict) and "cfg" in content and "model" in content):
        raise file.error("has no `cfg` and `model`")
    config = _read_config(file)
    state = file.tensors(content["model"])
    # Without storage, so that the sizes that a wrong file suggests cost nothing.
    with torch.device("meta"):
        network = Beats(config)
    file.load_into(network, state)
    _check_tables(file, state)
    sizes = {name: getattr(config, name) for name in SIZES}
    provenance = file.provenance("BEATs", BeatsSettings()._asdict(), sizes)
    return BeatsTeacher(network, _read_labels(file, config.num_classes), provenance)


def _read_config(file: CheckpointFile) -> BeatsConfig:
    try:
        return BeatsConfig.model_validate(file.content["cfg"])
    except ValidationError as error:
        raise file.error(f"has a `cfg` of another network, {describe(error)}") from error


def _check_tables(file: CheckpointFile, state: dict[str, Tensor]) -> None:
    """Refuses a file whose layers differ in the table of position biases, which is one and the same."""
    tables = {name: tensor for name, tensor in state.items() if name.endswith("relative_attention_bias.weight")}
    first = next(iter(tables.values()))
    if differing := [name for name, table in tables.items() if not torch.equal(table, first)]:
        raise file.error(f"has another table of position biases under {differing[0]} than under the first layer")


def _read_labels(file: CheckpointFile, num_classes: int | None) -> Vocabulary | None:
    if num_classes is None:
        return None
    labels = file.content.get("label_dict")
    if not isinstance(labels, dict) or not all(isinstance(k, int) and isinstance(v, str) for k, v in labels.items()):
        raise file.error("is fine-tuned, but has no `label_dict` of its classes")
    return read_vocabulary(file, labels, num_classes)
