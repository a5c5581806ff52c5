"""The commands `training eval`, `training ensemble` and `training probe`: what models are worth on a store's clips."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from featurestore.probeparts import DEFAULT_MAX_CLIPS, KINDS, PartOptions
from featurestore.store import Store
from ingest.layout import choose_store
from ingest.outfile import check_outfile
from ingest.progress import ProgressDisplay
from manifests.errors import InputError
from training.choices import Mode
from training.predictions import write_predictions
from training.splits import Split

if TYPE_CHECKING:
    from training.checkpoint import About

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="The store's folder or URL. Default: the model's, else the one in ./data."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[Path, typer.Argument(help="A run's folder (its last iteration), an iteration's, or a checkpoint.")]
Models = Annotated[list[Path], typer.Argument(help="Two or more: run folders, iterations' folders, or checkpoints.")]
SplitOption = Annotated[str | None, typer.Option(help="The split to evaluate. Default: what the model's run held out.")]
FoldOption = Annotated[int | None, typer.Option(help="The fold to evaluate. Default: what the model's run held out.")]


class ProbeKind(StrEnum):
    """Which probes."""

    LINEAR = "linear"
    KNN = "knn"
    BOTH = "both"


def evaluate(
    model: Model,
    store: StoreOption = None,
    split: SplitOption = None,
    fold: FoldOption = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show each class too, the worst first.")] = False,
    resamples: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Resamples of clips for the 95 % intervals; 0: no intervals.")
    ] = 1000,
    predictions: Annotated[
        Path | None, typer.Option(help="Keep what the model says of each clip in this Parquet file.")
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate a model on held-out clips: mAP, mAUC, d', and accuracy where clips have one label, with intervals.

    How many clips were evaluated of those listed is always said. Of a run's own held-out clips, predictions.parquet is
    kept beside the iteration's eval.json.

    Example: training eval runs/esc50-tiny --per-class
    """
    from featurestore.device import choose_device
    from training.checkpoint import load_student
    from training.evalreport import report_on
    from training.evaltables import print_classes, print_evaluation
    from training.modelfile import check_classifies, choose_part, find_checkpoint, load_fitting, own_predictions_file

    chosen = choose_device(device)
    check_outfile(predictions)
    path = find_checkpoint(model)
    opened = _open_store(store, path)
    checkpoint = load_fitting(path, opened)
    about, student = checkpoint.about, load_student(checkpoint).to(chosen)
    check_classifies(about, path)
    part = choose_part(about, opened, split, fold)
    kept = predictions or own_predictions_file(path, about, opened, part)
    _warn_of_heard(about, opened, part)
    with ProgressDisplay("clips", len(part.held_out)) as shown:
        report = report_on(path, about, student, opened, part, chosen, num_resamples=resamples, advance=shown.advance)
    if kept is not None:
        write_predictions(kept, report.predictions, report.origin)
    if as_json:
        print(json.dumps(report.as_json(kept, per_class=per_class)))
        return
    if per_class:
        print_classes(report.vocabulary, report.classes)
    print_evaluation(report.checkpoint, report.evaluation, report.intervals)
    if kept is not None:
        print(f"predictions: {kept}")


