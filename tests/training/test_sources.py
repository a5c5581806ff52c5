"""Several stores as one stream: which clips, in which proportions, with which labels and teachers."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.teachers.base import Teacher
from featurestore.teachers.registry import load_teacher
from manifests.errors import InputError
from tests.training.conftest import LABELS, ingested
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.config import DataConfig, DistillConfig, ModelConfig, MultiSSLConfig, OptimiserConfig
from training.distill import Task, distill_losses
from training.inputs import Inputs, Normalisation, prepare
from training.model.networks import Student
from training.model.patches import patchify
from training.seeds import generator_for
from training.sources import (
    Source,
    check_complete,
    check_proportions,
    distill_loader,
    is_multi_label,
    make_sources,
    multissl_loader,
    open_teachers,
)
from training.splits import choose_split

OPTIMISER = OptimiserConfig(epochs=1, batch_size=8, peak_lr=1e-3)
OTHER_LABELS = ("wind", "rain", "bark")


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """9 clips, of three labels of which two are also the store's, at other positions."""
    return ingested(tmp_path_factory.mktemp("other"), "label", lambda number: OTHER_LABELS[number % 3], 10)


@pytest.fixture
def unlabelled(unlabelled_store: Store, tmp_path: Path) -> Store:
    return Store(Path(shutil.copytree(unlabelled_store.root, tmp_path / "unlabelled")))


@pytest.fixture
def teacher(checkpoint_path: Path) -> Teacher:
    return load_teacher("checkpoint", checkpoint_path)


def sources_of(*stores: Store) -> list[Source]:
    return make_sources(stores, choose_split(stores[0], DataConfig(), 0))


def test_the_first_store_gives_what_the_split_trains_on(store: Store, unlabelled_store: Store) -> None:
    split = choose_split(store, DataConfig(eval_fold=2), 0)
    first, second = make_sources([store, unlabelled_store], split)
    assert first.rows.tolist() == split.train.tolist()
    # Clips 0 and 4 are of its split "test".
    assert len(second.rows) == 4
    assert not {"clip00", "clip04"} & {key.removesuffix("_wav") for key in second.store.keys(second.rows)}
    held_out = {"test"}
    assert held_out.isdisjoint(second.store.column("split").take(second.rows).to_pylist())


def test_a_store_that_is_named_twice_is_refused(store: Store, unlabelled_store: Store) -> None:
    """All of its second place would be trained on, with what the first holds out."""
    with pytest.raises(InputError, match=r"hold the same clips, .*name one of them$"):
        make_sources([store, unlabelled_store, Store(store.root)], choose_split(store, DataConfig(), 0))


def test_a_store_of_nothing_to_train_on_is_refused(store: Store, unlabelled_store: Store) -> None:
    class OnlyTest(Store):
        def rows(self, **asked: object) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return super().rows(split="test")

    with pytest.raises(InputError, match="has no clip to train on; leave it out"):
        make_sources([store, OnlyTest(unlabelled_store.root)], choose_split(store, DataConfig(), 0))


