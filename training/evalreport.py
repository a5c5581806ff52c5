"""One evaluation of a checkpoint, with all that `training eval` prints and keeps of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from featurestore.store import Store
from ingest.sourcefile import file_sha256
from manifests.vocabulary import Vocabulary
from training.bootstrap import LEVEL, SEED, Interval, bootstrap
from training.checkpoint import About
from training.evaluate import Evaluation, judge, predict_split
from training.heard import heard_of
from training.metrics import ClassFigures, class_figures
from training.model.networks import Student
from training.predictions import Origin, Predictions
from training.splits import Split


@dataclass(frozen=True)
class EvalReport:
    """Figures, their intervals (empty where none were asked for), each class's, and the predictions behind them."""

    checkpoint: str
    origin: Origin
    evaluation: Evaluation
    num_resamples: int
    intervals: dict[str, Interval]
    vocabulary: Vocabulary
    classes: ClassFigures
    predictions: Predictions

    def as_json(self, predictions_file: Path | None, *, per_class: bool) -> dict[str, Any]:
        """What --json prints: null stands for what is infinite or has no value."""
        settings = {"num_resamples": self.num_resamples, "seed": SEED, "level": LEVEL}
        ends = {name: [_finite(interval.low), _finite(interval.high)] for name, interval in self.intervals.items()}
        return {
            "checkpoint": self.checkpoint,
            **asdict(self.origin),
            **self.evaluation.as_dict(),
            "intervals": {**settings, **ends} if ends else None,
            "predictions": None if predictions_file is None else str(predictions_file),
            **({"classes": self._classes()} if per_class else {}),
        }

    def _classes(self) -> list[dict[str, Any]]:
        of, labels = self.classes, self.vocabulary.labels
        columns: dict[str, NDArray[Any]] = {
            "num_clips": of.num_clips,
            "average_precision": of.average_precision,
            "auc": of.roc_area,
            "recall": of.recall,
        }
        return [
            {
                "id": label.id,
                "name": label.name,
                **{name: _finite(values[n].item()) for name, values in columns.items()},
            }
            for n, label in enumerate(labels)
        ]


def report_on(
    path: Path,
    about: About,
    student: Student,
    store: Store,
    part: Split,
    device: torch.device,
    *,
    num_resamples: int,
    advance: Callable[[int], None] = lambda _: None,
) -> EvalReport:
    """Evaluates the student, on the device, of the checkpoint `path`, which fits the store; `advance` counts clips."""
    said = predict_split(student, store, part, about.normalisation, device, one_label=about.one_label, advance=advance)
    return EvalReport(
        checkpoint=str(path),
        origin=Origin(file_sha256(path), store.snapshot.fingerprint),
        evaluation=replace(judge(said), heard=heard_of(about.trainings, store, part.held_out)),
        num_resamples=num_resamples,
        intervals=bootstrap(said.scores, said.labels, num_resamples) if num_resamples else {},
        vocabulary=about.vocabulary,
        classes=class_figures(said.scores, said.labels),
        predictions=said,
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
