"""One teacher, or several at once, whose outputs make one cache; each is fed what it takes itself."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from featurestore.teachers.base import Teacher, TeacherOutput
from manifests.vocabulary import Vocabulary


class Ensemble:
    """Members in their order; of a single one everything is as it is.

    `embedding_dim`: the sum of theirs. `vocabulary`: the labels, by id and in the first's order, that all members with
    labels have; members without have no say in the logits. None where there are no such labels.
    """

    def __init__(self, members: Sequence[Teacher]) -> None:
        self.members = tuple(members)
        self.name = "-".join(member.name for member in self.members)
        self.embedding_dim = sum(member.embedding_dim for member in self.members)
        if len(self.members) == 1:
            self.vocabulary, self.provenance = self.members[0].vocabulary, self.members[0].provenance
            return
        self.vocabulary = _shared([member.vocabulary for member in self.members if member.vocabulary is not None])
        self.provenance = _provenance(self.members)

    def to(self, device: torch.device) -> "Ensemble":
        """Moves all members to a device; returns itself."""
        self.members = tuple(member.to(device) for member in self.members)
        return self

    def combine(self, outputs: Sequence[TeacherOutput]) -> TeacherOutput:
        """The outputs of all members for the same clips as one: float32, and without tokens where there are several.

        Embeddings are concatenated as they are. The probabilities of each label, sigmoids as of several labels a clip,
        are averaged, and the logits are the logits of these means.
        """
        if len(outputs) == 1:
            return outputs[0]
        embedding = torch.cat([output.embedding.float() for output in outputs], 1)
        if self.vocabulary is None:
            return TeacherOutput(embedding)
        votes = []
        for member, output in zip(self.members, outputs, strict=True):
            if member.vocabulary is not None and output.logits is not None:
                votes.append(output.logits[:, member.vocabulary.indices(self.vocabulary.ids)].float())
        return TeacherOutput(embedding, _mean_in_probability(torch.stack(votes)))


def _mean_in_probability(logits: Tensor) -> Tensor:
    """The logits (...) of the mean probability of logits (N, ...), also where a probability rounds to 0 or 1."""
    # The means' common factor 1 / N falls out of their quotient.
    return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)


def _shared(vocabularies: Sequence[Vocabulary]) -> Vocabulary | None:
    if not vocabularies:
        return None
    common = set.intersection(*(set(vocabulary.ids) for vocabulary in vocabularies))
    labels = tuple(label for label in vocabularies[0].labels if label.id in common)
    return Vocabulary(labels=labels) if labels else None


def _provenance(members: Sequence[Teacher]) -> dict[str, Any]:
    sha256s = [str(member.provenance.get("checkpoint_sha256")) for member in members]
    return {
        "family": "ensemble",
        "checkpoint_sha256": hashlib.sha256(" ".join(sha256s).encode()).hexdigest(),
        "embedding": "concatenated",
        "logits": "of the mean of the members' sigmoids",
        "members": [
            {
                "name": member.name,
                "embedding_dim": member.embedding_dim,
                "has_labels": member.vocabulary is not None,
                "provenance": member.provenance,
            }
            for member in members
        ],
    }