@pytest.mark.parametrize("proportions", [None, (1.0, 3.0)])
def test_proportions_hold_in_every_1024_clips(
    proportions: tuple[float, float] | None, store: Store, unlabelled_store: Store
) -> None:
    sources = sources_of(store, unlabelled_store)
    assert [len(source.rows) for source in sources] == [14, 4]
    config = MultiSSLConfig(optimiser=OPTIMISER, proportions=proportions)
    loader = multissl_loader(sources, config, seed=3)
    counts: Counter[bool] = Counter()
    for batch in loader.batches(num_steps=1024 // OPTIMISER.batch_size):
        counts.update(np.asarray(batch.labels.any(1)).tolist())
    # By clips: 14 of 18 of 1024 are 796.4, and the larger remainder takes the last.
    assert counts == ({True: 796, False: 228} if proportions is None else {True: 256, False: 768})


def test_proportions_are_one_a_store(store: Store, unlabelled_store: Store) -> None:
    sources = sources_of(store, unlabelled_store)
    check_proportions(sources, None, (1.0, 2.0))
    with pytest.raises(InputError, match=r"numbers of proportions \(1\) and stores \(2\) differ"):
        check_proportions(sources, None, (1.0,))


def test_labels_of_another_store_are_joined_by_id(store: Store, other_store: Store) -> None:
    ids = store.file.vocabulary.ids
    assert sorted(ids) == ["bark", "bell", "rain"]
    sources = sources_of(store, other_store)
    loader = distill_loader(sources, DistillConfig(optimiser=OPTIMISER, proportions=(1.0, 1.0)), [], seed=0)
    seen = Counter()
    for batch in loader.batches(num_steps=8):
        for key, labels in zip(batch.keys, batch.labels, strict=True):
            names = [ids[column] for column in np.flatnonzero(labels)]
            number = int(key.split("clip")[1][:2])
            # A clip of the same name is in both stores: the two label it by its number, each in its way.
            assert names in ([LABELS[number % 3]], [name for name in [OTHER_LABELS[number % 3]] if name != "wind"])
            seen[tuple(names)] += 1
    assert set(seen) == {("bark",), ("bell",), ("rain",), ()}


def test_clips_without_labels_are_regressed_and_not_classified(
    own_store: Store, unlabelled: Store, teacher: Teacher, tiny: ModelConfig
) -> None:
    sources = sources_of(own_store, unlabelled)
    for source in sources:
        build_teacher(source.store, teacher, "taught")
    caches = open_teachers(sources, "taught")
    config = DistillConfig(optimiser=OPTIMISER, teacher="taught", proportions=(1.0, 1.0))
    batch = next(distill_loader(sources, config, caches, seed=1).batches(num_steps=1))
    normalisation = Normalisation(own_store.snapshot.mean, own_store.snapshot.std)
    inputs = prepare(batch, tiny.grid, normalisation, torch.device("cpu"))
    student = Student(tiny, 3, caches[0].embedding_dim, generator_for(0, "student"))
    terms = distill_losses(student, inputs, config, Task(one_label=True))

    labelled = inputs.labels.any(1)
    assert 0 < int(labelled.sum()) < len(labelled)
    output = student(patchify(inputs.fbank, tiny.grid))
    by_hand = F.cross_entropy(output.logits[labelled], inputs.labels[labelled].argmax(1))
    torch.testing.assert_close(terms["classify"], by_hand)
    assert output.regressed is not None
    errors = _squared_errors(output.regressed, inputs)
    torch.testing.assert_close(terms["regress"], errors.mean())
    assert not torch.isclose(errors.mean(), errors[labelled].mean())


def _squared_errors(regressed: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    assert inputs.teacher is not None
    one, other = ((part - part.mean(1, keepdim=True)) for part in (regressed, inputs.teacher))
    one, other = (part / (part.var(1, correction=0, keepdim=True) + 1e-5).sqrt() for part in (one, other))
    return ((one - other) ** 2).mean(1)


def test_caches_of_other_teachers_are_refused(
    own_store: Store, unlabelled: Store, teacher: Teacher, about: About, tiny: ModelConfig, tmp_path: Path
) -> None:
    sources = sources_of(own_store, unlabelled)
    build_teacher(own_store, teacher, "taught")
    with pytest.raises(InputError, match="unlabelled has no cache of a teacher 'taught'"):
        open_teachers(sources, "taught")
    other = Student(tiny, 3, None, generator_for(1, "another"))
    save_checkpoint(Checkpoint(about, other.state_dict()), tmp_path / "other.pt")
    build_teacher(unlabelled, load_teacher("checkpoint", tmp_path / "other.pt"), "taught")
    with pytest.raises(InputError, match="are of different teachers or checkpoints; build both with the same"):
        open_teachers(sources, "taught")


def test_a_cache_that_lacks_clips_to_train_on_is_refused(own_store: Store, teacher: Teacher) -> None:
    build_teacher(own_store, teacher, "taught", with_tokens=True)
    sources = sources_of(own_store)
    caches = open_teachers(sources, "taught")
    check_complete(sources, caches)
    # Training reads no tokens, and checking them would take a thousand times as long.
    shutil.rmtree(own_store.root / "teachers/taught.zarr/tokens/c")
    check_complete(sources, caches)
    chunk = sorted(path for path in (own_store.root / "teachers/taught.zarr/embedding/c").rglob("*") if path.is_file())
    chunk[0].unlink()
    with pytest.raises(InputError, match=r"of the 14 clips to train on, for instance .* build-teacher` again"):
        check_complete(sources, open_teachers(sources, "taught"))


def test_another_stores_clips_of_several_known_labels_make_a_run_multi_label(
    store: Store, multi_label_store: Store
) -> None:
    """Of unknown labels a clip may have as many as it likes."""
    first, second = Source(store, store.rows()), Source(multi_label_store, multi_label_store.rows())
    assert not is_multi_label([first])
    assert is_multi_label([first, second])
    assert is_multi_label([second, first])
    owners, _ = multi_label_store.label_pairs(second.rows)
    single = second.rows[np.bincount(owners, minlength=len(second.rows)) <= 1]
    assert not is_multi_label([first, Source(multi_label_store, single)])
