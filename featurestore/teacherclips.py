"""Checks of a teacher on a store's own clips: whether it knows their labels, which a wrong normalisation spoils."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from featurestore.check import Check
from featurestore.loader import sequential_batches
from featurestore.probemodels import knn_scores
from featurestore.probeparts import Rows, deal_folds, labels_of_rows, recordings
from featurestore.probescores import Scores, accuracy, average_precision, exceeds_chance, mean_over_classes
from featurestore.store import Store
from featurestore.teachers.base import FbankInput, Teacher
from featurestore.waveforms import read_waveform
from ingest.ledger import ClipError
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

CLIPS_A_CLASS = 10
NUM_FOLDS = 5
FBANKS_A_BATCH = 16
# A logit that hardly varies over clips of different classes says nothing.
LEAST_LOGIT_SPREAD = 0.05
SATURATED = 0.99


@dataclass(frozen=True)
class ClipAnswers:
    """What a teacher says of clips: embeddings (N, D), logits (N, C) or None, mean and deviation of their fbanks.

    `spectra` (N, 2 x num_mel_bins) are what any teacher should beat. `failures`: why other clips have no answer.
    """

    rows: Rows
    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    spectra: NDArray[np.float32]
    failures: list[str]


def check_clips(store: Store, teacher: Teacher, num_clips: int, seed: int) -> Iterator[Check]:
    """Accuracy of neighbours beside that of plain spectra, and of the teacher's own head, where labels map.

    Raises InputError where the store's clips don't fit the teacher, have no labels, or none has its sound at hand.
    """
    if isinstance(teacher.input, FbankInput) and teacher.input.fbank != store.file.fbank:
        raise InputError(
            f"the teacher {teacher.name!r} takes fbanks of {teacher.input.fbank.num_frames} frames, and "
            f"{store.location} holds {store.file.fbank.num_frames}; give another store"
        )
    answers = answer_clips(store, teacher, draw_clips(store, num_clips, seed))
    if not len(answers.rows):
        raise InputError(f"{store.location}: no clip could be given to the teacher, for instance {answers.failures[0]}")
    if answers.failures:
        yield Check("clips", None, f"{len(answers.failures)} without an answer, for instance {answers.failures[0]}")
    finite = np.isfinite(answers.embeddings).all()
    yield Check(
        "clips' embeddings", bool(finite), f"{len(answers.rows)} clips, {'all' if finite else 'not all'} finite"
    )
    if not finite:
        return
    labels = store.labels(answers.rows)
    folds = deal_folds(recordings(store, answers.rows), labels_of_rows(store, answers.rows), NUM_FOLDS, seed)
    neighbours = neighbour_scores(answers.embeddings, labels, folds)
    yield _check_neighbours(neighbours, neighbour_scores(answers.spectra, labels, folds), labels, seed)
    if answers.logits is not None:
        yield _check_logits(answers.logits)
        matches = matching_labels(store.file.vocabulary, teacher.vocabulary) if teacher.vocabulary else {}
        yield _check_own_labels(answers.logits, matches, neighbours, labels, seed)


def draw_clips(store: Store, num_clips: int, seed: int) -> Rows:
    """Labelled rows of at most num_clips / 10 classes, evenly, so that each class has neighbours; by the seed.

    Raises InputError where fewer than two classes have two recordings.
    """
    rows = store.rows()
    strata = labels_of_rows(store, rows)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    rows, strata = rows[order], strata[order]
    groups = recordings(store, rows)
    classes = [c for c in np.unique(strata[strata >= 0]) if len(np.unique(groups[strata == c])) > 1]
    if len(classes) < 2:
        raise InputError(
            f"{store.location}: two classes with two recordings each are needed to check a teacher, and there are "
            f"{len(classes)}; give a store with labels"
        )
    chosen = rng.permutation(classes)[: max(2, num_clips // CLIPS_A_CLASS)]
    each = max(2, num_clips // len(chosen))
    return np.sort(np.concatenate([rows[strata == c][:each] for c in chosen]))


def answer_clips(store: Store, teacher: Teacher, rows: Rows) -> ClipAnswers:
    """Runs the teacher on clips, one by one where they are waveforms."""
    kept, outputs, spectra, failures = [], [], [], []
    for batch in sequential_batches(store, rows, FBANKS_A_BATCH):
        fbanks = batch.fbank.astype(np.float32)
        for row, fbank in zip(batch.rows.tolist(), fbanks, strict=True):
            try:
                sound = fbank if isinstance(teacher.input, FbankInput) else _waveform(store, teacher, row)
            except ClipError as error:
                failures.append(f"{store.clip(row).key}: {error}")
                continue
            outputs.append(teacher.embed(torch.from_numpy(sound)[None]))
            kept.append(row)
            spectra.append(np.concatenate([fbank.mean(0), fbank.std(0)]))
    if not kept:
        nothing = np.empty((0, 0), np.float32)
        return ClipAnswers(np.empty(0, np.int64), nothing, None, nothing, failures)
    embeddings = torch.cat([one.embedding for one in outputs]).float().cpu().numpy()
    logits = [one.logits for one in outputs if one.logits is not None]
    own = torch.cat(logits).float().cpu().numpy() if logits else None
    return ClipAnswers(np.array(kept), embeddings, own, np.stack(spectra), failures)


def matching_labels(store_labels: Vocabulary, teacher_labels: Vocabulary) -> dict[int, int]:
    """Positions of the teacher's labels by those of the store's: the same id, else the same name.

    Names are the same when their letters and digits are, in lower case; a name that two labels share maps to none.
    """
    by_name: dict[str, list[int]] = {}
    for position, label in enumerate(teacher_labels.labels):
        by_name.setdefault(_plain(label.name), []).append(position)
    found = {}
    for position, label in enumerate(store_labels.labels):
        named = by_name.get(_plain(label.name), [])
        if label.id in teacher_labels.position:
            found[position] = teacher_labels.position[label.id]
        elif len(named) == 1:
            found[position] = named[0]
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _waveform(store: Store, teacher: Teacher, row: int) -> NDArray[np.float32]:
    return read_waveform(store, row, teacher.input.sample_rate_hz)  # type: ignore[union-attr]


def neighbour_scores(features: NDArray[np.float32], labels: Scores, folds: NDArray[np.int64]) -> Scores:
    """Scores (N, C) of each clip, by its neighbours in the other folds."""
    scores = np.zeros_like(labels)
    points, known = torch.from_numpy(features), torch.from_numpy(labels)
    for fold in np.unique(folds):
        held_out = folds == fold
        scores[held_out] = knn_scores(points[~held_out], known[~held_out], points[held_out]).numpy()
    return scores


def _score(scores: Scores, labels: Scores) -> float:
    """Accuracy where each clip has one label, else mAP."""
    if (labels.sum(1) == 1).all():
        return accuracy(scores, labels)
    return mean_over_classes(average_precision(scores, labels))


def _say(scores: Scores, labels: Scores) -> str:
    name = "accuracy" if (labels.sum(1) == 1).all() else "mAP"
    return f"{name} {100 * _score(scores, labels):.1f} %"


def _is_below(score: float, expected: float, num_clips: int) -> bool:
    """By more than three standard errors of the difference of two shares, which is hardly luck."""
    share = (score + expected) / 2
    return expected - score > 3 * float(np.sqrt(2 * share * (1 - share) / num_clips))


def _check_neighbours(neighbours: Scores, spectral: Scores, labels: Scores, seed: int) -> Check:
    name, ours, plain = "clips' neighbours", _score(neighbours, labels), _score(spectral, labels)
    detail = (
        f"{_say(neighbours, labels)} by neighbours, {int(labels.any(0).sum())} classes; by those of plain spectra "
        f"{100 * plain:.1f} %"
    )
    if not exceeds_chance(_score, neighbours, labels, seed):
        return Check(name, False, f"{detail}: no better than chance; is the normalisation right?")
    if _is_below(ours, plain, len(labels)):
        return Check(name, False, f"{detail}: worse than no teacher; is the normalisation right?")
    if ours <= plain:
        return Check(name, None, f"{detail}: no better than no teacher; is the normalisation right?", is_warning=True)
    return Check(name, True, detail)


def _check_logits(logits: NDArray[np.float32]) -> Check:
    name = "clips' logits"
    if not np.isfinite(logits).all():
        return Check(name, False, "not all finite")
    spread, share_high = float(logits.std(0).max()), float((logits > 0).mean())
    detail = f"vary by up to {spread:.2f} over the clips; {100 * share_high:.1f} % are above 0"
    if spread < LEAST_LOGIT_SPREAD:
        return Check(name, False, f"{detail}: the same for every clip")
    if logits.shape[1] > 2 and share_high > SATURATED:
        return Check(name, False, f"{detail}: saturated")
    return Check(name, True, detail)


def _check_own_labels(
    logits: NDArray[np.float32], matches: dict[int, int], neighbours: Scores, labels: Scores, seed: int
) -> Check:
    """The teacher's own head, among the classes that it and the sample share, beside the neighbours' figure of them."""
    name = "own labels"
    shared = [position for position in matches if labels[:, position].any()]
    if len(shared) < 2:
        return Check(name, None, f"{len(shared)} of the clips' classes are the teacher's: too few to judge it")
    judged = labels[:, shared].any(1)
    labels, neighbours = labels[judged][:, shared], neighbours[judged][:, shared]
    scores = logits[judged][:, [matches[position] for position in shared]]
    detail = (
        f"{_say(scores, labels)} by the teacher's head, {len(labels)} clips of the {len(shared)} classes in common; by "
        f"neighbours {100 * _score(neighbours, labels):.1f} %"
    )
    if not exceeds_chance(_score, scores, labels, seed):
        return Check(name, False, f"{detail}: no better than chance; are normalisation and label order right?")
    if _is_below(_score(scores, labels), _score(neighbours, labels), len(labels)):
        return Check(name, None, f"{detail}, far more: are normalisation and label order right?", is_warning=True)
    return Check(name, True, detail)
