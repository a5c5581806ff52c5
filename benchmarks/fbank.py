"""fbank of 1024 frames on one thread, beside torchaudio's."""

import torch
import torchaudio.compliance.kaldi as kaldi
from measure import medians_s, parser, report

from ingest.fbank import fbank
from manifests.geometry import FbankSpec


def main() -> None:
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    spec = FbankSpec()
    waveform = torch.rand(spec.num_samples, generator=torch.Generator().manual_seed(0)) - 0.5

    def torchaudio_fbank() -> torch.Tensor:
        features: torch.Tensor = kaldi.fbank(
            (waveform - waveform.mean())[None],
            htk_compat=True,
            sample_frequency=16000,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )
        return features

    seconds = medians_s({"ours": lambda: fbank(waveform, spec), "torchaudio": torchaudio_fbank}, arguments.repeats)
    ratio = seconds["torchaudio"] / seconds["ours"]
    difference = float((fbank(waveform, spec) - torchaudio_fbank()).abs().max())
    lines = [
        f"fbank, 1024 frames, one thread: ours {seconds['ours'] * 1e3:.2f} ms, "
        f"torchaudio {seconds['torchaudio'] * 1e3:.2f} ms, {ratio:.2f} times as fast (goal: at most 3 ms)",
        f"largest difference {difference:.1e}",
    ]
    report("fbank", lines, {**seconds, "ratio": ratio, "difference": difference}, arguments.out)


if __name__ == "__main__":
    main()
