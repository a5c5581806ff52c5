"""The command `training report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are compared.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write index.html to. Default: report in the first run's folder.")
    ] = None,
    num_clips: Annotated[
        int, typer.Option("--clips", min=0, max=64, help="Held-out clips to restore, for each run.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the clips and draws their masks.")] = 0,
) -> None:
    """Write a page of one or several runs: curves, reconstructions, confusions, comparison; it needs no server.

    Example: training report runs/esc50-tiny runs/esc50-small --out report/
    """
    # Imported here: matplotlib takes a while, and the other commands do without it.
    from training.report.page import ReportOptions, write_report

    written = write_report(runs, out or runs[0] / "report", ReportOptions(num_clips, seed))
    for line in written.missing:
        print(line)
    print(f"{written.page}: runs: {written.num_runs}, warnings: {written.num_warnings}; one file")
