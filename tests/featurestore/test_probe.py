"""A probe of caches whose embeddings are known to tell the labels, or not."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from featurestore import probe as probe_module
from featurestore.probe import ProbeOptions, probe
from featurestore.probemodels import knn_scores
from featurestore.probeparts import PartOptions
from featurestore.probetables import print_probe
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from manifests.errors import InputError
from tests.featurestore.labelledstores import labelled_store, telling, write_embeddings

NUM_CLIPS = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """60 clips of four classes in three folds; caches `good`, `bad`, and `holes`, which lacks five clips."""
    labels = ["abcd"[number % 4] for number in range(NUM_CLIPS)]
    folds = [number // 4 % 3 + 1 for number in range(NUM_CLIPS)]
    store = labelled_store(tmp_path_factory.mktemp("probed"), {"label": labels, "fold": folds})
    good = telling(store, noise=0.1)
    write_embeddings(store, "good", good)
    write_embeddings(store, "bad", np.random.default_rng(0).standard_normal(good.shape).astype(np.float32))
    holes = good.copy()
    holes[:5] = np.nan
    write_embeddings(store, "holes", holes)
    return store


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """60 clips of one or two of four labels."""
    labels = ["abcd"[number % 4] + (";d" if number % 3 == 0 and number % 4 != 3 else "") for number in range(NUM_CLIPS)]
    store = labelled_store(tmp_path_factory.mktemp("tagged"), {"labels": labels})
    write_embeddings(store, "good", telling(store, noise=0.3))
    return store


def test_embeddings_that_tell_the_labels(store: Store) -> None:
    report = probe(store, "good", ProbeOptions())
    assert [part.num_evaluated for part in report.parts] == [20, 20, 20]
    assert [part.num_train for part in report.parts] == [40, 40, 40]
    assert report.mean("linear", "accuracy") == report.mean("knn", "accuracy") == 1.0
    assert report.spread("linear", "accuracy") == 0.0
    assert report.parts[0].chance == {"accuracy": 0.25}
    assert report.parts[0].results["linear"].per_class == dict.fromkeys("abcd", 1.0)


def test_embeddings_that_tell_nothing_are_near_chance(store: Store) -> None:
    report = probe(store, "bad", ProbeOptions())
    # 60 clips: the standard error is 5.6 points.
    assert report.mean("linear", "accuracy") < 0.25 + 3 * 0.056
    assert report.mean("knn", "accuracy") < 0.25 + 3 * 0.056


def test_figures_of_several_labels_are_scikit_learns(tagged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def spy(train: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        seen.append(knn_scores(train, labels, embeddings).numpy())
        return Tensor(seen[-1])

    monkeypatch.setattr(probe_module, "knn_scores", spy)
    report = probe(tagged, "good", ProbeOptions(kinds=["knn"]))
    assert report.figure_names == ["mAP", "mAUC"]
    parts = probe_module.choose_parts(tagged, PartOptions()).parts
    for part, result, scores in zip(parts, report.parts, seen, strict=True):
        labels = tagged.labels(part.test)
        figures = result.results["knn"].figures
        assert figures["mAP"] == pytest.approx(average_precision_score(labels, scores, average="macro"))
        assert figures["mAUC"] == pytest.approx(roc_auc_score(labels, scores, average="macro"))
        assert result.chance == {"mAP": pytest.approx(labels.mean()), "mAUC": 0.5}


def test_linear_tells_several_labels(tagged: Store) -> None:
    report = probe(tagged, "good", ProbeOptions(kinds=["linear"]))
    assert report.mean("linear", "mAP") > 0.9
    assert report.mean("linear", "mAUC") > 0.9


def test_the_same_seed_gives_the_same(store: Store) -> None:
    options = ProbeOptions(parts=PartOptions(seed=1, folds=[1]), max_clips=18)
    assert probe(store, "bad", options) == probe(store, "bad", options)


def test_clips_without_an_embedding_are_left_out_and_counted(store: Store) -> None:
    report = probe(store, "holes", ProbeOptions(kinds=["knn"]))
    assert [part.num_without_embedding for part in report.parts] == [5, 5, 5]
    assert sum(part.num_evaluated for part in report.parts) == NUM_CLIPS - 5
    assert report.mean("knn", "accuracy") == 1.0


def test_the_hash_is_that_of_the_judged_keys(store: Store) -> None:
    (part,) = probe(store, "good", ProbeOptions(parts=PartOptions(folds=[2]), kinds=["knn"])).parts
    keys = sorted(store.keys(store.rows(fold=2)))
    assert part.keys_sha256 == hashlib.sha256("".join(f"{key}\n" for key in keys).encode()).hexdigest()


def test_a_sample_is_bounded_and_says_so(store: Store) -> None:
    (part,) = probe(store, "good", ProbeOptions(parts=PartOptions(folds=[1]), max_clips=15)).parts
    assert (part.num_train, part.num_train_of, part.num_evaluated, part.num_evaluated_of) == (15, 40, 15, 20)


def test_json_knows_no_nan(store: Store) -> None:
    content = probe(store, "good", ProbeOptions(parts=PartOptions(folds=[1]))).as_json()
    read = json.loads(json.dumps(content, allow_nan=False))
    assert read["over_parts"]["linear"]["accuracy"] == {"mean": 1.0, "std": None}
    assert read["provenance"] == {"checkpoint_sha256": "2" * 64}
    assert read["settings"] == {"num_neighbours": 20, "temperature": 0.07, "penalties": [1.0, 0.1, 0.01, 0.001, 0.0001]}


@pytest.fixture
def lone(tmp_path: Path) -> Store:
    """Clips with several labels, of which fold 1 has one alone: no class has clips there with and without it."""
    store = labelled_store(tmp_path, {"labels": ["a;b", "a", "b", "a;b"], "fold": [1, 2, 2, 2]})
    write_embeddings(store, "good", telling(store, noise=0.1))
    return store


def test_a_figure_that_the_clips_do_not_tell_is_null(lone: Store) -> None:
    report = probe(lone, "good", ProbeOptions(kinds=["knn"]))
    read = json.loads(json.dumps(report.as_json(), allow_nan=False))
    first, second = (part["results"]["knn"]["figures"] for part in read["parts"])
    assert first == {"mAP": 1.0, "mAUC": None}
    assert 0 <= second["mAUC"] <= 1
    over_parts = read["over_parts"]["knn"]
    assert over_parts["mAUC"] == {"mean": None, "std": None}
    assert 0 < over_parts["mAP"]["mean"] <= 1
    assert over_parts["mAP"]["std"] is not None


def test_tables_show_a_dash_for_it(lone: Store, capsys: pytest.CaptureFixture[str]) -> None:
    report = probe(lone, "good", ProbeOptions(kinds=["knn"]))
    print_probe(report)
    said = capsys.readouterr().out
    assert "nan" not in said
    row, mean = (next(line for line in said.splitlines() if name in line) for name in ("fold 1 ", "mean ± std"))
    assert [cell.strip() for cell in row.split("│")[4:6]] == ["100.0 %", "–"]
    assert [cell.strip() for cell in mean.split("│")[5:6]] == ["–"]


def test_missing_caches_and_too_little_to_learn_from(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cache of a teacher 'none'"):
        probe(store, "none", ProbeOptions())
    few = labelled_store(tmp_path, {"label": ["a", "b", "a", "b"], "split": ["train", "train", "train", "test"]})
    write_embeddings(few, "good", telling(few, noise=0.1))
    with pytest.raises(InputError, match=r"needs 5 recordings to learn from.*--kind knn"):
        probe(few, "good", ProbeOptions())
    assert probe(few, "good", ProbeOptions(kinds=["knn"])).parts[0].num_train == 3


def test_a_cache_without_any_embedding(store: Store) -> None:
    write_embeddings(store, "empty", np.full((NUM_CLIPS, 2), np.nan, np.float32))
    with pytest.raises(InputError, match="embeddings of 0 clips to learn from and 0"):
        probe(store, "empty", replace(ProbeOptions(), kinds=["knn"]))
    assert TeacherCache(store, "empty").embedding_dim == 2
