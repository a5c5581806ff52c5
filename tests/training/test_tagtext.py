"""Tags as people read them: a name can neither break a line nor command the terminal."""

import io

import pytest
from rich.console import Console

from training.predict import Event, FileTags, Tag, WindowTags
from training.tagtext import as_lines, print_tags, printable

TAG = Tag("/m/1", "be\x1b[2Jll\n", 0.5)
SAID = FileTags("a\rb\n\x1b]0;title\x07.wav", 2.0, 1, [TAG], [WindowTags(0.0, 2.0, [TAG])], [Event(0.0, 2.0, TAG)])
NAME, LABEL = r"a\rb\n\x1b]0;title\x07.wav", r"be\x1b[2Jll\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31m\x7f\x9b", r"\x1b[31m\x7f\x9b"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("Gr\u00fcn 'a' \\\\ \u9ce5.wav", "Gr\u00fcn 'a' \\\\ \u9ce5.wav"),
    ],
)
def test_printable(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_lines() -> None:
    lines = [f"{NAME}: {LABEL} 50.0%", f"  0:00.0 - 0:02.0: {LABEL} 50.0%", f"  0:00.0 - 0:02.0  {LABEL} 50.0%"]
    assert as_lines(SAID) == "\n".join(lines) + "\n"


def test_on_a_terminal() -> None:
    text = io.StringIO()
    print_tags(Console(file=text, width=120, color_system=None), SAID, with_events=True)
    assert not set(text.getvalue()) & {"\x1b", "\r", "\x07"}
    assert text.getvalue().startswith(f"{NAME}  0:02.0, 1 window\n")
    assert text.getvalue().count(LABEL) == 3