def ensemble(
    models: Models,
    store: StoreOption = None,
    split: SplitOption = None,
    fold: FoldOption = None,
    mode: Annotated[Mode, typer.Option(help="Average the weights, what the models say, or both.")] = Mode.BOTH,
    weights_out: Annotated[
        Path | None, typer.Option(help="Keep the model of averaged weights as this checkpoint.")
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate several models side by side with the mean of their weights and the mean of what they say.

    All have to have held out the same clips; otherwise name, with --split or --fold, clips that none was trained on.

    Example: training ensemble runs/a runs/b --mode predictions
    """
    from featurestore.device import choose_device
    from training.checkpoint import save_checkpoint
    from training.ensemble import (
        Place,
        check_ensemble,
        check_same_part,
        choose_common_part,
        evaluate_ensemble,
        read_abouts,
    )
    from training.evaltables import print_side_by_side
    from training.modelfile import find_checkpoint

    chosen = choose_device(device)
    check_outfile(weights_out)
    paths = [find_checkpoint(model) for model in models]
    opened = _open_store(store, paths[0])
    abouts = read_abouts(paths)
    check_ensemble(paths, abouts, opened, mode, weights_out)
    if weights_out is not None:
        check_same_part(paths, abouts, opened)
    part = choose_common_part(paths, abouts, opened, split, fold)
    _warn_of_strangers(paths, abouts, opened)
    num_passes = len(paths) + (mode != Mode.PREDICTIONS)
    with ProgressDisplay("clips", num_passes * len(part.held_out)) as shown:
        result = evaluate_ensemble(paths, mode, Place(opened, part, chosen, shown.advance))
    if weights_out is not None and result.averaged is not None:
        save_checkpoint(result.averaged, weights_out)
    if as_json:
        print(json.dumps({**result.as_json(), "weights_out": None if weights_out is None else str(weights_out)}))
        return
    print_side_by_side(result.rows)
    if weights_out is not None:
        print(f"model of averaged weights: {weights_out}")


def probe(
    model: Model,
    store: StoreOption = None,
    split: Annotated[str | None, typer.Option(help="The split to hold out. Default: what the model's run did.")] = None,
    fold: Annotated[list[int] | None, typer.Option(help="A fold to hold out; several times for several.")] = None,
    all_folds: Annotated[bool, typer.Option("--all-folds", help="Hold out each fold in turn.")] = False,
    kind: Annotated[ProbeKind, typer.Option(help="The linear probe, nearest neighbours, or both.")] = ProbeKind.BOTH,
    max_clips: Annotated[
        int, typer.Option(min=2, help="At most so many clips to learn from, and to be judged by.")
    ] = DEFAULT_MAX_CLIPS,
    seed: Annotated[int, typer.Option(min=0, help="Draws those clips, and those that choose the penalty.")] = 0,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show each class's figure too.")] = False,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """How well a linear probe and nearest neighbours tell the labels from a model's frozen, pooled features.

    The model is a checkpoint of either stage; its own classifier takes no part. Nothing is kept in the store.

    Example: training probe runs/esc50-tiny/iter1/multissl/last.pt --fold 1
    """
    from featurestore.device import choose_device
    from featurestore.probe import ProbeOptions
    from featurestore.probetables import print_classes as print_probed_classes
    from featurestore.probetables import print_probe
    from training.checkpoint import load_checkpoint
    from training.modelfile import find_checkpoint
    from training.probe import HeldOut, choose_model_parts, heard_warnings, probe_checkpoint

    path = find_checkpoint(model, either_stage=True)
    opened = _open_store(store, path)
    held_out = HeldOut(split, tuple(fold or ()), all_folds)
    kinds = tuple(one for one in KINDS if kind in (one, ProbeKind.BOTH))
    options = ProbeOptions(kinds, PartOptions(seed=seed), max_clips, choose_device(device))
    about = load_checkpoint(path).about
    for line in heard_warnings(about, opened, choose_model_parts(about, opened, held_out, seed)):
        _warn(line)
    with ProgressDisplay("clips", None) as shown:
        report = probe_checkpoint(path, opened, held_out, options, shown.advance)
    if as_json:
        print(json.dumps(report.as_json()))
        return
    if per_class:
        print_probed_classes(opened, report)
    print_probe(report)


def _open_store(store: str | None, path: Path) -> Store:
    """The store that is named, or that of the model's run as it was then."""
    from training.runfolder import open_recorded_store

    if not path.exists():
        raise InputError(f"there is no model {path}; expected a run's folder, an iteration's, or a checkpoint")
    recorded = None if store is not None else open_recorded_store(path)
    return Store(choose_store(store)) if recorded is None else recorded


def _warn(message: str) -> None:
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(message)


def _warn_of_heard(about: "About", store: Store, part: Split) -> None:
    from training.heard import warning_of

    if warning := warning_of(about, store, part.name, part.held_out):
        _warn(warning)


def _warn_of_strangers(paths: list[Path], abouts: "list[About]", store: Store) -> None:
    from training.heard import heard_rows

    for path, about in zip(paths, abouts, strict=True):
        if heard_rows(about.trainings, store) is None:
            _warn(f"{path} was trained on another store: whether it has heard clips of this one can't be told")
