"""Runs a typer application so that a user's mistake is one line on stderr and never a traceback."""

import sys

import typer
from rich.console import Console

from manifests.errors import InputError

EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130


def run(app: typer.Typer) -> None:
    """Runs `app` on sys.argv; exits 2 on an :class:`InputError`, 130 on Ctrl-C."""
    stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        app()
    except InputError as error:
        # Libraries' messages, quoted inside ours, may have several lines.
        stderr.print("error: " + " ".join(str(error).split()))
        sys.exit(EXIT_INPUT_ERROR)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # so typer ends on Ctrl-C
            stderr.print("interrupted: what was finished is kept; run the same command again to go on")
        raise
