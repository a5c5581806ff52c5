"""The commands that the documentation shows: found in its code blocks and in its text."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).parents[2]
PROGRAMS = ("ingest", "featurestore", "training")
# LOG.md quotes commands as they were.
PAGES = sorted(
    [
        TREE / "README.md",
        TREE / "CONTRIBUTING.md",
        *(path for path in TREE.glob("docs/**/*.md") if path.name != "LOG.md"),
    ]
)


@dataclass(frozen=True)
class Command:
    """A command of ours as a page shows it: the program and its arguments."""

    page: Path
    text: str
    program: str
    arguments: tuple[str, ...]


def code_lines(page: Path) -> list[str]:
    """The lines of a page's indented and fenced blocks, those that end in a backslash joined."""
    lines, fenced = [], False
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, in order: what they are marked as, and their content."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def shown_commands(page: Path) -> list[Command]:
    """Commands in code blocks: whole, to be run as they stand."""
    found = []
    for line in code_lines(page):
        words = _words(line)
        start = next((place for place, word in enumerate(words) if word in PROGRAMS), None)
        launched = start is not None and start > 0 and words[start - 1] == "--"
        if start == 0 or launched:
            assert start is not None
            arguments = tuple(word for word in words[start + 1 :] if word != "...")
            found.append(Command(page, line, words[start], arguments))
    return found


def quoted_commands(page: Path) -> list[Command]:
    """Commands in the text, in backticks: perhaps only the part that matters."""
    found = []
    for text in re.findall(r"`([^`\n]+)`", page.read_text()):
        words = _words(text)
        if len(words) > 1 and words[0] in PROGRAMS and re.fullmatch("[a-z][a-z0-9-]*", words[1]):
            found.append(Command(page, text, words[0], tuple(words[1:])))
    return found


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # of prose or Python
        return []
