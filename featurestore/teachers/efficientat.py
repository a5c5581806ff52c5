"""EfficientAT: MobileNetV3-large at any width, trained on AudioSet by distillation from a transformer.

Schmid, Koutini, Widmer, "Efficient large-scale audio tagging via transformer-to-CNN knowledge distillation",
ICASSP 2023 (github.com/fschmid56/EfficientAT, MIT). Modules are named as in its files; sizes are read off the tensors.
"""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput, WaveformInput
from manifests.audioset import audioset_vocabulary
from manifests.errors import InputError

EXPECTED = "expected an EfficientAT mnXX state dict; download it from github.com/fschmid56/EfficientAT/releases"


class LogMelSettings(NamedTuple):
    """The input that every released mnXX model was trained on; kept in the provenance."""

    sample_rate_hz: int = 32000
    preemphasis: float = 0.97
    num_fft: int = 1024
    window_samples: int = 800
    hop_samples: int = 320
    num_mel_bins: int = 128
    low_hz: float = 0.0
    high_hz: float = 15000.0
    log_offset: float = 1e-5
    shift: float = 4.5
    scale: float = 5.0


class Row(NamedTuple):
    """What a checkpoint does not tell of a block: MobileNetV3-large's table (Howard et al. 2019, table 1)."""

    kernel: int
    activation: type[nn.Module]
    stride: int
    squeezes: bool


ROWS = (
    *(Row(3, nn.ReLU, stride, False) for stride in (1, 2, 1)),
    *(Row(5, nn.ReLU, stride, True) for stride in (2, 1, 1)),
    *(Row(3, nn.Hardswish, stride, False) for stride in (2, 1, 1, 1)),
    *(Row(3, nn.Hardswish, stride, True) for stride in (1, 1)),
    *(Row(5, nn.Hardswish, stride, True) for stride in (2, 1, 1)),
)


class BlockSizes(NamedTuple):
    """Channels after the expansion (0: there is none), within the squeeze-excitation (0: none), and of the output."""

    expanded: int
    squeezed: int
    out: int


class Sizes(NamedTuple):
    """Channels of the whole network; `blocks` has one entry for each of `ROWS`."""

    stem: int
    blocks: tuple[BlockSizes, ...]
    embedding: int
    head: int
    classes: int


