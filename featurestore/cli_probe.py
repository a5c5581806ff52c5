"""The commands `featurestore probe` and `featurestore verify-teacher`."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from featurestore.check import Check
from featurestore.cli_info import StoreArgument
from featurestore.probeparts import DEFAULT_MAX_CLIPS, KINDS, PartOptions
from featurestore.store import Store
from ingest.atomic import atomic_write
from ingest.layout import choose_store
from ingest.location import open_location
from ingest.outfile import check_outfile

JsonOption = Annotated[Path | None, typer.Option("--json", help="Write all figures to this file too.")]
DeviceOption = Annotated[str, typer.Option(help="Where it is computed: auto, cpu, cuda or cuda:N.")]


class ProbeKind(StrEnum):
    """Which probes."""

    LINEAR = "linear"
    KNN = "knn"
    BOTH = "both"


def probe(
    teacher: Annotated[str, typer.Option(help="The teacher cache: a name that `featurestore info` lists.")],
    store: StoreArgument = None,
    kind: Annotated[ProbeKind, typer.Option(help="The linear probe, nearest neighbours, or both.")] = ProbeKind.BOTH,
    fold: Annotated[
        list[int] | None,
        typer.Option(help="A fold to hold out; several times for several.", show_default="each in turn"),
    ] = None,
    train_split: Annotated[str | None, typer.Option(help="The split to learn from.")] = None,
    test_split: Annotated[str | None, typer.Option(help="The split to be judged by.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses folds where there are none, samples, and validation.")] = 0,
    max_clips: Annotated[
        int, typer.Option(min=2, help="At most so many clips to learn from, and to be judged by.")
    ] = DEFAULT_MAX_CLIPS,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show each class's figure too.")] = False,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
) -> None:
    """How well a linear probe and nearest neighbours tell the labels from a teacher's cached embeddings.

    Example: featurestore probe data/esc50 --teacher efficientat
    """
    from featurestore.device import choose_device
    from featurestore.probe import ProbeOptions
    from featurestore.probe import probe as run_probe
    from featurestore.probetables import print_classes, print_probe

    check_outfile(json_file)
    kinds = tuple(one for one in KINDS if kind in (one, ProbeKind.BOTH))
    parts = PartOptions(tuple(fold or ()), train_split, test_split, seed)
    opened = Store(choose_store(store))
    report = run_probe(opened, teacher, ProbeOptions(kinds, parts, max_clips, choose_device(device)))
    print_probe(report)
    if per_class:
        print_classes(opened, report)
    _write_json(json_file, report.as_json())


def verify_teacher(
    model: Annotated[
        str, typer.Option(help="The teacher: beats, ast, ast-fbank, efficientat, spfa, or checkpoint for ours.")
    ],
    checkpoint: Annotated[Path | None, typer.Option(help="The file with the teacher's weights.")] = None,
    store: Annotated[
        str | None, typer.Option(help="A store with labels, by which the teacher is judged too.", show_default="none")
    ] = None,
    num_clips: Annotated[
        int, typer.Option(min=20, help="How many of the store's clips, of a tenth as many classes.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the clips.")] = 0,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Check a teacher: its file, answers, labels and, on a store's clips, accuracy. Exit status 1 when a check fails.

    Example: featurestore verify-teacher --model efficientat --checkpoint mn04_as_mAP_432.pt --store data/esc50
    """
    from featurestore.device import choose_device

    # Imported here: torchaudio takes a while, and the other commands do without it.
    from featurestore.teachercheck import check_answers, check_known_answers, check_vocabulary, describe_teacher
    from featurestore.teacherclips import check_clips
    from featurestore.teachers.registry import load_teacher

    check_outfile(json_file)
    on = choose_device(device)
    opened = Store(open_location(store)) if store is not None else None
    teacher = load_teacher(model, checkpoint).to(on)
    described = describe_teacher(teacher)
    for name, value in described.items():
        print(f"{name}: {value}")
    checks = [*check_known_answers(teacher, on), *check_answers(teacher, on), *check_vocabulary(teacher)]
    if opened is None:
        checks.append(Check("clips", None, "not looked at: give a store with labels (--store)"))
    else:
        checks += check_clips(opened, teacher, num_clips, seed)
    _print_checks(checks)
    _write_json(json_file, {"teacher": described, "checks": [asdict(check) for check in checks]})
    if failed := [check.name for check in checks if check.passed is False]:
        print(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
        raise typer.Exit(1)


def _print_checks(checks: list[Check]) -> None:
    signs = {True: "ok", False: "FAILED", None: ""}
    table = Table("", "check", "what was found")
    for check in checks:
        table.add_row("warning" if check.is_warning else signs[check.passed], check.name, check.detail)
    Console(markup=False).print(table)


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        atomic_write(path, json.dumps(content, indent=1) + "\n")
