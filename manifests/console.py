"""Runs a typer application so that a user's mistake, and a place that fails, are one line and never a traceback."""

import sys

import typer
from rich.console import Console

from manifests.errors import InputError, InterruptedWorkError
from manifests.start import EXIT_INTERRUPTED

EXIT_INPUT_ERROR = 2
INTERRUPTED = "interrupted: what was finished is kept; run the same command again to go on"


def run(app: typer.Typer) -> None:
    """Runs `app` on sys.argv; exits 2 on an :class:`InputError` or OSError, 130 on Ctrl-C.

    An OSError is what goes wrong with the place where files lie: no bucket, no permission, a disk or server that is
    gone.
    """
    stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        app()
    except (InputError, OSError) as error:
        # Libraries' messages, quoted inside ours, may have several lines.
        stderr.print("error: " + " ".join(_text(error).split()))
        sys.exit(EXIT_INPUT_ERROR)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # so typer ends on Ctrl-C
            stderr.print(INTERRUPTED)
        raise
    except InterruptedWorkError as error:
        stderr.print(f"interrupted: {error}")
        sys.exit(EXIT_INTERRUPTED)
    except KeyboardInterrupt:  # before typer is at it, or behind it
        stderr.print(INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)


def _text(error: InputError | OSError) -> str:
    """The system's own errors name their file behind a number; those of object stores are a sentence already."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
