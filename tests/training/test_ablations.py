"""Tables: their rows are configurations, run on the same folds and seeds, and kept beside the paper's figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from featurestore.store import Store
from manifests.errors import InputError
from training import experiment
from training.ablations import TABLES, Ablation, Row, Table, load_table, read_paper, run_table
from training.config import differences, load_config
from training.evaluate import Evaluation
from training.iterations import run_iterations
from training.run import open_run

CPU = torch.device("cpu")
FEW_STEPS = ["multissl.optimiser.epochs=0.3", "distill.optimiser.epochs=0.3"]
# The rows that are the presets' own setting, of the tables that are of one key each.
PRESETS_ROW = {1: "all", 2: "intra and inter", 4: "weighted by S", 5: "HOG prior", 6: "75%", 7: "random"}


def ablation(preset: Path, **options: Any) -> Ablation:
    return Ablation(str(preset), FEW_STEPS, **({"given": {}, "folds": [None], "seeds": [0]} | options))


def row(name: str, *changes: str, **options: Any) -> Row:
    return Row(name=name, set=changes, **options)


def table(*rows: Row) -> Table:
    return Table(title="A table", source="the tests", rows=rows)


VIEWS = table(row("Intra!", "multissl.inter=false"), row("both"))


@pytest.mark.parametrize("number", TABLES)
def test_each_row_of_each_table_is_a_configuration_of_its_own(number: int) -> None:
    found = load_table(number)
    given = {name: f"a-{name}" for name in found.asked}
    configs = {
        one.folder: load_config("tiny", [text.format_map(given) for text in (*found.set, *one.set)])
        for one in found.rows
    }
    folders = list(configs)
    for position, folder in enumerate(folders):
        for other in folders[:position]:
            assert configs[folder] != configs[other], (folder, other)
    if number in PRESETS_ROW:
        (same,) = [one for one in found.rows if one.name == PRESETS_ROW[number]]
        assert differences(configs[same.folder], load_config("tiny")) == []
    assert len(configs) == (1 if number == 9 else len(found.rows))


def test_what_rows_ask_for() -> None:
    assert load_table(7).asked == {"image", "audio"}
    assert load_table(8).asked == {"ensemble"}
    assert load_table(1).asked == frozenset()
    with pytest.raises(InputError, match="there is no --table 10; there are 1 to 9"):
        load_table(10)


def test_folders_are_readable_and_only_shared_by_one_configuration() -> None:
    assert [one.folder for one in load_table(3).rows] == ["up-to-25", "up-to-50", "up-to-75", "up-to-100"]
    iterations = load_table(9)
    assert {one.folder for one in iterations.rows} == {"iterations"}
    assert {iterations.num_iterations(one) for one in iterations.rows} == {3}
    with pytest.raises(ValidationError, match="would share the folder 50"):
        table(row("50%", "multissl.mask_ratio=0.5"), row("50", "multissl.mask_ratio=0.6"))


def test_rows_are_separate_runs_on_the_same_folds_and_seeds(store: Store, preset: Path, tmp_path: Path) -> None:
    results = run_table(VIEWS, ablation(preset, folds=[1, 3], seeds=range(5, 7)), [store], tmp_path / "table", CPU)
    places = ["fold1-seed5", "fold3-seed5", "fold1-seed6", "fold3-seed6"]
    assert [(result.row.name, list(result.by_place)) for result in results] == [("Intra!", places), ("both", places)]
    config = load_config(str(preset), [*FEW_STEPS, "multissl.inter=false", "data.eval_fold=3", "seed=6"])
    with open_run([store], config, tmp_path / "alone", CPU) as run:
        (alone,) = run_iterations(run, 1)
    assert results[0].by_place["fold3-seed6"] == alone.evaluation
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == ["both", "intra"]
    assert results[0].by_place["fold3-seed6"].split == "fold 3"


def test_a_stopped_table_has_whole_seeds_and_goes_on(
    store: Store, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    train = experiment.run_iterations

    def killed_at_the_fourth(run: Any, number: int) -> Any:
        done.append(str(run.folder.relative_to(tmp_path)))
        if len(done) == 4:
            raise KeyboardInterrupt
        return train(run, number)

    monkeypatch.setattr(experiment, "run_iterations", killed_at_the_fourth)
    asked = ablation(preset, seeds=[0, 1])
    with pytest.raises(KeyboardInterrupt):
        run_table(VIEWS, asked, [store], tmp_path, CPU)
    assert done == ["intra/seed0", "both/seed0", "intra/seed1", "both/seed1"]
    run_table(VIEWS, asked, [store], tmp_path, CPU)
    assert done[4:] == ["both/seed1"]
    run_table(VIEWS, asked, [store], tmp_path, CPU)
    assert len(done) == 5


def test_rows_show_iterations_of_one_run(
    own_store: Store, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    train = experiment.run_iterations
    monkeypatch.setattr(experiment, "run_iterations", lambda run, number: calls.append(number) or train(run, number))
    found = table(*(row(f"iteration {number}", run="iterations", iteration=number) for number in (1, 2)))
    results = run_table(found, ablation(preset, keep="none"), [own_store], tmp_path / "table", CPU)
    assert calls == [2]
    with open_run([own_store], load_config(str(preset), FEW_STEPS), tmp_path / "alone", CPU) as run:
        alone = [result.evaluation for result in train(run, 2)]
    assert [result.by_place["seed0"] for result in results] == alone


def test_rows_that_cannot_be_run_are_listed_with_the_reason(store: Store, preset: Path, tmp_path: Path) -> None:
    rows = [
        row("plain"),
        row("image", "initialise={image}"),
        row("other", "initialise={file}"),
        row("taught", "distill.teacher=beats"),
        row("nothing", "multissl.intra=false", "multissl.inter=false"),
    ]
    asked = ablation(preset, given={"file": "nothere.pt"})
    results = run_table(table(*rows), asked, [store], tmp_path, CPU)
    assert list(results[0].by_place) == ["seed0"]
    reasons = [result.skipped or "" for result in results]
    assert reasons[:2] == ["", "give --with image=..."]
    for reason, expected in zip(reasons[2:], ("nothere.pt", "no cache of a teacher 'beats'", "both off"), strict=True):
        assert expected in reason
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
    assert all(not result.by_place for result in results[1:])


def test_a_table_without_any_row_to_run_is_refused(store: Store, preset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no row of the table can be run here: .* has no fold 8"):
        run_table(VIEWS, ablation(preset, folds=[8]), [store], tmp_path, CPU)
    asked = ablation(preset, given={"picture": "a.pt"})
    with pytest.raises(InputError, match="--with picture: no row of this table asks for it; those asked for: image"):
        run_table(table(row("image", "initialise={image}")), asked, [store], tmp_path, CPU)
    assert list(tmp_path.iterdir()) == []


def test_the_papers_figures_are_read_by_row(tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    path.write_text("table,row,dataset,metric,value\n2,both,AudioSet-20K,mAP,41.4\n3,up to 25%,AudioSet,mAP,40\n")
    found = read_paper(path, 2, VIEWS)
    assert {name: str(figure) for name, figure in found.items()} == {"both": "41.4 (mAP on AudioSet-20K)"}
    assert read_paper(None, 2, VIEWS) == {}
    with pytest.raises(InputError, match="table 3 has no row 'up to 25%'; it has: Intra!, both"):
        read_paper(path, 3, VIEWS)


@pytest.mark.parametrize(
    ("content", "reason"), [("a,b\n1,2\n", "table: Field required"), ("table,row\nx,y\n", "table: Input should be")]
)
def test_another_file_is_no_list_of_figures(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"paper.csv is no list of the paper's figures \({reason}"):
        read_paper(path, 2, VIEWS)
    with pytest.raises(InputError, match="No such file"):
        read_paper(tmp_path / "nothere.csv", 2, VIEWS)


def test_evaluations_of_rows_keep_their_clips(store: Store, preset: Path, tmp_path: Path) -> None:
    (result,) = run_table(table(row("plain")), ablation(preset), [store], tmp_path, CPU)
    found = result.by_place["seed0"]
    assert isinstance(found, Evaluation)
    assert (found.split, found.num_evaluated, found.num_listed) == ("test", 6, 6)
