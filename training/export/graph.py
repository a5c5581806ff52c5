"""The network that is exported: waveform in, tags and embedding out, in operations that every runtime knows."""

import math

import torch
from torch import Tensor, nn

from ingest.fbank import ENERGY_FLOOR, FFT_SIZE, mel_banks
from manifests.geometry import FbankSpec
from training.checkpoint import Checkpoint, load_aft, load_student
from training.inference import probabilities
from training.inputs import Normalisation
from training.model.aft import pool
from training.model.patches import patchify

WAVEFORM, PROBABILITIES, LOGITS, EMBEDDING = "waveform", "probabilities", "logits", "embedding"


class LogMel(nn.Module):
    """:func:`ingest.featurise.window_fbank` without an FFT, which ONNX runtimes don't have: a DFT as two products.

    (B, num_samples) of [-1, 1], repeated or cut to spec.num_samples, to (B, num_frames, num_mel_bins) float32 that is
    rounded to float16 as shards are: the model has never seen finer values.
    """

    cosines: Tensor
    sines: Tensor
    banks: Tensor

    def __init__(self, spec: FbankSpec) -> None:
        super().__init__()
        self.spec = spec
        cosines, sines = _windowed_dft(spec)
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)
        self.register_buffer("banks", mel_banks(spec).T.contiguous())  # (FFT_SIZE / 2, num_mel_bins)

    def forward(self, waveform: Tensor) -> Tensor:
        looped = self._loop(waveform)
        frames = self._frames(looped - looped.mean(1, keepdim=True))  # (B, T, frame_length)
        centred = frames - frames.mean(2, keepdim=True)
        # As in ingest.fbank two roundings; the first sample of a frame counts for nothing, there the window is 0.
        emphasised = centred[..., 1:] - centred[..., :-1] * self.spec.preemphasis
        power = (emphasised @ self.cosines).square() + (emphasised @ self.sines).square()  # (B, T, FFT_SIZE / 2)
        return (power @ self.banks).clamp(min=ENERGY_FLOOR).log().half().float()

    def _loop(self, waveform: Tensor) -> Tensor:
        """As :func:`ingest.featurise.looped`: sample i of the window is sample i modulo the waveform's length."""
        device = waveform.device
        # A tensor, since the exporter to ONNX knows no remainder by a length that is open.
        length = torch.full((1,), waveform.shape[1], dtype=torch.int64, device=device)
        return waveform.index_select(1, torch.arange(self.spec.num_samples, device=device) % length)

    def _frames(self, window: Tensor) -> Tensor:
        """Overlapping frames (B, T, frame_length) put together from blocks that don't overlap: slices alone."""
        length, shift = self.spec.frame_length, self.spec.frame_shift
        size = math.gcd(length, shift)
        blocks = window.reshape(window.shape[0], -1, size)  # (B, num_samples / size, size)
        step, num = shift // size, self.spec.num_frames
        return torch.cat([blocks[:, first : first + step * (num - 1) + 1 : step] for first in range(length // size)], 2)


def _windowed_dft(spec: FbankSpec) -> tuple[Tensor, Tensor]:
    """The window times cosines and sines, computed in float64: (frame_length - 1, FFT_SIZE / 2) each, float32."""
    window = torch.hann_window(spec.frame_length, periodic=False, dtype=torch.float64)
    places, bins = torch.arange(spec.frame_length), torch.arange(FFT_SIZE // 2)
    # The remainder is exact, so that large angles are as good as small ones.
    angles = (places[:, None] * bins % FFT_SIZE).double() * (2 * math.pi / FFT_SIZE)
    cosines, sines = (window[:, None] * wave for wave in (angles.cos(), angles.sin()))
    return cosines[1:].float(), sines[1:].float()


class WaveformModel(nn.Module):
    """A trained model behind its fbank.

    (B, num_samples) float32, mono, [-1, 1], at the spec's rate, any length of at least one frame; shorter than the
    window it is repeated, longer it is cut. Gives probabilities (B, C) and logits (B, C), where it has a classifier,
    and embedding (B, D).
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """The network of a checkpoint of either stage."""
        super().__init__()
        about = checkpoint.about
        self.fbank = LogMel(about.window)
        self.normalisation: Normalisation = about.normalisation
        self.one_label = about.one_label
        self.classifier: nn.Linear | None = None
        if about.can_classify:
            student = load_student(checkpoint)
            self.aft, self.classifier = student.aft, student.classifier
        else:
            self.aft = load_aft(checkpoint)
        self.eval().requires_grad_(False)

    @property
    def output_names(self) -> tuple[str, ...]:
        return (EMBEDDING,) if self.classifier is None else (PROBABILITIES, LOGITS, EMBEDDING)

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        pooled = pool(self.aft(patchify(self.normalisation(self.fbank(waveform)), self.aft.config.grid)))
        if self.classifier is None:
            return (pooled,)
        logits = self.classifier(pooled)
        return probabilities(logits, one_label=self.one_label), logits, pooled


def trace(model: WaveformModel) -> torch.export.ExportedProgram:
    """The model as a graph in which the number of clips and their length are open, without traces of this machine."""
    spec = model.fbank.spec
    open_sizes = {
        WAVEFORM: {0: torch.export.Dim("batch"), 1: torch.export.Dim("num_samples", min=spec.frame_length)},
    }
    # Neither 1 clip nor the window's own length, which would be taken for constants.
    example = torch.zeros(2, spec.num_samples // 2)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=open_sizes, strict=False)
    for node in program.graph.nodes:
        # Files and lines of the code that was traced, with their places on this machine.
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program
