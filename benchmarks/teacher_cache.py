"""A teacher's cache of two million rows (3 GB of embeddings): memory and rate of joining it to batches, and to steps.

The store is that of open_store.py; the 2000 chunks of the cache are links to one. A step of distillation stands beside
one without a teacher, both with their loader, and, given a checkpoint of EfficientAT, beside running it in the step.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import parser, report
from open_store import CLIPS_PER_SHARD, NUM_CLIPS, NUM_SHARDS, make_store

from featurestore.batches import Batch
from featurestore.cachefiles import TeacherAttributes
from featurestore.loader import Loader
from featurestore.store import Store
from featurestore.teachercache import TeacherCache, create_cache
from featurestore.teachers.base import Teacher
from featurestore.teachers.efficientat import load_efficientat
from training.config import load_config
from training.distill import Task, distill_losses
from training.inputs import Normalisation, prepare
from training.model.networks import Student

DIM, BATCH_SIZE, NUM_BATCHES = 768, 256, 60
STEP_BATCH_SIZE, STEPS_A_RUN = 8, 8
# The chunks of a window of shards are read once for its 16,000 clips, and not in each step.
NUM_WARM_BATCHES = 100
MEASURED = """
import json, sys, time
from pathlib import Path
from featurestore.loader import Loader
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
store = Store(sys.argv[1])
cache = TeacherCache(store, "beats") if sys.argv[2] == "with" else None
batches = Loader(store, store.rows(), int(sys.argv[3]), teacher=cache).batches()
next(batches)
began = time.perf_counter()
for _ in range(int(sys.argv[4])):
    batch = next(batches)
seconds = time.perf_counter() - began
batches.close()
assert cache is None or batch.teacher.shape[1] == cache.embedding_dim
(line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
rate = len(batch.rows) * int(sys.argv[4]) / seconds
print(json.dumps({"clips_per_s": rate, "peak_mib": int(line.split()[1]) / 1024}))
"""


def make_cache(store: Store) -> None:
    """One chunk of noise for all shards."""
    about = TeacherAttributes(
        name="beats",
        teacher="noise",
        embedding_dim=DIM,
        provenance={},
        store_fingerprint=store.snapshot.fingerprint,
        snapshot=store.snapshot.number,
        vocabulary=None,
    )
    cache = create_cache(store, "beats", about, {"embedding": (DIM,)})
    rows = np.random.default_rng(0).normal(size=(CLIPS_PER_SHARD, DIM)).astype(np.float16)
    cache.write(0, {"embedding": rows})
    first = Path(cache.path) / "embedding" / "c" / "0" / "0"
    for shard in range(1, NUM_SHARDS):
        link = first.parents[1] / str(shard) / "0"
        link.parent.mkdir()
        os.link(first, link)


def measured(root: Path, which: str) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURED, str(root), which, str(BATCH_SIZE), str(NUM_BATCHES)]
    figures: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return figures


def step_s(store: Store, cache: TeacherCache | None, in_step: Teacher | None) -> float:
    """Seconds of a step of distillation, its batch included; without a teacher where both are None."""
    config = load_config("tiny")
    dim = in_step.embedding_dim if in_step else (None if cache is None else cache.embedding_dim)
    student = Student(config.model, store.num_classes, dim, torch.Generator().manual_seed(0))
    normalisation = Normalisation(0.0, 1.0)
    waveforms = 0.1 * torch.randn(STEP_BATCH_SIZE, 10 * 32_000)

    def step(batch: Batch) -> None:
        inputs = prepare(batch, config.model.grid, normalisation, torch.device("cpu"), None)
        if in_step is not None:
            inputs = type(inputs)(
                inputs.fbank, inputs.gradient_magnitude, inputs.labels, in_step.embed(waveforms).embedding.clone(), None
            )
        student.zero_grad(set_to_none=True)
        torch.autograd.backward(distill_losses(student, inputs, config.distill, Task(one_label=False))["loss"])

    batches = Loader(store, store.rows(), STEP_BATCH_SIZE, teacher=cache).batches(
        num_steps=NUM_WARM_BATCHES + STEPS_A_RUN
    )
    for _ in range(NUM_WARM_BATCHES - 1):
        next(batches)
    step(next(batches))
    began = time.perf_counter()
    for batch in batches:
        step(batch)
    return (time.perf_counter() - began) / STEPS_A_RUN


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--checkpoint", type=Path, help="a file of EfficientAT, to be run in the step as well")
    arguments = options.parse_args()
    repeats = max(3, arguments.repeats // 3)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "as"
        make_store(root)
        store = Store(root)
        make_cache(store)
        loads = {which: [measured(root, which) for _ in range(repeats)] for which in ("with", "without")}
        cache = TeacherCache(store, "beats")
        candidates: dict[str, Callable[[], float]] = {
            "without": lambda: step_s(store, None, None),
            "cache": lambda: step_s(store, cache, None),
        }
        if arguments.checkpoint:
            teacher = load_efficientat(arguments.checkpoint)
            candidates["in the step"] = lambda: step_s(store, None, teacher)
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(repeats):
            for name, candidate in candidates.items():
                times[name].append(candidate())
    rate = {which: median(run["clips_per_s"] for run in runs) for which, runs in loads.items()}
    peak_mib = {which: max(run["peak_mib"] for run in runs) for which, runs in loads.items()}
    steps = {name: median(values) for name, values in times.items()}
    lines = [
        f"{NUM_CLIPS:,} rows of {DIM}, {2e-9 * NUM_CLIPS * DIM:.1f} GB: {rate['with']:,.0f} clips/s with the cache "
        f"joined, {rate['without']:,.0f} without; peak memory {peak_mib['with']:.0f} and {peak_mib['without']:.0f} MiB",
        f"step of distillation with its batch, tiny, batch {STEP_BATCH_SIZE}: {1e3 * steps['cache']:.0f} ms from the "
        f"cache, {1e3 * steps['without']:.0f} ms without a teacher: {steps['cache'] / steps['without']:.3f} x "
        "(goal: 1.03)",
    ]
    if "in the step" in steps:
        lines.append(
            f"with mn04-sized EfficientAT run in the step: {1e3 * steps['in the step']:.0f} ms, "
            f"{steps['in the step'] / steps['cache']:.2f} x the step from the cache, decoding not included"
        )
    report("teacher_cache", lines, {"loads": loads, "steps_s": times}, arguments.out)


if __name__ == "__main__":
    main()
