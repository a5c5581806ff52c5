"""Several teachers in one cache: each fed its own, embeddings side by side, probabilities averaged by label."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featurestore.build import build_cache, build_teacher
from featurestore.cacheplan import CacheOptions, plan_cache
from featurestore.store import Store
from featurestore.teacherpool import InProcess
from featurestore.teachers.base import TeacherOutput, WaveformInput
from featurestore.teachers.ensemble import Ensemble
from manifests.errors import InputError
from manifests.vocabulary import Label, Vocabulary


class Member:
    """A teacher that says what it was made to say; None: it has no labels."""

    def __init__(self, name: str, label_ids: str | None, width: int = 2) -> None:
        self.name, self.embedding_dim, self.input = name, width, WaveformInput(16_000)
        self.vocabulary: Vocabulary | None = None
        if label_ids is not None:
            self.vocabulary = Vocabulary(labels=tuple(Label(id=one, name=f"{one} of {name}") for one in label_ids))
        self.provenance: dict[str, Any] = {"checkpoint_sha256": name * 3}

    def to(self, device: torch.device) -> "Member":
        return self

    def embed(self, batch: Tensor) -> TeacherOutput:
        raise NotImplementedError


def said(embedding: list[float], logits: list[float] | None) -> TeacherOutput:
    return TeacherOutput(torch.tensor([embedding]), None if logits is None else torch.tensor([logits]))


def test_one_member_is_as_it_is() -> None:
    member = Member("a", "xyz")
    ensemble, output = Ensemble([member]), TeacherOutput(torch.ones(1, 2), torch.ones(1, 3), torch.ones(1, 4, 2))
    assert ensemble.combine([output]) is output
    assert (ensemble.name, ensemble.embedding_dim, ensemble.vocabulary) == ("a", 2, member.vocabulary)
    assert ensemble.provenance is member.provenance


def test_embeddings_side_by_side_and_probabilities_averaged_by_id() -> None:
    ensemble = Ensemble([Member("a", "xyz"), Member("b", "wzy", width=1)])
    assert ensemble.vocabulary is not None
    assert ensemble.vocabulary.names == ["y of a", "z of a"]
    output = ensemble.combine([said([1.0, 2.0], [0.5, 1.0, -2.0]), said([3.0], [9.0, 3.0, -1.0])])
    assert output.embedding.tolist() == [[1.0, 2.0, 3.0]]
    assert output.logits is not None
    sigmoid = lambda value: 1 / (1 + np.exp(-value))  # noqa: E731
    probabilities = [(sigmoid(1.0) + sigmoid(-1.0)) / 2, (sigmoid(-2.0) + sigmoid(3.0)) / 2]
    np.testing.assert_allclose(output.logits.sigmoid().numpy(), [probabilities], rtol=1e-5)
    assert output.logits.dtype == torch.float32


def test_probabilities_that_round_to_0_and_1_have_finite_logits() -> None:
    ensemble = Ensemble([Member("a", "xy"), Member("b", "xy")])
    logits = ensemble.combine([said([0.0, 0.0], [90.0, -200.0]), said([0.0, 0.0], [110.0, -220.0])]).logits
    assert logits is not None
    # The less certain one decides: 1 - p and p are the means of e^-90 and e^-110, e^-200 and e^-220.
    np.testing.assert_allclose(logits.numpy(), [[90 + np.log(2), -200 - np.log(2)]], rtol=1e-5)


def test_members_without_labels_have_no_say() -> None:
    ensemble = Ensemble([Member("a", None), Member("b", "xy")])
    output = ensemble.combine([said([1.0, 2.0], None), said([3.0, 4.0], [0.5, -4.0])])
    assert output.logits is not None
    np.testing.assert_allclose(output.logits.numpy(), [[0.5, -4.0]], rtol=1e-5)
    assert Ensemble([Member("a", None), Member("b", None)]).vocabulary is None
    strangers = Ensemble([Member("a", "x"), Member("b", "y")])
    assert strangers.vocabulary is None
    assert strangers.combine([said([1.0, 2.0], [1.0]), said([3.0, 4.0], [1.0])]).logits is None


def test_provenance_is_of_all_members() -> None:
    provenance = Ensemble([Member("a", "xy"), Member("b", None, width=5)]).provenance
    assert [(one["name"], one["embedding_dim"], one["has_labels"]) for one in provenance["members"]] == [
        ("a", 2, True),
        ("b", 5, False),
    ]
    assert [one["provenance"]["checkpoint_sha256"] for one in provenance["members"]] == ["aaa", "bbb"]
    swapped = Ensemble([Member("b", None, width=5), Member("a", "xy")]).provenance
    assert provenance["checkpoint_sha256"] != swapped["checkpoint_sha256"]


def test_each_member_is_fed_its_own(store_copy: Path, waveform_stats: Any, fbank_stats: Any) -> None:
    store, members = Store(store_copy), [waveform_stats(16_000), fbank_stats(), waveform_stats(32_000)]
    plan = plan_cache(store, Ensemble(members), "three", CacheOptions(num_views=2, views_seed=1))
    together = build_cache(plan, InProcess()).cache
    rows = store.rows()
    alone = [build_teacher(store, member, f"alone{number}").cache for number, member in enumerate(members)]
    np.testing.assert_array_equal(together.embeddings(rows), np.hstack([one.embeddings(rows) for one in alone]))
    np.testing.assert_allclose(together.logits(rows), alone[1].logits(rows), rtol=1e-3, atol=1e-3)
    attributes = together.attributes
    assert (attributes.teacher, attributes.embedding_dim) == ("wavestats-fbankstats-wavestats", 8)
    assert [one.get("sample_rate_hz") for one in attributes.inputs] == [16_000, 16_000, 32_000]
    assert [one["kind"] for one in attributes.inputs] == ["waveform", "fbank", "waveform"]
    assert together.row_shape("embedding_views") == (2, 8)
    assert together.row_shape("logits_views") == (2, 2)


def test_a_clip_that_one_member_can_not_be_fed_has_no_row(
    make_store: Any, waveform_stats: Any, fbank_stats: Any
) -> None:
    store = make_store(("bark", "bell", "rain"))
    (Path(store.sources_of_shard(0).address) / "clip01.wav").unlink()
    plan = plan_cache(store, Ensemble([fbank_stats(), waveform_stats()]), "both", CacheOptions())
    result = build_cache(plan, InProcess())
    assert result.failures == ["clip01: missing: no such file"]
    row = store.keys(np.arange(3)).index("clip01")
    assert np.isnan(result.cache.embeddings(np.array([row]))).all()
    assert np.isfinite(result.cache.embeddings(np.setdiff1d(np.arange(3), [row]))).all()


def test_tokens_of_an_ensemble_are_refused(store_copy: Path, fbank_stats: Any) -> None:
    with pytest.raises(InputError, match="each member of an ensemble has tokens of its own; leave --tokens out"):
        plan_cache(Store(store_copy), Ensemble([fbank_stats(), fbank_stats()]), "two", CacheOptions(with_tokens=True))
