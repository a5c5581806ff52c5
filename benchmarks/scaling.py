"""Two workers beside one: the same shards of 10 s clips on a Ray of this machine, once it has started.

Beside it: two processes that only decode and resample, as against one, which is what the machine's cores give.
"""

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ingest_rate import CODECS, floor, write_clip
from measure import parser, report

from ingest.executor import on_ray
from ingest.layout import SHARD_FOLDER, Part, StoreFile
from ingest.pipeline import Work, run_pipeline
from ingest.shards import ShardTask
from ingest.sources import SourceFile
from manifests.clips import Clip
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Vocabulary

NUM_FILES, NUM_SHARDS, CLIPS_PER_SHARD = 10, 24, 40


def make_tasks(folder: Path, ending: str) -> list[ShardTask]:
    """Shards over a few files, again and again: what is read stays in the page cache, as for the floor."""
    codec, rate_hz = CODECS[ending]
    for number in range(NUM_FILES):
        write_clip(folder / f"clip{number}.{ending}", codec, rate_hz, number)
    num_clips = NUM_SHARDS * CLIPS_PER_SHARD
    store = StoreFile(
        dataset=ending,
        clips_per_shard=CLIPS_PER_SHARD,
        seed=0,
        keep_audio=False,
        fbank=FbankSpec(),
        hog=HogSpec(),
        vocabulary=Vocabulary(),
        versions={},
        parts=(Part(num_clips_asked=num_clips, manifest_sha256="", wanted_sha256=""),),
    )
    tasks = []
    for shard in range(NUM_SHARDS):
        numbers = range(shard * CLIPS_PER_SHARD, (shard + 1) * CLIPS_PER_SHARD)
        clips = tuple(Clip(f"clip{number}", f"clip{number % NUM_FILES}.{ending}") for number in numbers)
        sources = tuple(SourceFile(str(folder), clip.source) for clip in clips)
        tasks.append(ShardTask(str(folder), store, shard, "", clips, sources))
    return tasks


def clips_per_s(tasks: list[ShardTask], num_workers: int) -> float:
    """The rate of the shards behind the first ones, which warm the workers up."""
    shutil.rmtree(Path(tasks[0].location) / SHARD_FOLDER, ignore_errors=True)  # whole shards would be copied
    warm = 2 * num_workers
    with on_ray(num_workers, None, num_downloads=1) as executor:
        for part in (range(warm), range(warm, NUM_SHARDS)):
            started = time.perf_counter()
            work = Work(list(part), tasks.__getitem__, lambda shard: [])
            num_done = sum(progress.num_done for progress in run_pipeline(work, executor, None) if progress)
    return num_done / (time.perf_counter() - started)


def bare_clips_per_s(paths: list[Path], num_processes: int) -> float:
    """The rate of so many processes that decode and resample, and do nothing else."""
    rounds = 2 * (NUM_SHARDS * CLIPS_PER_SHARD // 2 // len(paths))
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(floor, [paths] * 2 * num_processes))
        started = time.perf_counter()
        list(pool.map(floor, [paths] * rounds))
    return rounds * len(paths) / (time.perf_counter() - started)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    ending = "m4a"
    with tempfile.TemporaryDirectory() as name:
        tasks = make_tasks(Path(name), ending)
        paths = sorted(Path(name).glob(f"*.{ending}"))
        candidates: dict[str, Callable[[int], float]] = {
            "ours": lambda number: clips_per_s(tasks, number),
            "bare": lambda number: bare_clips_per_s(paths, number),
        }
        rates: dict[str, list[float]] = {f"{name}, {number}": [] for name in candidates for number in (1, 2)}
        for _ in range(max(3, arguments.repeats // 5)):
            for name, rate in candidates.items():
                for number in (1, 2):
                    rates[f"{name}, {number}"].append(rate(number))
    median = {name: statistics.median(values) for name, values in rates.items()}
    scales = {name: median[f"{name}, 2"] / median[f"{name}, 1"] for name in candidates}
    lines = [
        f"{ending}, {os.cpu_count()} cores: {median['ours, 1']:.1f} clips/s with one worker, {median['ours, 2']:.1f} "
        f"with two: {scales['ours']:.2f} x (goal: 1.8); processes that only decode and resample: "
        f"{median['bare, 1']:.1f} and {median['bare, 2']:.1f}, {scales['bare']:.2f} x"
    ]
    report("scaling", lines, rates, arguments.out)


if __name__ == "__main__":
    main()
