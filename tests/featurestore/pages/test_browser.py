"""The page in a real browser: headless Chromium, from a file, without a server."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from featurestore.pages import report as report_module
from featurestore.pages.report import Report, ReportOptions, write_report
from featurestore.store import Store
from tests.browser import NEEDS_CHROMIUM, dump_dom

pytestmark = NEEDS_CHROMIUM
# Tells the DOM what only a running page knows; the copy that it is put into allows it to run.
PROBE = """<script>
setTimeout(() => document.getElementById("clips").scrollIntoView(), 300);
setTimeout(() => {
  const said = document.documentElement.dataset;
  const sound = document.querySelector("audio");
  said.plays = sound.src && sound.canPlayType("audio/mpeg");
  said.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const near = [...document.images].filter((image) => image.getBoundingClientRect().top < innerHeight);
  said.pictures = near.length;
  said.drawn = near.filter((image) => image.naturalWidth > 0).length;
}, 1500);</script>"""


class Lists(HTMLParser):
    """Keys of the elements with a data-key, by the id of the list that they are in, and the html element's data."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.keys: dict[str, list[str]] = {}
        self.html: dict[str, str | None] = {}
        self.images: list[str] = []
        self.text: list[str] = []
        self._list = ""
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "html":
            self.html = found
        if tag == "img":
            self.images.append(found["src"] or "")
        if tag in ("ol", "ul"):
            self._list = found.get("id") or self._list
        if "data-key" in found:
            self.keys.setdefault(self._list, []).append(found["data-key"] or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


Browse = Callable[..., Lists]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Opens a page, browse(page, "class=dog", width=...), and gives its DOM; fails on any word in the console."""

    def open_page(page: Path, state: str = "", width: int = 1400) -> Lists:
        found = Lists(dump_dom(f"{page.resolve().as_uri()}#{state}", tmp_path / "profile", width))
        assert found.html["data-ready"] == "true"
        return found

    return open_page


def probed(page: Path, copy: Path) -> Path:
    """A copy of the page's folder whose page says how it looks."""
    shutil.copytree(page.parent, copy)
    text, number = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert number == 1
    (copy / "index.html").write_text(text.replace("</body>", PROBE + "</body>"))
    return copy / "index.html"


def test_all_cards_and_no_word_in_the_console(report: Report, shown_store: Store, browse: Browse) -> None:
    found = browse(report.page)
    assert sorted(found.keys["clip-list"]) == sorted(shown_store.keys(shown_store.rows()))
    assert sorted(found.keys["failure-list"]) == ["broken", "gone"]
    assert "pwned" in "".join(found.text)  # the hostile label is there, as text: nothing of it ran or was loaded
    assert "x" not in found.images


@pytest.mark.parametrize(
    ("state", "clips", "failures"),
    [
        ("class=dog", ["clip00", "clip03", "clip06"], ["broken"]),
        ("class=RAIN&split=train", ["clip04", "clip07", "twin"], ["gone"]),
        ("q=clip01", ["clip01"], []),
        ("reason=missing", [], ["gone"]),
        ("q=twin.wav", ["twin"], []),
        ("class=nothing", [], []),
    ],
)
def test_filters(report: Report, browse: Browse, state: str, clips: list[str], failures: list[str]) -> None:
    found = browse(report.page, state)
    assert sorted(found.keys.get("clip-list", [])) == clips
    assert sorted(found.keys.get("failure-list", [])) == failures


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("max_inline_bytes", [20 << 20, 0])
def test_pictures_and_sounds_in_wide_and_narrow_windows(
    shown_store: Store,
    tmp_path: Path,
    browse: Browse,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    max_inline_bytes: int,
) -> None:
    """In one file or beside it, all pictures near the window are drawn, sounds can be played, nothing sticks out."""
    monkeypatch.setattr(report_module, "MAX_INLINE_BYTES", max_inline_bytes)
    written = write_report(shown_store, tmp_path / "report", ReportOptions())
    found = browse(probed(written.page, tmp_path / "probed"), "class=dog", width=width)
    assert found.html["data-overflow"] == "0"
    assert int(found.html["data-pictures"] or 0) >= 7  # a card's, at least
    assert found.html["data-drawn"] == found.html["data-pictures"]
    assert found.html["data-plays"] in ("maybe", "probably")
    assert all(image.startswith("data:image/" if max_inline_bytes else "clips/") for image in found.images)


def test_thousands_of_clips_make_few_elements(report: Report, tmp_path: Path, browse: Browse) -> None:
    """The page makes cards as they come near the window: 5,000 clips, and only the first few dozen are there."""
    text = report.page.read_text()
    head, rest = text.split('id="data">', 1)
    content, tail = rest.split("</script>", 1)
    data = json.loads(content)
    clip = data["clips"][0]
    data["clips"] = [{**clip, "key": f"clip-{number}", "near": []} for number in range(5000)]
    data["duplicates"] = []
    page = tmp_path / "many" / "index.html"
    page.parent.mkdir()
    page.write_text(f'{head}id="data">{json.dumps(data).replace("<", chr(92) + "u003c")}</script>{tail}')
    found = browse(page)
    assert 24 <= len(found.keys["clip-list"]) <= 96
    assert found.keys["clip-list"][0] == "clip-0"
    assert browse(page, "q=clip-4999").keys["clip-list"] == ["clip-4999"]
