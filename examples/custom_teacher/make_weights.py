"""Writes weights for the example teacher, as training it would: a seeded random projection to 64 dimensions.

Run it with a new file's name:  python examples/custom_teacher/make_weights.py spectrum.safetensors
"""

import sys

import torch
from safetensors.torch import save_file
from spectrum_teacher import FRAME_LENGTH

WIDTH = 64


def main(path: str) -> None:
    num_bins = FRAME_LENGTH // 2 + 1
    weight = torch.randn(WIDTH, num_bins, generator=torch.Generator().manual_seed(0)) / num_bins**0.5
    save_file({"weight": weight, "bias": torch.zeros(WIDTH)}, path)


if __name__ == "__main__":
    main(sys.argv[1])
