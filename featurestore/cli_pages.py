"""The commands `featurestore inspect` and `featurestore figures`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli_info import StoreArgument
from featurestore.store import Store
from ingest.layout import choose_store
from manifests.errors import InputError


class FigureFormat(StrEnum):
    """What figures are written as."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


def inspect(
    store: StoreArgument = None,
    out: Annotated[Path, typer.Option(help="The report's folder; an earlier report in it is replaced.")] = Path(
        "report"
    ),
    num_clips: Annotated[
        int | None, typer.Option(min=1, help="Clips to show, drawn by the seed.", show_default="200")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show all clips.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the clips.")] = 0,
    audio: Annotated[bool, typer.Option(help="Put each clip's sound into the report, where it is at hand.")] = True,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher cache for tags and likenesses. Default: the first usable one.")
    ] = None,
    duplicate_cosine: Annotated[
        float, typer.Option(min=0, max=1, help="From this cosine of their embeddings on, clips are suspected twins.")
    ] = 0.995,
) -> None:
    """Write a page with pictures, sounds, labels and provenance of clips, and what failed; it needs no server.

    Example: featurestore inspect data/esc50 --out report/
    """
    # Imported here: matplotlib takes a while, and the other commands do without it.
    from featurestore.pages.report import ReportOptions, write_report

    if show_all and num_clips is not None:
        raise InputError("--all and --num-clips say different things; give one of them")
    options = ReportOptions(
        num_clips=None if show_all else num_clips or ReportOptions().num_clips,
        seed=seed,
        with_audio=audio,
        teacher=teacher,
        duplicate_cosine=duplicate_cosine,
    )
    opened = Store(choose_store(store))
    report = write_report(opened, out, options)
    what = "one file" if report.is_one_file else "with its pictures in clips/ beside it"
    print(
        f"{report.page}: {report.num_clips} of {len(opened)} clips, {report.num_with_audio} with sound, "
        f"{report.num_failures} failures, teacher {report.teacher or 'none'}; {what}"
    )


def figures(
    store: StoreArgument = None,
    out: Annotated[Path, typer.Option(help="The folder to write them to.")] = Path("figures"),
    file_format: Annotated[
        list[FigureFormat] | None, typer.Option("--format", help="May be given several times. Default: png.")
    ] = None,
    num_clips: Annotated[int, typer.Option(min=2, help="Clips that figure 5 is a statistic of.")] = 100,
    num_classes: Annotated[int, typer.Option(min=1, max=12, help="Classes that figure 7 shows.")] = 4,
    label: Annotated[
        list[str] | None, typer.Option(help="A class that figure 7 shows, by id or name; several times for several.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the clips and classes.")] = 0,
) -> None:
    """Draw the paper's figures 5 (HOG statistics) and 7 (spectrogram and HOG of several classes) from a store.

    Example: featurestore figures data/esc50 --out figures/ --format png --format pdf
    """
    from featurestore.pages.figures import FigureOptions, draw_figures

    options = FigureOptions(num_clips, num_classes, tuple(label or ()), seed)
    suffixes = tuple(f".{one.value}" for one in file_format or [FigureFormat.PNG])
    for path in draw_figures(Store(choose_store(store)), out, suffixes, options):
        print(path)
