"""AST as a teacher, of waveforms or, as another teacher of its own name, of the store's fbanks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurestore.teachers.astfile import AstFile, AstSettings, read_ast
from featurestore.teachers.asttransformer import Ast
from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput, WaveformInput
from featurestore.teachers.kaldi import KaldiFbank
from manifests.errors import InputError
from manifests.geometry import FbankSpec

SAMPLE_RATE_HZ = 16000
STORE_LENGTHS = (256, 512, 1024)


class AstInput(nn.Module):
    """Normalised fbanks (B, num_frames, 128) of waveforms (B, num_samples) in [-1, 1]."""

    def __init__(self, settings: AstSettings) -> None:
        super().__init__()
        self.settings = settings
        self.kaldi = KaldiFbank("hanning")

    def forward(self, waveform: Tensor) -> Tensor:
        if waveform.shape[1]:
            waveform = waveform - waveform.mean(1, keepdim=True)
        fbank = self.kaldi(waveform)[:, : self.settings.num_frames]
        # The zeros come before the normalisation, as in training: they are no silence, which would be about -16.
        return self.normalise(F.pad(fbank, (0, 0, 0, self.settings.num_frames - fbank.shape[1])))

    def normalise(self, fbank: Tensor) -> Tensor:
        """Fbanks (B, num_frames, 128) on the scale that the network was trained on."""
        return (fbank - self.settings.mean) / (2 * self.settings.std)


class AstTeacher(nn.Module):
    """The frozen front end and network; see `Teacher`. It takes waveforms, or the store's looped fbanks."""

    def __init__(self, read: AstFile, input_: WaveformInput | FbankInput, provenance: dict[str, Any]) -> None:
        super().__init__()
        self.name = "ast" if isinstance(input_, WaveformInput) else "ast-fbank"
        self.input = input_
        self.front_end = AstInput(read.settings)
        self.network: Ast = read.network
        self.embedding_dim = read.network.sizes.width
        self.vocabulary = read.vocabulary
        self.provenance = provenance

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        """Mean of the class tokens (B, D), logits (B, C) or None, and the patches' tokens (B, L, D), frequency-major.

        `batch`: waveforms (B, num_samples), or fbanks (B, num_frames, 128), not normalised; see `input`.
        """
        batch = batch.to(self.front_end.kaldi.window)
        takes_waveforms = isinstance(self.input, WaveformInput)
        fbank = self.front_end(batch) if takes_waveforms else self.front_end.normalise(batch)
        return TeacherOutput(*self.network(fbank))


def load_ast(checkpoint: Path, *, num_heads: int | None = None) -> Teacher:
    """The teacher of waveforms in an original or a Hugging Face file.

    `num_heads`: for a model whose heads are not 64 wide, as all released ones are. Raises InputError where the file is
    missing, unreadable or does not fit.
    """
    read = read_ast(checkpoint, num_heads)
    provenance = _provenance(read, {"sample_rate_hz": SAMPLE_RATE_HZ, "source": "waveform"})
    return AstTeacher(read, WaveformInput(SAMPLE_RATE_HZ), provenance)


def load_ast_fbank(checkpoint: Path, *, num_heads: int | None = None) -> Teacher:
    """The teacher of the store's fbanks, for stores whose audio is not at hand; short clips are looped in them.

    Raises InputError as `load_ast`, and where the model takes fbanks of a length that no store has.
    """
    read = read_ast(checkpoint, num_heads)
    num_frames = read.settings.num_frames
    if num_frames not in STORE_LENGTHS:
        raise InputError(
            f"{checkpoint} takes {num_frames} frames, and stores have 256, 512 or 1024; use the teacher 'ast', which "
            "takes waveforms"
        )
    spec = FbankSpec.model_validate({"num_frames": num_frames})
    provenance = _provenance(read, {"source": "fbank", "fbank": spec.model_dump(mode="json")})
    return AstTeacher(read, FbankInput(spec), provenance)


def _provenance(read: AstFile, source: dict[str, Any]) -> dict[str, Any]:
    settings = source | read.settings._asdict()
    return read.file.provenance("AST", settings, read.network.sizes._asdict() | {"naming": read.naming.kind})
