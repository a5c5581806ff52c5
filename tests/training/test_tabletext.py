"""A table's text and JSON, of figures that are known."""

import json
from pathlib import Path

import pytest

from featurestore.store import Store
from training.ablations import Ablation, Paper, Row, RowResult, Table
from training.evaluate import Evaluation
from training.tabletext import Compared, write_table

FOLDS, SEEDS = [1, 2], [0]


def result(name: str, *accuracies: float, skipped: str | None = None) -> RowResult:
    found = {
        f"fold{fold}-seed0": Evaluation(f"fold {fold}", accuracy / 2, accuracy, 0.5, 6, 7, 3, 3)
        for fold, accuracy in zip(FOLDS, accuracies, strict=False)
    }
    return RowResult(Row(name=name, set=("seed=0",), run=name), found, skipped)


RESULTS = [result("absent", skipped="give --with image=a|b"), result("one", 0.5, 0.7), result("other", 0.6, 0.7)]


def test_differences_are_of_the_same_fold_and_seed() -> None:
    compared = Compared(RESULTS)
    assert (compared.figure, compared.first.row.name) == ("accuracy", "one")
    absent, one, other = RESULTS
    assert (compared.spread(absent), compared.difference(absent), compared.difference(one)) == (None, None, None)
    difference = compared.difference(other)
    assert difference is not None
    # .1 and 0: mean .05, squared deviations .0025 each over 1.
    assert (difference.mean, difference.deviation) == (pytest.approx(0.05), pytest.approx(0.005**0.5))


def test_a_table_is_written_in_words_and_numbers(store: Store, unlabelled_store: Store, tmp_path: Path) -> None:
    table = Table(title="Views", source="Ours.", rows=tuple(entry.row for entry in RESULTS))
    paper = {"other": Paper(table=2, row="other", dataset="AudioSet-20K", metric="mAP", value="41.4")}
    ablation = Ablation("tiny", ["seed=0"], {}, FOLDS, SEEDS)
    text = write_table(2, table, RESULTS, ablation, [store, unlabelled_store], paper, tmp_path)
    assert text == (tmp_path / "table2.md").read_text()
    assert text.splitlines() == [
        "# Table 2: Views",
        "",
        "Ours.",
        "",
        "- data: tiny (20 clips, 3 classes); tiny (6 clips, no labels)",
        "- held out: fold 1 (6 of 7 clips); fold 2 (6 of 7 clips)",
        "- configuration: tiny --set seed=0",
        "- runs: 2 held-out parts x 1 seed (0) a row",
        "- figures: accuracy, mean ± standard deviation over the runs; the difference is that of runs of the same "
        "held-out part and seed, in points",
        "",
        '| row | accuracy | difference to "one" | runs | the paper\'s, in per cent |',
        "| --- | --- | --- | --- | --- |",
        "| absent | not run: give --with image=a\\|b |  | 0 |  |",
        "| one | 60.0% ± 14.1 |  | 2 |  |",
        "| other | 65.0% ± 7.1 | +5.0 ± 7.1 | 2 | 41.4 (mAP on AudioSet-20K) |",
    ]
    told = json.loads((tmp_path / "table2.json").read_text())
    rows = {row["row"]: row for row in told["rows"]}
    assert rows["other"]["values"] == {"fold1-seed0": 0.6, "fold2-seed0": 0.7}
    assert rows["other"]["spread"]["mean"] == pytest.approx(0.65)
    assert rows["other"]["paper"]["dataset"] == "AudioSet-20K"
    assert rows["other"]["evaluations"]["fold2-seed0"] == RESULTS[2].by_place["fold2-seed0"].as_dict()
    assert (rows["absent"]["skipped"], rows["absent"]["spread"]) == ("give --with image=a|b", None)


def test_without_the_papers_figures_there_is_no_column_for_them(store: Store, tmp_path: Path) -> None:
    table = Table(title="Views", source="Ours.", rows=(RESULTS[1].row,))
    ablation = Ablation("tiny", [], {"image": "vit.pt"}, [None], [0, 1])
    text = write_table(2, table, [RESULTS[1]], ablation, [store], {}, tmp_path)
    assert '| row | accuracy | difference to "one" | runs |\n' in text
    assert "- with: image=vit.pt\n" in text
    assert "1 held-out part x 2 seeds (0, 1) a row" in text


def test_rows_of_several_labels_are_told_in_mean_average_precision(store: Store, tmp_path: Path) -> None:
    several = RowResult(Row(name="several"), {"seed0": Evaluation("eval", 0.25, None, 0.5, 6, 7, 3, 3)})
    table = Table(title="Views", source="Ours.", rows=(several.row,))
    text = write_table(1, table, [several], Ablation("tiny", [], {}, [None], [0]), [store], {}, tmp_path)
    assert "| several | 25.0% |  | 1 |" in text
    assert '| row | mAP | difference to "several" | runs |' in text
