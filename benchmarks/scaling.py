"""Two workers beside one: the same shards of 10 s clips on a Ray of this machine, once it has started."""

import os
import tempfile
import time
from pathlib import Path

from ingest_rate import CODECS, write_clip
from measure import parser, report

from ingest.executor import on_ray
from ingest.layout import Part, StoreFile
from ingest.pipeline import Work, run_pipeline
from ingest.shards import ShardTask
from ingest.sources import SourceFile
from manifests.clips import Clip
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Vocabulary

NUM_FILES, NUM_SHARDS, CLIPS_PER_SHARD = 10, 12, 40


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
    warm = 2 * num_workers
    with on_ray(num_workers, None, num_downloads=1) as executor:
        for part in (range(warm), range(warm, NUM_SHARDS)):
            started = time.perf_counter()
            work = Work(list(part), tasks.__getitem__, lambda shard: [])
            num_done = sum(progress.num_done for progress in run_pipeline(work, executor, None) if progress)
    return num_done / (time.perf_counter() - started)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    lines, figures = [], {}
    with tempfile.TemporaryDirectory() as name:
        for ending in ("m4a",):
            tasks = make_tasks(Path(name), ending)
            rates: dict[int, list[float]] = {workers: [] for workers in (1, 2)}
            for _ in range(max(3, arguments.repeats // 5)):
                for workers in rates:
                    rates[workers].append(clips_per_s(tasks, workers))
            one, two = (sorted(rates[workers])[len(rates[workers]) // 2] for workers in (1, 2))
            lines.append(
                f"{ending}, {os.cpu_count()} cores: {one:.1f} clips/s with one worker, {two:.1f} with two: "
                f"{two / one:.2f} x (goal: 1.8)"
            )
            figures[ending] = rates
    report("scaling", lines, figures, arguments.out)


if __name__ == "__main__":
    main()
