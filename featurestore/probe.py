"""How much of a store's labels can be read off embeddings of its clips, by a linear probe and by neighbours."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestore.probemodels import NUM_NEIGHBOURS, PENALTIES, TEMPERATURE, choose_penalty, fit_linear, knn_scores
from featurestore.probeparts import (
    DEFAULT_MAX_CLIPS,
    KINDS,
    Kind,
    Part,
    PartOptions,
    Parts,
    Rows,
    choose_parts,
    deal_folds,
    labels_of_rows,
    recordings,
)
from featurestore.probescores import (
    Scores,
    accuracy,
    accuracy_per_class,
    average_precision,
    mean_over_classes,
    roc_area,
)
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from manifests.errors import InputError

NUM_VALIDATION_FOLDS = 5


@dataclass(frozen=True)
class ProbeOptions:
    """`max_clips`: at most so many clips a side, drawn by the seed of `parts`."""

    kinds: Sequence[Kind] = KINDS
    parts: PartOptions = field(default_factory=PartOptions)
    max_clips: int = DEFAULT_MAX_CLIPS
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Source:
    """Whose embeddings are probed: a teacher cache, or any model.

    `read` gives those of the store's rows (N, D) float32, NaN where there are none; `remedy` says how to have more.
    """

    name: str
    teacher: str
    provenance: dict[str, Any]
    read: Callable[[Rows], NDArray[np.float32]]
    remedy: str


@dataclass(frozen=True)
class KindResult:
    """Shares 0..1: accuracy, or mAP and mAUC of clips with several labels; by class the first of them, where known."""

    figures: dict[str, float]
    per_class: dict[str, float]
    penalty: float | None = None


@dataclass(frozen=True)
class PartResult:
    """One evaluation: how many clips there were and were taken, the taken ones' hash, and the figures by kind.

    `num_evaluated_of` are the clips in the part before `max_clips`; `num_without_embedding` counts both sides.
    `keys_sha256` is that of the evaluated clips' sorted keys, each with a line feed.
    """

    name: str
    num_train: int
    num_train_of: int
    num_evaluated: int
    num_evaluated_of: int
    num_without_embedding: int
    keys_sha256: str
    chance: dict[str, float]
    results: dict[Kind, KindResult]


@dataclass(frozen=True)
class ProbeReport:
    """All of one probe. `source`: the cache's name, or whose embeddings they are.

    A figure that the clips don't tell, as mAUC of one clip, is NaN; `as_json`, which --json writes, has null for it.
    """

    store: str
    fingerprint: str
    source: str
    teacher: str
    provenance: dict[str, Any]
    seed: int
    chosen_by: str
    num_unlabelled: int
    parts: list[PartResult]

    @property
    def figure_names(self) -> list[str]:
        return list(self.parts[0].chance)

    def mean(self, kind: Kind, figure: str) -> float:
        """The mean over the parts; NaN where one of them has no such figure."""
        return fmean(part.results[kind].figures[figure] for part in self.parts)

    def spread(self, kind: Kind, figure: str) -> float | None:
        """The standard deviation over the parts; None of one part, and where one of them has no such figure."""
        values = [part.results[kind].figures[figure] for part in self.parts]
        return stdev(values) if len(values) > 1 and all(map(isfinite, values)) else None

    def as_json(self) -> dict[str, Any]:
        means = {
            kind: {name: {"mean": self.mean(kind, name), "std": self.spread(kind, name)} for name in self.figure_names}
            for kind in self.parts[0].results
        }
        settings = {"num_neighbours": NUM_NEIGHBOURS, "temperature": TEMPERATURE, "penalties": PENALTIES}
        content: dict[str, Any] = _finite({**asdict(self), "settings": settings, "over_parts": means})
        return content


def probe(store: Store, cache_name: str, options: ProbeOptions) -> ProbeReport:
    """Trains and judges the probes on the cache `cache_name`; nothing is written, and the same seed gives the same.

    Raises InputError where the cache, the labels, or the folds and splits asked for are not there.
    """
    cache = TeacherCache(store, cache_name)
    remedy = "run its `featurestore build-teacher` command again"
    source = Source(cache_name, cache.attributes.teacher, cache.attributes.provenance, cache.embeddings, remedy)
    return probe_source(store, source, choose_parts(store, options.parts), options)


def probe_source(store: Store, source: Source, parts: Parts, options: ProbeOptions) -> ProbeReport:
    """As :func:`probe`, on any embeddings and parts; only the rows that a part takes are read, part by part."""
    return ProbeReport(
        store=str(store.location),
        fingerprint=store.snapshot.fingerprint,
        source=source.name,
        teacher=source.teacher,
        provenance=source.provenance,
        seed=options.parts.seed,
        chosen_by=parts.chosen_by,
        num_unlabelled=parts.num_unlabelled,
        parts=[_probe_part(store, source, part, options) for part in parts.parts],
    )


def hash_keys(keys: Sequence[str]) -> str:
    """The sha256 of sorted keys, each with a line feed: two figures with the same one are of the same clips."""
    return hashlib.sha256("".join(f"{key}\n" for key in sorted(keys)).encode()).hexdigest()


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON doesn't know."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


@dataclass(frozen=True)
class _Side:
    """The clips of a part that have embeddings: their rows (N,), embeddings (N, D) and labels (N, C)."""

    rows: Rows
    embeddings: Tensor
    labels: Tensor


def _probe_part(store: Store, source: Source, part: Part, options: ProbeOptions) -> PartResult:
    chosen = [_sample(rows, options) for rows in (part.train, part.test)]
    train, test = (_read_side(store, source, rows, options.device) for rows in chosen)
    if not len(train.rows) or not len(test.rows):
        raise InputError(
            f"{source.name} has embeddings of {len(train.rows)} clips to learn from and {len(test.rows)} to judge by "
            f"({part.name} of {store.location}); {source.remedy}"
        )
    labels = test.labels.cpu().numpy()
    return PartResult(
        name=part.name,
        num_train=len(train.rows),
        num_train_of=len(part.train),
        num_evaluated=len(test.rows),
        num_evaluated_of=len(part.test),
        num_without_embedding=sum(map(len, chosen)) - len(train.rows) - len(test.rows),
        keys_sha256=hash_keys(store.keys(test.rows)),
        chance=_chance(train.labels.cpu().numpy(), labels, store.is_multi_label),
        results={kind: _run(kind, store, train, test, options.parts.seed) for kind in options.kinds},
    )


def _sample(rows: Rows, options: ProbeOptions) -> Rows:
    if len(rows) <= options.max_clips:
        return rows
    return np.sort(np.random.default_rng(options.parts.seed).choice(rows, options.max_clips, replace=False))


def _read_side(store: Store, source: Source, rows: Rows, device: torch.device) -> _Side:
    embeddings = source.read(rows)
    kept = np.isfinite(embeddings).all(1)
    rows, embeddings = rows[kept], embeddings[kept]
    return _Side(rows, torch.from_numpy(embeddings).to(device), torch.from_numpy(store.labels(rows)).to(device))


def _run(kind: Kind, store: Store, train: _Side, test: _Side, seed: int) -> KindResult:
    penalty = None
    if kind == "knn":
        scores = knn_scores(train.embeddings, train.labels, test.embeddings)
    else:
        is_multi, validation = store.is_multi_label, _validation(store, train, seed)
        penalty = choose_penalty(train.embeddings, train.labels, validation, is_multi_label=is_multi)
        scores = fit_linear(train.embeddings, train.labels, penalty, is_multi_label=is_multi).scores(test.embeddings)
    return _judge(store, scores.cpu().numpy(), test.labels.cpu().numpy(), penalty)


def _validation(store: Store, train: _Side, seed: int) -> Tensor:
    """A fifth of the recordings to learn from, which choose the penalty (N,) bool."""
    groups = recordings(store, train.rows)
    if len(np.unique(groups)) < NUM_VALIDATION_FOLDS:
        raise InputError(
            f"{store.location}: a linear probe needs {NUM_VALIDATION_FOLDS} recordings to learn from, to choose its "
            "penalty; use --kind knn"
        )
    folds = deal_folds(groups, labels_of_rows(store, train.rows), NUM_VALIDATION_FOLDS, seed)
    return torch.from_numpy(folds == 0).to(train.labels.device)


def _judge(store: Store, scores: Scores, labels: Scores, penalty: float | None) -> KindResult:
    if store.is_multi_label:
        by_class = average_precision(scores, labels)
        figures = {"mAP": mean_over_classes(by_class), "mAUC": mean_over_classes(roc_area(scores, labels))}
    else:
        by_class = accuracy_per_class(scores, labels)
        figures = {"accuracy": accuracy(scores, labels)}
    known: NDArray[np.int64] = np.flatnonzero(~np.isnan(by_class))
    return KindResult(figures, {store.file.vocabulary.ids[n]: float(by_class[n]) for n in known}, penalty)


def _chance(train: Scores, labels: Scores, is_multi_label: bool) -> dict[str, float]:
    """What scores that know nothing of a clip reach: the commonest class's for all, or those of a lottery."""
    if not is_multi_label:
        return {"accuracy": accuracy(np.broadcast_to(train.sum(0), labels.shape), labels)}
    present = labels.any(0)
    return {"mAP": float(labels[:, present].mean()), "mAUC": 0.5}
