"""AudioSet's 527 classes, in the order of the logits of models trained on it.

`audioset_labels.csv` is `class_labels_indices.csv` of AudioSet (Gemmeke et al., "Audio Set: An ontology and
human-labeled dataset for audio events", ICASSP 2017), unchanged, by Google Inc. under CC BY 4.0:
https://research.google.com/audioset/download.html
"""

import csv
from functools import cache
from importlib.resources import files

from manifests.vocabulary import Label, Vocabulary


@cache
def audioset_vocabulary() -> Vocabulary:
    """The 527 classes: ids are MIDs (``/m/09x0r``), names are display names (``Speech``)."""
    text = (files("manifests") / "audioset_labels.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return Vocabulary(labels=tuple(Label(id=row["mid"], name=row["display_name"]) for row in rows))
