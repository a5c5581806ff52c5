"""Sizes of the features: the only place that knows 16 kHz, 25/10 ms, 128 mel, 1024 frames and 16x16 patches."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TAR_BLOCK, NPY_HEADER, FLOAT16_BYTES = 512, 128, 2


class FbankSpec(BaseModel):
    """AST's log-mel filter bank (Gong et al. 2021), as Kaldi computes it.

    Two stores whose specs are equal hold interchangeable shards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate_hz: Literal[16000] = 16000
    window: Literal["hanning"] = "hanning"
    frame_length_ms: Literal[25] = 25
    frame_shift_ms: Literal[10] = 10
    num_mel_bins: Literal[128] = 128
    low_hz: Literal[20] = 20
    high_hz: Literal[8000] = 8000
    preemphasis: float = Field(default=0.97, ge=0.97, le=0.97)
    num_frames: Literal[256, 512, 1024] = 1024

    @property
    def frame_length(self) -> int:
        """Samples in one analysis frame: 400."""
        return self.sample_rate_hz * self.frame_length_ms // 1000

    @property
    def frame_shift(self) -> int:
        """Samples between two frames: 160."""
        return self.sample_rate_hz * self.frame_shift_ms // 1000

    @property
    def num_samples(self) -> int:
        """Samples that give exactly `num_frames` frames: 164,080 for 1024."""
        return self.frame_length + (self.num_frames - 1) * self.frame_shift

    def frames_of(self, num_samples: int) -> int:
        """Frames that a waveform of `num_samples` gives (Kaldi's snip_edges), at most `num_frames`."""
        if num_samples < self.frame_length:
            return 0
        return min(self.num_frames, 1 + (num_samples - self.frame_length) // self.frame_shift)


class HogSpec(BaseModel):
    """Unsigned-orientation histograms of gradient magnitude per patch, as scikit-image's cells before normalisation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_orientations: Literal[9] = 9
    cell_size: Literal[16] = 16
    interpolated_mel_bin: Literal[3] = 3


def bytes_per_clip(fbank: FbankSpec, hog: HogSpec) -> int:
    """A clip's three members in a shard, float16, headers and padding included; its JSON is taken as one block."""
    cells = (fbank.num_frames // hog.cell_size) * (fbank.num_mel_bins // hog.cell_size) * hog.num_orientations
    arrays = [NPY_HEADER + FLOAT16_BYTES * size for size in (fbank.num_frames * fbank.num_mel_bins, cells)]
    return sum(TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK for size in [*arrays, TAR_BLOCK])


class PatchGrid(BaseModel):
    """The 16x16 patches of a (num_frames, num_mel_bins) fbank, numbered time-major: l = num_freq * t + f."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: int = Field(default=1024, multiple_of=16, gt=0)
    num_mel_bins: Literal[128] = 128
    patch_size: Literal[16] = 16

    @property
    def num_time(self) -> int:
        return self.num_frames // self.patch_size

    @property
    def num_freq(self) -> int:
        return self.num_mel_bins // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.num_time * self.num_freq

    @property
    def patch_dim(self) -> int:
        return self.patch_size * self.patch_size
