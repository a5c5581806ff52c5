"""The loader in one process, shuffled, batched, HOG and pooled teacher joined, beside webdataset and the bare bytes."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import webdataset
from measure import parser, report

from featurestore.cachefiles import TeacherAttributes
from featurestore.loader import Loader
from featurestore.store import Store
from featurestore.teachercache import TeacherCache, create_cache
from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.clips import Clip, make_manifest
from manifests.vocabulary import Vocabulary

BATCH_SIZE = 256
NUM_CLIPS = 1500
TEACHER_DIM = 768


def make_store(folder: Path) -> Store:
    """A store of noise, 1024 frames a clip, with a teacher cache of random rows."""
    rng = np.random.default_rng(0)
    sources = [f"{number}.wav" for number in range(16)]
    (folder / "audio").mkdir()
    for name in sources:
        soundfile.write(folder / "audio" / name, rng.normal(0, 0.1, 165_000).astype(np.float32), 16_000)
    labels = [f"class{number}" for number in range(10)]
    clips = [Clip(f"c{n}", sources[n % 16], labels=(labels[n % 10],)) for n in range(NUM_CLIPS)]
    manifest = make_manifest("noise", clips, Vocabulary.from_names(labels), folder / "audio")
    ingest(manifest, folder / "store", IngestOptions(num_workers=0, clips_per_shard=250))
    store = Store(folder / "store")
    attributes = TeacherAttributes(
        name="random",
        teacher="random",
        embedding_dim=TEACHER_DIM,
        provenance={},
        store_fingerprint=store.snapshot.fingerprint,
        snapshot=1,
        vocabulary=None,
    )
    cache = create_cache(store, "random", attributes, {"embedding": (TEACHER_DIM,)})
    for shard in range(store.file.num_shards):
        rows = rng.normal(size=(store.file.clips_per_shard, TEACHER_DIM)).astype(np.float16)
        cache.write(shard, {"embedding": rows})
    return store


def ours(store: Store, num_clips: int) -> int:
    loader = Loader(store, store.rows(), BATCH_SIZE, teacher=TeacherCache(store, "random"))
    return sum(len(batch.rows) for batch in loader.batches(0, num_clips // BATCH_SIZE))


def by_webdataset(store: Store, num_clips: int) -> int:
    """The usual pipeline on the same shards: decode, shuffle, batch; it has no teacher to join."""
    urls = [str(store.root / store.tar_name(shard)) for shard in range(store.file.num_shards)]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, repeat=True, empty_check=False).shuffle(500).decode()
    batched = dataset.to_tuple("fbank.npy", "hog.npy", "json").batched(BATCH_SIZE)
    found = 0
    for fbank, _, _ in batched:
        found += len(fbank)
        if found >= num_clips:
            break
    return found


def bare_bytes(store: Store, num_clips: int) -> int:
    """The floor: the same bytes by offset into one buffer."""
    files = [os.open(store.root / store.tar_name(shard), os.O_RDONLY) for shard in range(store.file.num_shards)]
    buffer = bytearray(1024 * 128 * 2 + 64 * 8 * 9 * 2 + 1024)
    order = np.random.default_rng(0).integers(0, len(store.ok), num_clips)
    for row in order.tolist():
        os.preadv(files[row // store.file.clips_per_shard], [buffer], int(store.fbank_offset[row]))
    for descriptor in files:
        os.close(descriptor)
    return num_clips


def main() -> None:
    arguments = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder))
        candidates: dict[str, tuple[Callable[[Store, int], int], int]] = {
            "bare bytes": (bare_bytes, 20_000),
            "ours": (ours, 20_000),
            "webdataset": (by_webdataset, 3_000),
        }
        rates: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(max(3, arguments.repeats // 3)):
            for name, (candidate, num_clips) in candidates.items():
                started = time.perf_counter()
                found = candidate(store, num_clips)
                rates[name].append(found / (time.perf_counter() - started))
    rate = {name: median(values) for name, values in rates.items()}
    line = (
        f"loader, one process: ours {rate['ours']:,.0f} clips/s, webdataset {rate['webdataset']:,.0f}, bare bytes "
        f"{rate['bare bytes']:,.0f}: {rate['ours'] / rate['webdataset']:.1f} times the peer, "
        f"{rate['ours'] / rate['bare bytes']:.2f} of the floor's rate (goal: at least 10,000 clips/s)"
    )
    report("loader", [line], rate, arguments.out)


if __name__ == "__main__":
    main()
