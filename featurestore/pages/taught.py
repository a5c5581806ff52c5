"""What a teacher's cache says of the clips on a page: tags and likenesses."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurestore.pages.similar import Similar, find_similar
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from manifests.errors import InputError

NUM_TAGS = 5
NUM_NEIGHBOURS = 5
# Teachers trained here: nearly all that theirs embed is close together, and what cosine means one sound isn't known.
OWN_TEACHERS = frozenset({"checkpoint", "spfa"})


@dataclass(frozen=True)
class Taught:
    """tags: of each clip its top labels and their scores, sigmoids of the logits, highest first; none without logits.

    `name` is None, and `why_not` says why, where there is no cache. Not `finds_pairs`: its cosines say nothing of pairs
    of one sound, and `similar` has none.
    """

    name: str | None
    why_not: str
    tags: list[list[tuple[str, float]]]
    similar: Similar
    finds_pairs: bool = True


def read_taught(store: Store, rows: NDArray[np.int64], teacher: str | None, duplicate_cosine: float) -> Taught:
    """From the cache `teacher`, which raises InputError where it can't be used, or from the first that can."""
    cache, why_not = _open_cache(store, teacher)
    if cache is None:
        nothing = find_similar(np.zeros((len(rows), 1), np.float32), NUM_NEIGHBOURS, duplicate_cosine)
        return Taught(None, why_not, [[] for _ in rows], nothing)
    # An ensemble's name has those of its members.
    finds_pairs = OWN_TEACHERS.isdisjoint(cache.attributes.teacher.split("-"))
    similar = find_similar(cache.embeddings(rows), NUM_NEIGHBOURS, duplicate_cosine if finds_pairs else math.inf)
    vocabulary = cache.attributes.vocabulary
    if vocabulary is None or "logits" not in cache.outputs:
        return Taught(cache.name, "", [[] for _ in rows], similar, finds_pairs)
    return Taught(cache.name, "", _top_tags(cache.logits(rows), vocabulary.names), similar, finds_pairs)


def _open_cache(store: Store, teacher: str | None) -> tuple[TeacherCache | None, str]:
    if teacher is not None:
        return TeacherCache(store, teacher), ""
    why_not = "no teacher was run over this store; `featurestore build-teacher` does it"
    for name in store.teachers:
        try:
            return TeacherCache(store, name), ""
        except InputError as error:
            why_not = str(error)
    return None, why_not


def _top_tags(logits: NDArray[np.float32], names: list[str]) -> list[list[tuple[str, float]]]:
    top = np.argsort(-logits, axis=1, kind="stable")[:, :NUM_TAGS]
    scores = 1 / (1 + np.exp(-np.take_along_axis(logits, top, 1).astype(np.float64).clip(-60, 60)))
    return [
        [(names[place], score) for place, score in zip(places, values, strict=True) if np.isfinite(score)]
        for places, values in zip(top.tolist(), scores.tolist(), strict=True)
    ]
