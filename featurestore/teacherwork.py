"""One shard's part in a teacher's cache: its clips are read, embedded by whoever has the teacher, and written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featurestore.cachefiles import VIEWS_OF, Output
from featurestore.clipinputs import ClipBatch, read_clips, view_inputs
from featurestore.embedder import ClipInputs, Outputs
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teachers.base import TeacherInput
from featurestore.views import view_of

Embed = Callable[[ClipInputs], Outputs]


@dataclass(frozen=True, slots=True)
class ShardReport:
    """How many more clips are done with, and which of the shard's have no row at its end, and why."""

    num_clips: int
    failures: list[str] = field(default_factory=list)


def fill_shard(
    store: Store, cache: TeacherCache, shard: int, takes: Sequence[TeacherInput], embed: Embed
) -> Iterator[ShardReport]:
    """Computes what a shard lacks in the cache, and writes its chunk of each array once, at the end.

    Rows that can't be had stay NaN. `takes`: what `embed` has to be given. A shard that lacks nothing is not written.
    """
    values = cache.shard_values(shard)
    rows = cache.missing_rows(shard, values)
    yield ShardReport(int(store.ok[store.rows_of_shard(shard)].sum()) - len(rows))
    if not len(rows):
        return
    reasons: dict[int, str] = {}
    for batch in read_clips(store, rows, takes):
        reasons |= batch.failures
        if len(batch.rows):
            _embed_batch(store, cache, batch, embed, values)
        yield ShardReport(len(batch.rows) + len(batch.failures))
    cache.write(shard, values)
    left = cache.missing_rows(shard, values)
    why = [reasons.get(row, "the teacher's output is not finite in float16") for row in left.tolist()]
    yield ShardReport(0, [f"{key}: {reason}" for key, reason in zip(store.keys(left), why, strict=True)])


def _embed_batch(
    store: Store, cache: TeacherCache, batch: ClipBatch, embed: Embed, values: dict[Output, NDArray[np.float16]]
) -> None:
    places = store.teacher_rows(batch.rows) % store.file.clips_per_shard
    for output, said in embed(batch.inputs).items():
        if output in values:
            values[output][places] = said
    keys, spec, attributes = store.keys(batch.rows), store.file.fbank, cache.attributes
    for number in range(attributes.num_views):
        views = [view_of(key, number, attributes.views_seed, spec.num_frames) for key in keys]
        said_of_view = embed(view_inputs(batch.inputs, views, spec))
        for output, of_views in VIEWS_OF.items():
            if of_views in values:
                values[of_views][places, number] = said_of_view[output]
