"""A teacher's file of weights: read without running code in it, and compared with the network that it is for."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from manifests.errors import InputError

NUM_DIFFERENCES_SHOWN = 3
FORMAT = 1


@dataclass(frozen=True)
class CheckpointFile:
    """One file of weights; `expected` says what was looked for and where to get it, at the end of every error."""

    path: Path
    expected: str
    content: Any
    sha256: str

    def error(self, problem: str) -> InputError:
        """An error that says what is wrong with this file."""
        return InputError(f"{self.path} {problem}; {self.expected}")

    def tensors(self, table: object) -> dict[str, Tensor]:
        """`table`, a part of the content, as tensors by name; raises InputError where it is anything else."""
        if not isinstance(table, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in table.items()
        ):
            raise self.error("does not hold a flat table of tensors by name")
        return table

    def dimension(self, state: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
        """The size of one axis of a tensor; raises InputError where there is no such tensor, or nothing in it."""
        if name not in state or state[name].ndim <= axis or not state[name].numel():
            raise self.error(f"does not fit, {name} is missing or empty")
        return state[name].shape[axis]

    def check(self, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
        """Raises InputError, with the first differences, unless the names and shapes of two tables are equal."""
        if differences := _differences(expected, found):
            some = "; ".join(differences[:NUM_DIFFERENCES_SHOWN])
            raise self.error(f"does not fit, {some} (differences: {len(differences)})")

    def load_into(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Gives a network made on the meta device its tensors, frozen, in evaluation mode and its own precision.

        Raises InputError unless `state` has exactly the network's names and shapes.
        """
        expected = network.state_dict()
        self.check(expected, state)
        network.load_state_dict({name: state[name].to(tensor.dtype) for name, tensor in expected.items()}, assign=True)
        network.eval().requires_grad_(False)

    def provenance(self, family: str, settings: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        """What a cache keeps of its teacher, as JSON knows it: the file, what the teacher is fed, and its sizes."""
        return {
            "family": family,
            "checkpoint": self.path.name,
            "checkpoint_sha256": self.sha256,
            "input": dict(settings),
            "sizes": dict(sizes),
            "format": FORMAT,
        }


def read_checkpoint(path: Path, expected: str) -> CheckpointFile:
    """Reads a torch file, or a safetensors file where its name ends so; no code in it is run.

    Raises InputError for a file that is missing or can't be read as that, ending with `expected`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot open the checkpoint {path}: {error.strerror}; {expected}") from error
    try:
        if path.suffix == ".safetensors":
            parsed: Any = safetensors.torch.load(content)
        else:
            parsed = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # What a damaged file raises depends on where the damage is: neither library documents a closed set.
    except Exception as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "torch"
        reason = f"{path}: no {kind} file, damaged, cut short, or with code in it"
        raise InputError(f"cannot read tensors from {reason}; {expected}") from error
    return CheckpointFile(path, expected, parsed, hashlib.sha256(content).hexdigest())


def describe(error: ValidationError) -> str:
    """What is wrong with a table of settings that came with a file: the first problems, and how many there are."""
    problems = [f"{'.'.join(map(str, problem['loc'])) or 'all of it'}: {problem['msg']}" for problem in error.errors()]
    return f"{'; '.join(problems[:NUM_DIFFERENCES_SHOWN])} (differences: {len(problems)})"


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in found]
    extra = [f"{name} is not part of the network" for name in found if name not in expected]
    shapes = {name: (tuple(expected[name].shape), tuple(found[name].shape)) for name in expected if name in found}
    misshapen = [f"{name} has shape {has}, expected {wants}" for name, (wants, has) in shapes.items() if has != wants]
    return missing + extra + misshapen
