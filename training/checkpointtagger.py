"""Our checkpoints as taggers: windows to looped fbanks, as the store makes them, to tags and features."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ingest.featurise import window_fbank
from manifests.vocabulary import Vocabulary
from training.checkpoint import Checkpoint, load_aft, load_checkpoint, load_student, provenance_of
from training.inference import probabilities
from training.model.aft import AudioFeatureTransformer, pool
from training.model.patches import patchify
from training.tagger import Heard, Prepared


class CheckpointTagger:
    """A model of either stage, see :class:`training.tagger.Tagger`; one of Multi-SSL has features, but no labels."""

    def __init__(self, checkpoint: Checkpoint, provenance: dict[str, Any], device: torch.device) -> None:
        about = checkpoint.about
        self.name = "checkpoint"
        self._spec = about.window
        self.sample_rate_hz: int = self._spec.sample_rate_hz
        self.window_samples = self._spec.num_samples
        self.least_samples = self._spec.frame_length
        self.embedding_dim = about.model.width
        self.vocabulary: Vocabulary | None = None
        self.provenance = provenance
        self._about, self._device = about, device
        self._classifier: torch.nn.Module | None = None
        if about.can_classify:
            student = load_student(checkpoint).to(device)
            self._aft: AudioFeatureTransformer = student.aft
            self.vocabulary, self._classifier = about.vocabulary, student.classifier
        else:
            self._aft = load_aft(checkpoint).to(device)

    def prepare(self, waveform: NDArray[np.float32]) -> Prepared:
        """The fbank (T, F) float16; a shorter waveform is repeated, as it was in training."""
        return window_fbank(waveform, self._spec)

    @torch.inference_mode()
    def hear(self, prepared: list[Prepared]) -> Heard:
        """Softmax over the labels where the model's clips had one label, else a sigmoid each."""
        fbank = torch.from_numpy(np.stack(prepared)).to(self._device)
        tokens = self._aft(patchify(self._about.normalisation(fbank), self._about.model.grid))  # (B, L, D)
        pooled = pool(tokens)
        said = None
        if self._classifier is not None:
            said = probabilities(self._classifier(pooled), one_label=self._about.one_label).cpu().numpy()
        return Heard(said, pooled.float().cpu().numpy(), tokens.float().cpu().numpy())


def load_checkpoint_tagger(path: Path, device: torch.device) -> CheckpointTagger:
    """A checkpoint of either stage. Raises InputError for any other file."""
    checkpoint = load_checkpoint(path)
    about = checkpoint.about
    normalisation = {"mean": about.mean, "std": about.std}
    return CheckpointTagger(checkpoint, {**provenance_of(path, about), "normalisation": normalisation}, device)
