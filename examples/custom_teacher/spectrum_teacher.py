"""A teacher in a package of its own: a linear layer over the mean log-power spectrum."""

from pathlib import Path

import torch
from torch import Tensor, nn

from featurestore.teachers.base import Teacher, TeacherOutput, WaveformInput
from featurestore.teachers.checkpointfile import CheckpointFile, read_checkpoint

FRAME_LENGTH = 256


class SpectrumTeacher(nn.Module):
    name = "spectrum"
    vocabulary = None

    def __init__(self, network: nn.Linear, file: CheckpointFile) -> None:
        super().__init__()
        self.network = network
        self.input = WaveformInput(sample_rate_hz=8000)
        self.embedding_dim = network.out_features
        settings = {"sample_rate_hz": 8000, "frame_length": FRAME_LENGTH}
        self.provenance = file.provenance("spectrum", settings, {"width": self.embedding_dim})

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        """Embedding (B, D) and tokens (B, L, D) of waveforms (B, num_samples) in [-1, 1]."""
        batch = batch.to(self.network.weight)
        batch = nn.functional.pad(batch, (0, max(0, FRAME_LENGTH - batch.shape[1])))
        power = torch.fft.rfft(batch.unfold(1, FRAME_LENGTH, FRAME_LENGTH)).abs().square()
        tokens = self.network((power + 1e-6).log())
        return TeacherOutput(embedding=tokens.mean(1), tokens=tokens)


def load_spectrum(checkpoint: Path) -> Teacher:
    file = read_checkpoint(checkpoint, "expected a file of a spectrum teacher, with `weight` and `bias`")
    state = file.tensors(file.content)
    with torch.device("meta"):
        network = nn.Linear(FRAME_LENGTH // 2 + 1, file.dimension(state, "weight"))
    file.load_into(network, state)
    return SpectrumTeacher(network, file)
