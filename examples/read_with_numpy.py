"""Reads a store's shards with numpy and the standard library: nothing of this project is needed.

Run it with a store's folder:  python examples/read_with_numpy.py data/demo
"""

import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Clip = tuple[dict[str, Any], NDArray[np.float16], NDArray[np.float16]]


def read_shard(path: Path) -> Iterator[Clip]:
    """The clips of a tar: what is known of each, its fbank (T, 128), and its HOG cells (T/16, 8, 9)."""
    members: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            kind = member.name.partition(".")[2]
            members[kind] = file.read()
            if kind == "json":  # the last member of each clip
                yield json.loads(members["json"]), load(members["fbank.npy"]), load(members["hog.npy"])
                members.clear()


def load(content: bytes) -> NDArray[np.float16]:
    array: NDArray[np.float16] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def main(store: Path) -> None:
    about = json.loads((store / "store.json").read_text())
    snapshot = about["snapshots"][-1]
    shards = [store / "shards" / f"{about['dataset']}-{shard:06d}.tar" for shard in range(snapshot["num_shards"])]
    labels: Counter[str] = Counter()
    total, num_values = 0.0, 0
    for shard in shards:
        for clip, fbank, hog in read_shard(shard):
            labels.update(clip["label_names"])
            total, num_values = total + fbank.sum(dtype=np.float64), num_values + fbank.size
            # The sum over the nine orientations is each 16x16 patch's mean gradient magnitude.
            magnitude = hog.astype(np.float32).sum(-1)
    print(f"{labels.total()} labels of {snapshot['num_clips']} clips in {len(shards)} shards")
    print(f"the mean of all fbank values is {total / num_values:.4f}; store.json says {snapshot['mean']:.4f}")
    print(f"fbank {fbank.shape} {fbank.dtype}, gradient magnitude {magnitude.shape}, of {clip['key']}")
    for name, count in sorted(labels.items()):
        print(f"{count:6d}  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
