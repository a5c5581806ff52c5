"""Opening a store of two million clips and its first batch of 256: seconds and memory of a process that does only that.

The index, manifest and store.json are as AudioSet's would be, a fifth of the clips failed; the 2000 shards are links to
one real tar.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
from measure import parser, report

from ingest.index import COLUMNS, Index, ShardEntry, make_snapshot, write_index
from ingest.layout import MANIFEST_FILE, SHARD_FOLDER, Part, StoreFile, write_store_file
from ingest.ledger import SCHEMA as LEDGER_SCHEMA
from ingest.location import LocalFolder
from ingest.tarwriter import TarWriter
from manifests.audioset import audioset_vocabulary
from manifests.clips import SCHEMA, Manifest, Sources
from manifests.geometry import FbankSpec, HogSpec
from manifests.parts import write_manifests

NUM_SHARDS, CLIPS_PER_SHARD = 2000, 1000
NUM_CLIPS = NUM_SHARDS * CLIPS_PER_SHARD
SHARE_FAILED = 0.2
GOAL_S, GOAL_MIB = 2.0, 1024
MEASURED = """
import json, sys, time
from pathlib import Path
began = time.perf_counter()
from featurestore.loader import Loader
from featurestore.store import Store

def peak_mib():  # not that of getrusage, which begins with the parent's
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

imported, imported_cpu, imported_mib = time.perf_counter(), time.process_time(), peak_mib()
store = Store(sys.argv[1])
opened = time.perf_counter()
batches = Loader(store, store.rows(), 256).batches()
batch = next(batches)
done, done_cpu = time.perf_counter(), time.process_time()
batches.close()
assert batch.fbank.shape == (256, 1024, 128) and len(set(batch.keys)) == 256
print(json.dumps({
    "import_s": imported - began, "open_s": opened - imported, "first_batch_s": done - opened,
    "total_s": done - imported, "cpu_s": done_cpu - imported_cpu, "import_mib": imported_mib, "peak_mib": peak_mib(),
}))
"""


def make_tar(path: Path) -> tuple[TarWriter, list[int], list[int]]:
    """A shard of noise; returns what wrote it, and the offsets of its clips' fbanks and HOG cells."""
    rng = np.random.default_rng(0)
    fbank, hog = FbankSpec(), HogSpec()
    fbanks, hogs = [], []
    with path.open("wb") as file:
        writer = TarWriter(file)
        for number in range(CLIPS_PER_SHARD):
            fbanks.append(
                writer.add_array(f"{number}.fbank.npy", rng.normal(size=(fbank.num_frames, 128)).astype(np.float16))
            )
            cells = (fbank.num_frames // hog.cell_size, 128 // hog.cell_size, hog.num_orientations)
            hogs.append(writer.add_array(f"{number}.hog.npy", rng.random(cells).astype(np.float16)))
            writer.add(f"{number}.json", json.dumps({"key": str(number)}).encode())
        writer.close()
    return writer, fbanks, hogs


def make_manifest_table(rng: np.random.Generator) -> pa.Table:
    """Clips with keys, ids and labels like AudioSet's."""
    letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)
    ids = letters[rng.integers(0, 64, (NUM_CLIPS, 11))].view("S11").ravel().astype(str)
    starts_ms = rng.integers(0, 60, NUM_CLIPS) * 10_000
    counts = rng.integers(1, 5, NUM_CLIPS)
    labels = pa.array(audioset_vocabulary().ids).take(pa.array(rng.integers(0, 527, counts.sum())))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    keys = [f"as_{name}_{start:09d}" for name, start in zip(ids.tolist(), starts_ms.tolist(), strict=True)]
    columns = {
        "key": pa.array(keys),
        "source": pa.array(ids),
        "start_ms": pa.array(starts_ms),
        "end_ms": pa.array(starts_ms + 10_000),
        "labels": pa.ListArray.from_arrays(offsets, labels),
        "split": pa.array(["unbalanced"] * NUM_CLIPS),
        "fold": pa.nulls(NUM_CLIPS, pa.int32()),
    }
    return pa.table(columns).cast(SCHEMA)


