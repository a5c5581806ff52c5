"""The page: HTML, style, script and data in one file. All that comes from data is escaped or put in as text."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from featurestore.pages.axes import khz_ticks, time_ticks
from featurestore.pages.survey import Survey
from featurestore.store import Store

_TEMPLATES = files("featurestore.pages")
# Inside a script element these could end it, or begin a comment.
_UNSAFE = "<>&"


def json_for_html(content: object) -> Markup:
    """JSON that is safe between script tags. Raises ValueError for NaN and infinities, which are no JSON."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in _UNSAFE:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def page_parts(
    store: Store, survey: Survey, facts: Mapping[str, Any], data: Mapping[str, Any], inline: Mapping[str, str]
) -> Iterator[str]:
    """The page's text, piece by piece. `facts`: what the template shows besides; `data`: what the script does.

    `inline`: names of clips' files and their content as data: URLs; they lie in clips/ where it is empty.
    """
    script, style = (_TEMPLATES.joinpath(name).read_text() for name in ("page.js", "page.css"))
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("featurestore.pages", "."),
    )
    environment.filters["quote"] = lambda text: quote(text, safe="")
    spec = store.file.fbank
    return environment.get_template("page.html.j2").generate(
        **facts,
        store=store,
        survey=survey,
        classes=_classes(store, survey, data["clips"]),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=json_for_html({**data, "time": time_ticks(spec), "khz": khz_ticks(spec)}),
        inline=json_for_html(inline),
    )


def _classes(store: Store, survey: Survey, clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each class how many clips were asked for, are in the store, and are on the page."""
    shown = [0] * store.num_classes
    for clip in clips:
        for label in clip["labels"]:
            shown[label] += 1
    return [
        {"id": label.id, "name": label.name, "asked": asked, "present": present, "shown": here}
        for label, asked, present, here in zip(
            store.file.vocabulary.labels, survey.asked.tolist(), survey.present.tolist(), shown, strict=True
        )
    ]
