"""The page in a real browser: headless Chromium, from a file, without a network."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import NEEDS_CHROMIUM, dump_dom
from training.report.page import ReportOptions, write_report

pytestmark = NEEDS_CHROMIUM
# Does what a reader does, and tells the DOM what came of it; the copy that it is put into allows it to run.
PROBE = """<script>
setTimeout(() => {
  const said = document.documentElement.dataset;
  const charts = () => [...document.querySelectorAll(".chart")];
  const lines = () => charts().map((chart) => chart.querySelectorAll(".smooth").length).join();
  const first = () => document.querySelector('[data-key="loss"] .smooth').getAttribute("d");
  said.keys = charts().map((chart) => chart.dataset.key).join();
  said.lines = lines();
  said.bands = document.querySelectorAll(".band").length;
  const before = first();
  document.getElementById("log").click();
  said.logChanges = first() !== before && !first().includes("NaN");
  document.getElementById("log").click();
  said.logReturns = first() === before;
  document.getElementById("aligned").click();
  said.alignedAxis = document.querySelector('[data-key="loss"] svg').textContent.includes("100 %");
  document.getElementById("aligned").click();
  const svg = document.querySelector('[data-key="loss"] svg');
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 12, clientY: box.top + 50 }));
  said.tip = document.querySelector('[data-key="loss"] .tip').innerText;
  document.querySelector("#legend button").click();
  said.linesLeft = lines();
  document.querySelectorAll("#tabs button")[1]?.click();
  said.otherKeys = charts().map((chart) => chart.dataset.key).join();
  said.cells = [...document.querySelectorAll(".matrix rect title")].map((title) => title.textContent).join("; ");
  for (const details of document.querySelectorAll("details")) details.open = true;
  said.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  for (const image of document.images) image.loading = "eager";
}, 300);
setTimeout(() => {
  const images = [...document.images];
  document.documentElement.dataset.pictures = images.length;
  document.documentElement.dataset.drawn = images.filter((image) => image.naturalWidth > 0).length;
}, 2500);</script>"""


class Html(HTMLParser):
    """The attributes of the html element."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.said: dict[str, str | None] = {}
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            self.said = {name.removeprefix("data-"): value for name, value in attrs}


Browse = Callable[..., dict[str, str | None]]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Opens a page and gives what it said of itself; fails on any word in the console."""

    def open_page(page: Path, width: int = 1400) -> dict[str, str | None]:
        said = Html(dump_dom(page.resolve().as_uri(), tmp_path / "profile", width)).said
        assert said["ready"] == "true"
        return said

    return open_page


def probed(page: Path) -> Path:
    text, number = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert number == 1
    copy = page.with_name("probed.html")
    copy.write_text(text.replace("</body>", PROBE + "</body>"))
    return copy


def test_hostile_texts_stay_texts(finished_run: Path, tmp_path: Path, browse: Browse) -> None:
    browse(write_report([finished_run], tmp_path / "out", ReportOptions(num_clips=1)).page)


@pytest.mark.parametrize("width", [1400, 390])
def test_two_runs_wide_and_narrow(make_run: Callable[..., Path], tmp_path: Path, browse: Browse, width: int) -> None:
    one = make_run(tmp_path / "one", lines=({"stage": "iter1/multissl", "step": 6, "gradient_norm/inter_kl": 0.5},))
    two = make_run(tmp_path / "two")
    said = browse(probed(write_report([one, two], tmp_path / "out", ReportOptions(num_clips=2)).page), width)
    keys = "loss,intra_restore,inter_restore,gradient_norm,gradient_norm/inter_kl"
    assert said["keys"] == f"{keys},learning_rate,clips_per_s,data_wait_share"
    assert said["lines"] == "2,2,2,2,1,2,2,2"
    assert said["bands"] == "0"
    assert (said["log-changes"], said["log-returns"]) == ("true", "true")
    assert said["aligned-axis"] == "true"
    assert said["tip"] == "1.667 step 6, one, iter1/multissl\n1.667 step 6, two, iter1/multissl"
    assert said["lines-left"] == "1,1,1,1,0,1,1,1"
    assert said["other-keys"] == "loss,classify,gradient_norm,learning_rate,clips_per_s,data_wait_share"
    matrix = "bark taken for bark: 2 of 2; bell taken for rain: 1 of 1; rain taken for rain: 1 of 1"
    assert said["cells"] == f"{matrix}; {matrix}"
    assert said["overflow"] == "0"
    assert (said["pictures"], said["drawn"]) == ("24", "24")


def test_a_hundred_thousand_steps_are_a_small_page(tmp_path: Path, browse: Browse) -> None:
    """Points stand for 200 steps each, with a band of their extremes: the one peak is in it."""
    run = tmp_path / "run"
    run.mkdir()
    peak = 54_321
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 100_001):
            line = {"stage": "iter1/multissl", "step": step, "loss": 99.0 if step == peak else 1.0 + step % 3}
            file.write(json.dumps(line) + "\n")
    (run / "config.json").write_text("{}")
    page = write_report([run], tmp_path / "out", ReportOptions()).page
    assert page.stat().st_size < 120_000
    data = json.loads(page.read_text().partition('id="data">')[2].partition("</script>")[0])
    curve = data["tabs"][0]["lines"][0]["curves"]["loss"]
    assert max(curve["high"]) == 99.0
    assert abs(curve["x"][curve["high"].index(99.0)] - peak) <= 100
    said = browse(probed(page))
    assert (said["lines"], said["bands"], said["log-changes"]) == ("1", "1", "true")
    assert re.fullmatch(r"\d(\.\d+)?, 1 to 3 step [\d,]+", said["tip"] or "")
