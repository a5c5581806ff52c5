"""The demo corpus's table: twelve kinds of synthetic sound event, so that everything runs with nothing downloaded."""

from pathlib import Path

from manifests.clips import Clip, Manifest, make_manifest
from manifests.vocabulary import Vocabulary

# Chosen in pairs that a listener could mistake for each other: clock and knock, rain and crackle, siren and whistle...
CLASSES = (
    "bark",
    "beeps",
    "bell",
    "bird",
    "clock",
    "crackle",
    "engine",
    "knock",
    "rain",
    "siren",
    "whistle",
    "wind",
)


def demo_manifest(root: Path, *, num_clips: int = 240, seed: int = 0) -> Manifest:
    """The rows of the demo corpus, dealt to the classes in turn; `ingest.synthesis` writes the sounds under `root`.

    Every fourth clip of a class is 'eval' and the others 'train': 180 and 60 by default. A smaller corpus is a subset
    of a larger one, and the vocabulary is always the whole of :data:`CLASSES`. Raises InputError when `num_clips` < 1.
    """
    clips = (_clip(CLASSES[i % len(CLASSES)], i // len(CLASSES)) for i in range(num_clips))
    where = f"a demo corpus of {num_clips} clips"
    return make_manifest("demo", clips, Vocabulary.from_names(CLASSES), root, seed=seed, where=where)


def _clip(label: str, number: int) -> Clip:
    key = f"{label}_{number:03d}"
    # The second of each four, so that a corpus of two clips a class already has both splits.
    split = "eval" if number % 4 == 1 else "train"
    return Clip(key=key, source=f"audio/{key}.wav", labels=(label,), split=split)
