"""EfficientAT: MobileNetV3-large at any width, trained on AudioSet by distillation from a transformer.

Schmid, Koutini, Widmer, "Efficient large-scale audio tagging via transformer-to-CNN knowledge distillation",
ICASSP 2023 (github.com/fschmid56/EfficientAT, MIT). Modules are named as in its files; sizes are read off the tensors.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput, WaveformInput
from featurestore.teachers.checkpointfile import CheckpointFile, read_checkpoint
from manifests.audioset import audioset_vocabulary

EXPECTED = (
    "expected an EfficientAT mnXX_as state dict, of any width, such as mn10_as_mAP_471.pt; download it from "
    "github.com/fschmid56/EfficientAT/releases"
)
# Released files whose tensors fit, and whose outputs would be wrong nevertheless: only their names tell.
UNFIT_NAMES = {
    r"_hop_\d+": "was trained with another hop than 10 ms",
    r"_mels_\d+": "was trained with another number of mel bands than 128",
    r"^mn\d+_im[_.]": "was trained on images, and has a random classifier",
}


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
        # The logarithm of a nearly empty band needs float32, whatever precision the network runs in.
        with torch.autocast(waveform.device.type, enabled=False):
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

    def __init__(self, network: MobileNet, file: CheckpointFile) -> None:
        super().__init__()
        settings, sizes = LogMelSettings(), network.sizes
        self.input: WaveformInput | FbankInput = WaveformInput(settings.sample_rate_hz)
        self.log_mel = LogMel(settings)
        self.network = network
        self.embedding_dim = sizes.embedding
        self.vocabulary = audioset_vocabulary() if sizes.classes == len(audioset_vocabulary()) else None
        channels = {name: value for name, value in sizes._asdict().items() if isinstance(value, int)}
        self.provenance: dict[str, Any] = file.provenance("EfficientAT", settings._asdict(), channels)

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        """Embedding (B, D) and logits (B, C), before the sigmoid, of waveforms (B, num_samples) in [-1, 1]."""
        embedding, logits = self.network(self.log_mel(batch.to(self.log_mel.window))[:, None])
        return TeacherOutput(embedding, logits)


def read_sizes(file: CheckpointFile, state: Mapping[str, Tensor]) -> Sizes:
    """The network's sizes, of its tensors' first dimensions; raises InputError for one that is missing or empty."""

    def read_block(name: str, squeezes: bool) -> BlockSizes:
        # First in a block is its 1x1 expansion or, where it has none, its depthwise convolution: 3x3 or 5x5.
        first = file.dimension(state, f"{name}.0.0.weight")
        expands = state[f"{name}.0.0.weight"].shape[-1] == 1
        squeezed = file.dimension(state, f"{name}.{expands + 1}.conc_se_layers.0.fc1.weight") if squeezes else 0
        out = file.dimension(state, f"{name}.{expands + 1 + squeezes}.0.weight")
        return BlockSizes(first if expands else 0, squeezed, out)

    return Sizes(
        stem=file.dimension(state, "features.0.0.weight"),
        blocks=tuple(read_block(f"features.{index}.block", row.squeezes) for index, row in enumerate(ROWS, start=1)),
        embedding=file.dimension(state, f"features.{len(ROWS) + 1}.0.weight"),
        head=file.dimension(state, "classifier.2.weight"),
        classes=file.dimension(state, "classifier.5.weight"),
    )


def load_efficientat(checkpoint: Path) -> Teacher:
    """The teacher in a released mnXX file; raises InputError where the file is missing, unreadable or does not fit."""
    file = read_checkpoint(checkpoint, EXPECTED)
    if unfit := next((why for name, why in UNFIT_NAMES.items() if re.search(name, checkpoint.name)), None):
        raise file.error(unfit)
    state = file.tensors(file.content)
    sizes = read_sizes(file, state)
    # Without storage, so that the sizes that a wrong file suggests cost nothing.
    with torch.device("meta"):
        network = MobileNet(sizes)
    file.load_into(network, state)
    return EfficientATTeacher(network, file)
