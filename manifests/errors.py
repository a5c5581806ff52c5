"""The one error a user sees."""


class InputError(Exception):
    """Something the user gave is wrong: the message says what, where, what was expected and what to do.

    The command line prints it after ``error:`` and exits with status 2, without a traceback.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, in the one line that fits into a message of ours."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class InterruptedWorkError(Exception):
    """Ctrl-C where the usual line, that what was finished is kept, wouldn't be true; the message says what is."""
