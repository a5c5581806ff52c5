"""Tags of files of any length: of all of a file, of each window, and events where a label goes on over windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manifests.vocabulary import Vocabulary
from training.hearing import HeardWindow

Aggregate = Literal["mean", "max"]


@dataclass(frozen=True, slots=True)
class Tag:
    """A label and its probability."""

    label_id: str
    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class WindowTags:
    """The likeliest labels of a window, in seconds from the file's start."""

    start_s: float
    end_s: float
    tags: list[Tag]


@dataclass(frozen=True, slots=True)
class Event:
    """A label that reaches the threshold in windows that follow on each other or overlap; `tag` has the highest one."""

    start_s: float
    end_s: float
    tag: Tag


@dataclass(frozen=True, slots=True)
class FileTags:
    """What was heard in a file up to `end_s`; `windows` and `events` are empty where they weren't asked for."""

    file: str
    end_s: float
    num_windows: int
    tags: list[Tag]
    windows: list[WindowTags]
    events: list[Event]


@dataclass(frozen=True, slots=True)
class TagOptions:
    """The `top` likeliest labels, of those that reach `threshold`; events of all labels that reach it."""

    top: int = 5
    threshold: float | None = None
    aggregate: Aggregate = "mean"
    with_windows: bool = False
    event_threshold: float | None = None


class FileTagger:
    """Takes a file's windows one after the other; its memory doesn't grow with them, but for what is asked for."""

    def __init__(self, vocabulary: Vocabulary, options: TagOptions) -> None:
        self._vocabulary, self._options = vocabulary, options
        self._sum = np.zeros(len(vocabulary))
        self._max = np.zeros(len(vocabulary))
        self._num_windows, self._end_s = 0, 0.0
        self._windows: list[WindowTags] = []
        self._events = None if options.event_threshold is None else EventFinder(vocabulary, options.event_threshold)

    def add(self, window: HeardWindow) -> None:
        """The next window, of a model with labels."""
        if window.probabilities is None:
            raise ValueError("a model without labels has no tags")
        self._sum += window.probabilities
        np.maximum(self._max, window.probabilities, out=self._max)
        self._num_windows, self._end_s = self._num_windows + 1, window.end_s
        if self._options.with_windows:
            self._windows.append(WindowTags(window.start_s, window.end_s, self._likeliest(window.probabilities)))
        if self._events is not None:
            self._events.add(window.start_s, window.end_s, window.probabilities)

    def result(self, file: str) -> FileTags:
        """What all windows together say; there has to be one."""
        together = self._max if self._options.aggregate == "max" else self._sum / self._num_windows
        events = [] if self._events is None else self._events.finish()
        return FileTags(file, self._end_s, self._num_windows, self._likeliest(together), self._windows, events)

    def _likeliest(self, probabilities: NDArray[np.floating]) -> list[Tag]:
        threshold = self._options.threshold or 0.0
        order = np.argsort(-probabilities, kind="stable")[: self._options.top]
        return [_tag(self._vocabulary, i, probabilities[i]) for i in order.tolist() if probabilities[i] >= threshold]


class EventFinder:
    """Merges, for each label, windows that reach a threshold and follow on each other or overlap.

    So no two events of a label have a time in common.
    """

    def __init__(self, vocabulary: Vocabulary, threshold: float) -> None:
        self._vocabulary, self._threshold = vocabulary, threshold
        self._latest: dict[int, Event] = {}
        self._closed: list[Event] = []
        self._in_last_window: set[int] = set()

    def add(self, start_s: float, end_s: float, probabilities: NDArray[np.floating]) -> None:
        """The next window, which begins after the one before, and its probabilities (C)."""
        found = np.flatnonzero(probabilities >= self._threshold).tolist()
        for index in found:
            tag, before = _tag(self._vocabulary, index, probabilities[index]), self._latest.get(index)
            if before is None:
                self._latest[index] = Event(start_s, end_s, tag)
            elif start_s < before.end_s or (start_s == before.end_s and index in self._in_last_window):
                likelier = max(before.tag, tag, key=lambda one: one.probability)
                self._latest[index] = Event(before.start_s, end_s, likelier)
            else:
                self._closed.append(before)
                self._latest[index] = Event(start_s, end_s, tag)
        self._in_last_window = set(found)

    def finish(self) -> list[Event]:
        """All events by their start, those of one start by their probability."""
        found = [*self._closed, *self._latest.values()]
        return sorted(found, key=lambda event: (event.start_s, -event.tag.probability, event.tag.label_id))


def _tag(vocabulary: Vocabulary, index: int, probability: float) -> Tag:
    label = vocabulary.labels[index]
    return Tag(label.id, label.name, float(probability))


def tags_as_json(tags: Sequence[Tag]) -> list[dict[str, str | float]]:
    """Tags as they stand in JSON."""
    return [{"id": tag.label_id, "name": tag.name, "probability": round(tag.probability, 6)} for tag in tags]
