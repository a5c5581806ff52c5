"""Runs teachers on clips: each gets what it takes, clips of one length together, in the precision asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestore.cachefiles import Output, Precision
from featurestore.teachers.base import Teacher, TeacherInput, TeacherOutput
from featurestore.teachers.ensemble import Ensemble
from manifests.errors import InputError

# What each of some clips gives a teacher of that input: a waveform (num_samples,), or an fbank (T, F).
ClipInputs = Mapping[TeacherInput, Sequence[NDArray[Any]]]
Outputs = dict[Output, NDArray[np.float16]]


class Embedder:
    """Teachers on one device. Which clips go together depends on nothing but the clips of the call."""

    def __init__(self, ensemble: Ensemble, precision: Precision, device_type: str, *, with_tokens: bool) -> None:
        self._ensemble, self._precision = ensemble, precision
        self._device_type, self._with_tokens = device_type, with_tokens

    def __call__(self, clips: ClipInputs) -> Outputs:
        """The outputs of the ensemble for every clip, float16; infinite where they are too large for it."""
        lowered = torch.autocast(self._device_type, torch.bfloat16, enabled=self._precision == "bfloat16")
        # Else CUDA would round float32 to TF32 in convolutions, and choose algorithms by a race.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), lowered, exact:
            said = [self._embed(member, clips[member.input]) for member in self._ensemble.members]
        combined = self._ensemble.combine(said)
        return {name: values.half().numpy() for name, values in by_name(combined).items()}

    def _embed(self, member: Teacher, arrays: Sequence[NDArray[Any]]) -> TeacherOutput:
        """One member's outputs on the CPU, float32, in the order of the clips."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, array in enumerate(arrays):
            by_shape.setdefault(array.shape, []).append(place)
        gathered: dict[Output, Tensor] = {}
        # Only clips of one length go together: padding would change what the teacher says of them.
        for places in by_shape.values():
            batch = torch.from_numpy(np.stack([arrays[place] for place in places])).float()
            for name, values in by_name(member.embed(batch)).items():
                if name == "tokens" and not self._with_tokens:
                    continue
                values = values.float().cpu()
                into = gathered.setdefault(name, torch.empty(len(arrays), *values.shape[1:]))
                if into.shape[1:] != values.shape[1:]:
                    raise InputError(f"the teacher {member.name!r} gives clips different numbers of {name}")
                into[places] = values
        return TeacherOutput(gathered["embedding"], gathered.get("logits"), gathered.get("tokens"))


def by_name(output: TeacherOutput) -> dict[Output, Tensor]:
    """The outputs that there are."""
    named: dict[Output, Tensor | None] = {
        "embedding": output.embedding,
        "logits": output.logits,
        "tokens": output.tokens,
    }
    return {name: values for name, values in named.items() if values is not None}