class LogMel(nn.Module):
    """Normalised log-mel image (B, num_mel_bins, num_frames) of waveforms (B, num_samples); no trained tensors."""

    window: Tensor
    mel_basis: Tensor

    def __init__(self, settings: LogMelSettings) -> None:
        super().__init__()
        self.settings = s = settings
        basis, _ = torchaudio.compliance.kaldi.get_mel_banks(
            s.num_mel_bins, s.num_fft, float(s.sample_rate_hz), s.low_hz, s.high_hz, 100.0, -500.0, 1.0
        )
        # Kaldi's banks leave out the Nyquist bin, which the STFT has.
        self.register_buffer("mel_basis", F.pad(basis, (0, 1)), persistent=False)
        self.register_buffer("window", torch.hann_window(s.window_samples, periodic=False), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        s = self.settings
        # Reflection at the edges needs more than half an FFT of samples, after the difference has taken one: clips
        # too short for the reference implementation are followed by silence, and no others are touched.
        waveform = F.pad(waveform, (0, max(0, s.num_fft // 2 + 2 - waveform.shape[-1])))
        emphasised = waveform[:, 1:] - s.preemphasis * waveform[:, :-1]
        sizes = s.num_fft, s.hop_samples, s.window_samples
        spectrum = torch.stft(emphasised, *sizes, self.window, center=True, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)  # (B, num_fft / 2 + 1, num_frames)
        return torch.log(self.mel_basis @ power + s.log_offset).add(s.shift).div(s.scale)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed of all channels' means over space."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        reduce, restore = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)
        gate = nn.Sequential(OrderedDict(fc1=reduce, relu=nn.ReLU(), fc2=restore, sigmoid=nn.Sigmoid()))
        # The reference can gate over other axes too; the released models have this one entry.
        self.conc_se_layers = nn.ModuleList([gate])

    def forward(self, image: Tensor) -> Tensor:
        return image.mul(self.conc_se_layers[0](image.mean((2, 3)))[:, :, None, None])


def _convolution(
    num_in: int, num_out: int, kernel: int, activation: type[nn.Module] | None, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = nn.Conv2d(num_in, num_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_out, eps=1e-3), *([activation()] if activation else []))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-excitation, projection; a shortcut where shapes allow it."""

    def __init__(self, num_in: int, sizes: BlockSizes, row: Row) -> None:
        super().__init__()
        hidden = sizes.expanded or num_in
        layers: list[nn.Module] = [_convolution(num_in, hidden, 1, row.activation)] if sizes.expanded else []
        layers += [_convolution(hidden, hidden, row.kernel, row.activation, row.stride, groups=hidden)]
        layers += [SqueezeExcitation(hidden, sizes.squeezed)] if row.squeezes else []
        layers += [_convolution(hidden, sizes.out, 1, None)]
        self.block = nn.Sequential(*layers)
        self.has_shortcut = row.stride == 1 and num_in == sizes.out

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.block(image)
        return image + out if self.has_shortcut else out


class MobileNet(nn.Module):
    """Embedding (B, D) and logits (B, C) of one-channel images (B, 1, num_mel_bins, num_frames)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        widths = [sizes.stem, *(block.out for block in sizes.blocks)]
        blocks = [InvertedResidual(*each) for each in zip(widths[:-1], sizes.blocks, ROWS, strict=True)]
        stem = _convolution(1, sizes.stem, 3, nn.Hardswish, stride=2)
        self.features = nn.Sequential(stem, *blocks, _convolution(widths[-1], sizes.embedding, 1, nn.Hardswish))
        # The names are places in the reference's list, which has pooling, flattening and dropout too.
        hidden, logits = nn.Linear(sizes.embedding, sizes.head), nn.Linear(sizes.head, sizes.classes)
        self.classifier = nn.Sequential(OrderedDict([("2", hidden), ("3", nn.Hardswish()), ("5", logits)]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.features(image).mean((2, 3))
        return embedding, self.classifier(embedding)


class EfficientATTeacher(nn.Module):
    """The frozen front end and network; see `Teacher`."""

    name = "efficientat"

    def __init__(self, network: MobileNet, provenance: dict[str, Any]) -> None:
        super().__init__()
        settings = LogMelSettings()
        self.input: WaveformInput | FbankInput = WaveformInput(settings.sample_rate_hz)
        self.log_mel = LogMel(settings)
        self.network = network.eval().requires_grad_(False)
        self.embedding_dim = network.sizes.embedding
        self.vocabulary = audioset_vocabulary() if network.sizes.classes == len(audioset_vocabulary()) else None
        self.provenance = provenance | {"input": settings._asdict(), "format": 1}

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        """Embedding (B, D) and logits (B, C), before the sigmoid, of waveforms (B, num_samples) in [-1, 1]."""
        embedding, logits = self.network(self.log_mel(batch.to(self.log_mel.window))[:, None])
        return TeacherOutput(embedding, logits)


def read_sizes(state: Mapping[str, Tensor]) -> Sizes:
    """The network's sizes, of its tensors' first dimensions; raises KeyError for a tensor that is missing or empty."""
    channels = {key: tensor.shape[0] for key, tensor in state.items() if tensor.ndim and tensor.numel()}

    def read_block(name: str, squeezes: bool) -> BlockSizes:
        # First in a block is its 1x1 expansion or, where it has none, its depthwise convolution: 3x3 or 5x5.
        first = channels[f"{name}.0.0.weight"]
        expands = state[f"{name}.0.0.weight"].shape[-1] == 1
        squeezed = channels[f"{name}.{expands + 1}.conc_se_layers.0.fc1.weight"] if squeezes else 0
        out = channels[f"{name}.{expands + 1 + squeezes}.0.weight"]
        return BlockSizes(first if expands else 0, squeezed, out)

    return Sizes(
        stem=channels["features.0.0.weight"],
        blocks=tuple(read_block(f"features.{index}.block", row.squeezes) for index, row in enumerate(ROWS, start=1)),
        embedding=channels[f"features.{len(ROWS) + 1}.0.weight"],
        head=channels["classifier.2.weight"],
        classes=channels["classifier.5.weight"],
    )


def _read_state(content: bytes, checkpoint: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # What a damaged file raises depends on where the damage is: torch documents no closed set.
    except Exception as error:
        reason = f"{checkpoint}: no torch file, damaged, cut short, or with code in it"
        raise InputError(f"cannot read tensors from {reason}; {EXPECTED}") from error
    if not (isinstance(state, dict) and all(isinstance(tensor, Tensor) for tensor in state.values())):
        raise InputError(f"{checkpoint} does not hold a flat table of tensors by name; {EXPECTED}")
    return state


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [f"{key} is missing" for key in expected if key not in found]
    extra = [f"{key} is not part of the network" for key in found if key not in expected]
    shapes = {key: (tuple(expected[key].shape), tuple(found[key].shape)) for key in expected if key in found}
    misshapen = [f"{key} has shape {has}, expected {wants}" for key, (wants, has) in shapes.items() if has != wants]
    return missing + extra + misshapen


def _build_network(state: Mapping[str, Tensor], checkpoint: Path) -> MobileNet:
    try:
        sizes = read_sizes(state)
    except KeyError as error:
        raise InputError(f"{checkpoint} does not fit, {error.args[0]} is missing or empty; {EXPECTED}") from error
    # Without storage, so that the sizes that a wrong file suggests cost nothing.
    with torch.device("meta"):
        network = MobileNet(sizes)
    expected = network.state_dict()
    if differences := _differences(expected, state):
        some = "; ".join(differences[:3])
        raise InputError(f"{checkpoint} does not fit, {some} (differences: {len(differences)}); {EXPECTED}")
    network.load_state_dict({key: state[key].to(tensor.dtype) for key, tensor in expected.items()}, assign=True)
    return network


def load_efficientat(checkpoint: Path) -> Teacher:
    """The teacher in a released mnXX file; raises InputError where the file is missing, unreadable or does not fit."""
    try:
        content = checkpoint.read_bytes()
    except OSError as error:
        raise InputError(f"cannot open the checkpoint {checkpoint}: {error.strerror}; {EXPECTED}") from error
    provenance = {"checkpoint": checkpoint.name, "checkpoint_sha256": hashlib.sha256(content).hexdigest()}
    return EfficientATTeacher(_build_network(_read_state(content, checkpoint), checkpoint), provenance)
