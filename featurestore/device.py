"""The device that a user names."""

import torch

from manifests.errors import InputError


def choose_device(name: str) -> torch.device:
    """auto (CUDA where there is one), cpu, cuda or cuda:N. Raises InputError for a device that isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name!r} is not known; give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r} is not supported; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device
