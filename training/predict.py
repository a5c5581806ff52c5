"""Tags for audio files: any length, window by window, averaged."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ingest.decode import decode, open_audio
from ingest.featurise import window_fbank
from ingest.ledger import ClipError, Reason
from manifests.geometry import FbankSpec
from training.checkpoint import Checkpoint, load_student
from training.inference import infer

# A rest shorter than this share of a window is left out, unless it is all there is.
MIN_WINDOW_SHARE = 0.5
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Tag:
    """A label and its probability."""

    label_id: str
    name: str
    probability: float


class Predictor:
    """A trained student with all that it needs to take audio files."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._about = checkpoint.about
        self._student = load_student(checkpoint).to(device)
        self._device = device
        self._spec = checkpoint.about.fbank.model_copy(update={"num_frames": checkpoint.about.model.num_frames})

    def tags(self, path: Path) -> list[Tag]:
        """All labels of a file, likeliest first. Raises ClipError when it can't be read."""
        windows, said = _windows(path, self._spec), []
        while part := list(islice(windows, BATCH_SIZE)):
            fbank = torch.from_numpy(np.stack(part)).to(self._device)
            inference = infer(self._student, fbank, self._about.normalisation)
            said.append(inference.probabilities(one_label=self._about.one_label))
        mean = torch.cat(said).mean(0).tolist()
        labels = self._about.vocabulary.labels
        order = sorted(range(len(mean)), key=lambda index: -mean[index])
        return [Tag(labels[index].id, labels[index].name, mean[index]) for index in order]


def _windows(path: Path, spec: FbankSpec) -> Iterator[NDArray[np.float16]]:
    """Fbanks of consecutive windows; only one window's audio is in memory at a time."""
    window_s = spec.num_samples / spec.sample_rate_hz
    with open_audio(path) as source:
        start_s, found = 0.0, False
        while True:
            waveform = decode(source, spec.sample_rate_hz, start_s, window_s)
            least = spec.frame_length if not found else int(MIN_WINDOW_SHARE * spec.num_samples)
            if waveform.size < least:
                break
            yield window_fbank(waveform, spec)
            found, start_s = True, start_s + window_s
    if not found:
        raise ClipError(Reason.TOO_SHORT, f"less than one frame of {spec.frame_length_ms} ms")
