"""Teachers of the registry as taggers: windows of their own rate, or fbanks as the store makes them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurestore.teachers.base import FbankInput, Teacher, TeacherOutput
from ingest.featurise import window_fbank
from manifests.errors import InputError
from manifests.geometry import FbankSpec
from training.tagger import Heard, Prepared

# AudioSet's clips are so long, on which the teachers were trained.
WINDOW_S = 10
# What is shorter than one frame of speech analysis is a click, of which nothing can be said.
LEAST_MS = 25


class TeacherTagger:
    """A teacher, see :class:`training.tagger.Tagger`; its logits are taken for those of labels that may be several.

    A waveform that is shorter than a window goes to the teacher as it is, not looped and not padded.
    """

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.name, self.embedding_dim = teacher.name, teacher.embedding_dim
        self.vocabulary = teacher.vocabulary
        self.provenance: dict[str, Any] = teacher.provenance
        self._teacher = teacher.to(device)
        self._spec: FbankSpec | None = None
        if isinstance(teacher.input, FbankInput):
            self._spec = teacher.input.fbank
            self.sample_rate_hz: int = self._spec.sample_rate_hz
            self.window_samples, self.least_samples = self._spec.num_samples, self._spec.frame_length
        else:
            self.sample_rate_hz = teacher.input.sample_rate_hz
            self.window_samples = WINDOW_S * self.sample_rate_hz
            self.least_samples = LEAST_MS * self.sample_rate_hz // 1000

    def prepare(self, waveform: NDArray[np.float32]) -> Prepared:
        """The waveform itself (num_samples,), or its fbank (T, F) float16."""
        return waveform if self._spec is None else window_fbank(waveform, self._spec)

    def hear(self, prepared: list[Prepared]) -> Heard:
        """A sigmoid of each logit."""
        # Else CUDA would round float32 to TF32 in convolutions.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            said = self._teacher.embed(torch.from_numpy(np.stack(prepared)).float())
        tokens = None if said.tokens is None else said.tokens.float().cpu().numpy()
        return Heard(self._probabilities(said), said.embedding.float().cpu().numpy(), tokens)

    def _probabilities(self, said: TeacherOutput) -> NDArray[np.float32] | None:
        if self.vocabulary is None or said.logits is None:
            return None
        if said.logits.shape[1] != len(self.vocabulary):
            raise InputError(
                f"the teacher {self.name!r} gives {said.logits.shape[1]} logits and names {len(self.vocabulary)} "
                "labels; check it with `featurestore verify-teacher`"
            )
        return torch.sigmoid(said.logits.float()).cpu().numpy()
