"""What a clip takes in a shard, beside a real tar."""

import io

import numpy as np
import pytest

from ingest.tarwriter import TarWriter
from manifests.geometry import FbankSpec, HogSpec, bytes_per_clip


@pytest.mark.parametrize("num_frames", [256, 512, 1024])
def test_bytes_per_clip_are_those_of_a_tar(num_frames: int) -> None:
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    writer.add_array("key.fbank.npy", np.zeros((num_frames, 128), np.float16))
    writer.add_array("key.hog.npy", np.zeros((num_frames // 16, 8, 9), np.float16))
    writer.add("key.json", b"{}")
    assert bytes_per_clip(FbankSpec(num_frames=num_frames), HogSpec()) == writer.size
