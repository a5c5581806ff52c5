"""Ordered label sets: a label is named by its id (AudioSet's MID, or a slug), never by its position."""

from collections.abc import Iterable, Sequence
from functools import cached_property

from pydantic import BaseModel, ConfigDict, model_validator

from manifests.errors import InputError


class Label(BaseModel):
    """One class: `id` is what joins vocabularies of different sources, `name` is what people read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str


class Vocabulary(BaseModel):
    """The ordered labels of a dataset; the order is that of every label vector and logit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[Label, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> "Vocabulary":
        if len({label.id for label in self.labels}) != len(self.labels):
            seen: set[str] = set()
            repeated = next(label.id for label in self.labels if label.id in seen or seen.add(label.id))  # type: ignore[func-returns-value]
            raise InputError(f"the vocabulary names the label id {repeated!r} twice; ids must be unique")
        return self

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "Vocabulary":
        """A vocabulary whose ids are its names, sorted."""
        return cls(labels=tuple(Label(id=name, name=name) for name in sorted(set(names))))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        return [label.name for label in self.labels]

    @property
    def ids(self) -> list[str]:
        return [label.id for label in self.labels]

    @cached_property
    def position(self) -> dict[str, int]:
        """Position of each label id."""
        return {label.id: index for index, label in enumerate(self.labels)}

    def indices(self, label_ids: Sequence[str]) -> list[int]:
        """Positions of `label_ids`; raises InputError for one that the vocabulary lacks."""
        unknown = [label_id for label_id in label_ids if label_id not in self.position]
        if unknown:
            some = ", ".join(self.ids[:5])
            raise InputError(f"unknown label {unknown[0]!r}; the vocabulary has {len(self)} labels: {some}, ...")
        return [self.position[label_id] for label_id in label_ids]
