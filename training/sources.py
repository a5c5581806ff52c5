"""What a run trains on: clips of one store or of several, their teachers' caches, and the batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featurestore.balanced import BalancedOrder, class_weights
from featurestore.batches import Member
from featurestore.cachefiles import Output
from featurestore.loader import MixedLoader, Part
from featurestore.order import ClipOrder, Order
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from manifests.errors import InputError
from training.config import DistillConfig, MultiSSLConfig
from training.distributed import rank, world_size
from training.splits import Split, outside_evaluation


@dataclass(frozen=True)
class Source:
    """A store, and the rows of it to train on."""

    store: Store
    rows: NDArray[np.int64]


def make_sources(stores: Sequence[Store], split: Split) -> list[Source]:
    """The first store gives what `split` trains on, the others all clips but those of their own evaluation splits.

    Raises InputError when one gives none, is there twice, or its features are not the first's.
    """
    sources = [Source(stores[0], split.train)]
    prints = [store.snapshot.fingerprint for store in stores]
    if twice := next((place for place, one in enumerate(prints) if one in prints[:place]), None):
        raise InputError(
            f"{stores[twice].location} and {stores[prints.index(prints[twice])].location} hold the same clips, and the "
            "second of them would be trained on whole, with what the first holds out; name one of them"
        )
    for store in stores[1:]:
        rows = outside_evaluation(store)
        if not len(rows):
            raise InputError(f"{store.location} has no clip to train on; leave it out")
        sources.append(Source(store, rows))
    return sources


def open_teachers(sources: Sequence[Source], name: str) -> list[TeacherCache]:
    """The cache `name` of each store. Raises InputError when one lacks it, or has it from another teacher."""
    caches = [TeacherCache(source.store, name) for source in sources]
    for cache in caches[1:]:
        if (cache.attributes.teacher, cache.attributes.provenance) != (
            caches[0].attributes.teacher,
            caches[0].attributes.provenance,
        ):
            raise InputError(
                f"{cache.path} and {caches[0].path} are of different teachers or checkpoints; build both with the same "
                "`featurestore build-teacher` command"
            )
    return caches


def check_complete(sources: Sequence[Source], caches: Sequence[TeacherCache]) -> None:
    """Raises InputError when a cache lacks clips to train on, which would not be distilled. Reads all that is trained
    with, which takes a while for millions of clips: a run does it once.
    """
    for source, cache in zip(sources, caches, strict=True):
        shards = np.unique(source.store.shard_of(source.rows))
        missing = [cache.missing_rows(int(shard), _trained_with(cache, int(shard))) for shard in shards]
        lacking = np.intersect1d(np.concatenate(missing), source.rows)
        if len(lacking):
            raise InputError(
                f"{cache.path} lacks {len(lacking)} of the {len(source.rows)} clips to train on, for instance "
                f"{source.store.keys(lacking[:1])[0]}; run `featurestore build-teacher` again to complete it"
            )


def _trained_with(cache: TeacherCache, shard: int) -> dict[Output, NDArray[np.float16]]:
    """A shard's rows of all outputs but tokens, which are a thousand times as many."""
    return cache.shard_values(shard, [output for output in cache.outputs if output != "tokens"])


def multissl_loader(sources: Sequence[Source], config: MultiSSLConfig, seed: int) -> MixedLoader:
    """The batches of a Multi-SSL stage: of this process, of all stores."""
    parts = [
        Part(_member(sources, place), _order(source, seed + place, balanced=False))
        for place, source in enumerate(sources)
    ]
    return _mixed(parts, sources, config.proportions, config.optimiser.batch_size, seed)


def distill_loader(
    sources: Sequence[Source], config: DistillConfig, caches: Sequence[TeacherCache], seed: int
) -> MixedLoader:
    """The batches of a distillation stage; labels in the columns of the first store, which others may lack."""
    parts = []
    for place, source in enumerate(sources):
        member = replace(
            _member(sources, place),
            teacher=caches[place] if caches else None,
            with_logits=bool(caches) and config.probability_weight > 0,
            views_seed=seed + place if config.views else None,
        )
        # Balanced are the classes that are learned, which the first store has.
        parts.append(Part(member, _order(source, seed + place, balanced=config.balanced and place == 0)))
    return _mixed(parts, sources, config.proportions, config.optimiser.batch_size, seed)


def _member(sources: Sequence[Source], place: int) -> Member:
    """A store's part of the batches, its labels joined by id to those of the first store."""
    store, vocabulary = sources[place].store, sources[0].store.file.vocabulary
    if place == 0:
        return Member(store)
    columns = np.array([vocabulary.position.get(label, -1) for label in store.file.vocabulary.ids], np.int64)
    return Member(store, label_columns=columns, num_labels=len(vocabulary))


def is_multi_label(sources: Sequence[Source]) -> bool:
    """Whether some clip has more than one of the first store's labels."""
    if sources[0].store.is_multi_label:
        return True
    for place, source in enumerate(sources[1:], start=1):
        columns = _member(sources, place).label_columns
        owners, labels = source.store.label_pairs(source.rows)
        known = owners if columns is None else owners[columns[labels] >= 0]
        if len(known) and int(np.bincount(known).max()) > 1:
            return True
    return False


def _order(source: Source, seed: int, *, balanced: bool) -> Order:
    store, rows = source.store, source.rows
    shards, snapshot = store.shard_of(rows), store.snapshot.number
    if balanced:
        weights = class_weights(*store.label_pairs(rows), len(rows), store.num_classes)
        return BalancedOrder(rows, shards, weights, snapshot=snapshot, seed=seed)
    return ClipOrder(rows, shards, snapshot=snapshot, seed=seed)


def _mixed(
    parts: list[Part], sources: Sequence[Source], proportions: Sequence[float] | None, batch_size: int, seed: int
) -> MixedLoader:
    return MixedLoader(
        parts,
        [len(source.rows) for source in sources] if proportions is None else proportions,
        batch_size // world_size(),
        seed=seed,
        rank=rank(),
        world_size=world_size(),
    )


def check_proportions(sources: Sequence[Source], *given: Sequence[float] | None) -> None:
    """Raises InputError when proportions are not one a store."""
    for proportions in given:
        if proportions is not None and len(proportions) != len(sources):
            raise InputError(
                f"the numbers of proportions ({len(proportions)}) and stores ({len(sources)}) differ; give one a "
                "store, in the order of --store"
            )