def make_index_table(rng: np.random.Generator, keys: pa.ChunkedArray, fbanks: list[int], hogs: list[int]) -> pa.Table:
    failed = rng.random(NUM_CLIPS) < SHARE_FAILED
    reasons = np.array(["removed", "private", "terminated"])[rng.integers(0, 3, NUM_CLIPS)]

    def of_present(values: list[int] | list[str]) -> pa.Array:
        return pa.array(np.tile(values, NUM_SHARDS), mask=failed)

    columns = {
        "key": keys,
        "ok": pa.array(~failed),
        "reason": pa.array(reasons, mask=~failed),
        "detail": pa.array(np.full(NUM_CLIPS, "Video unavailable. This video has been removed"), mask=~failed),
        "fbank_offset": of_present(fbanks),
        "hog_offset": of_present(hogs),
        "num_frames": pa.array(np.full(NUM_CLIPS, 998, np.int32), mask=failed),
    }
    return pa.table(columns).cast(pa.schema([LEDGER_SCHEMA.field(name) for name in COLUMNS]))


def make_store(root: Path) -> None:
    """store.json, manifest.parquet, index.parquet and the shards."""
    rng = np.random.default_rng(1)
    (root / SHARD_FOLDER).mkdir(parents=True)
    writer, fbanks, hogs = make_tar(root / "one.tar")
    table = make_manifest_table(rng)
    index_table = make_index_table(rng, table["key"], fbanks, hogs)
    sources = Sources(kind="raw_cache", address=str(root / "raw"))
    write_manifests([Manifest("as", audioset_vocabulary(), sources, 0, table)], root / MANIFEST_FILE)
    present = index_table["ok"].to_numpy().reshape(NUM_SHARDS, CLIPS_PER_SHARD).sum(1)
    entries = tuple(
        ShardEntry(
            tar_sha256=writer.sha256,
            tar_size=writer.size,
            sidecar_sha256="0" * 64,
            num_clips=int(count),
            fbank_sum=-7.5e8,
            fbank_sum_sq=5.6e9,
        )
        for count in present
    )
    index = Index(index_table, entries)
    part = Part(num_clips_asked=NUM_CLIPS, manifest_sha256="0" * 64, wanted_sha256="0" * 64)
    store = StoreFile(
        dataset="as",
        clips_per_shard=CLIPS_PER_SHARD,
        seed=0,
        keep_audio=False,
        fbank=FbankSpec(),
        hog=HogSpec(),
        vocabulary=audioset_vocabulary(),
        versions={},
        parts=(part,),
    )
    location = LocalFolder(root)
    write_index(location, index)
    write_store_file(location, store.model_copy(update={"snapshots": (make_snapshot(store, index, 1),)}))
    for shard in range(NUM_SHARDS):
        (root / store.tar_name(shard)).symlink_to(root / "one.tar")


def measured(root: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", MEASURED, str(root)], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    arguments = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "as"
        make_store(root)
        measured(root)
        runs = [measured(root) for _ in range(max(3, arguments.repeats // 3))]
        megabytes = {
            name: (root / name).stat().st_size / 1e6 for name in ("store.json", "index.parquet", "manifest.parquet")
        }
    figures = {name: median(run[name] for run in runs) for name in runs[0]}
    lines = [
        f"opening a store of {NUM_CLIPS:,} clips: {figures['open_s']:.2f} s, its first shuffled batch of 256 "
        f"{figures['first_batch_s']:.2f} s, together {figures['total_s']:.2f} s (goal: at most {GOAL_S:g} s), of "
        f"CPU {figures['cpu_s']:.2f} s; before them imports of {figures['import_s']:.1f} s",
        f"peak memory of the process {figures['peak_mib']:.0f} MiB (goal: at most {GOAL_MIB}), of which imports "
        f"{figures['import_mib']:.0f}",
        ", ".join(f"{name} {size:.2f} MB" for name, size in megabytes.items()),
    ]
    report("open_store", lines, {**figures, "megabytes": megabytes, "runs": runs}, arguments.out)


if __name__ == "__main__":
    main()
