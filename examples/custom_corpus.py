"""Ingests a corpus of one's own, whose annotations need a program: events in long recordings, several labels each.

(Where labels are folders or columns of a CSV file, `ingest folder` does it without a program.)
Run it with a new store's folder:  python examples/custom_corpus.py data/two-tones
"""

import json
import sys
from pathlib import Path

import numpy as np
import soundfile

import featurestore
from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.clips import Clip, Manifest, make_manifest
from manifests.vocabulary import Label, Vocabulary

RATE_HZ = 16000
EVENTS = [(1.0, ["low"]), (4.0, ["high"]), (7.0, ["low", "high"])]  # start in seconds, what is heard for two
TONES_HZ = {"low": 300.0, "high": 2000.0}


def write_corpus(folder: Path) -> None:
    """Stands for what you have: three recordings of ten seconds, and annotations in a format of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    times = np.arange(10 * RATE_HZ) / RATE_HZ
    for number in range(3):
        sound = 0.01 * rng.standard_normal(times.size)
        for start_s, names in EVENTS:
            heard = (times >= start_s) & (times < start_s + 2)
            sound += sum(0.2 * heard * np.sin(2 * np.pi * TONES_HZ[name] * times) for name in names)
        soundfile.write(folder / f"tape{number}.wav", sound, RATE_HZ, subtype="PCM_16")
    (folder / "events.json").write_text(json.dumps(EVENTS))


def read_corpus(folder: Path) -> Manifest:
    """What you write: a Clip for each event. Its key must be unique, and its source lies below the folder."""
    vocabulary = Vocabulary(labels=(Label(id="low", name="Low tone"), Label(id="high", name="High tone")))
    clips = [
        Clip(
            key=f"{path.stem}_{1000 * start_s:09.0f}",
            source=path.name,
            start_ms=round(1000 * start_s),
            end_ms=round(1000 * start_s) + 2000,
            labels=tuple(names),
            split="eval" if path.stem == "tape2" else "train",
        )
        for path in sorted(folder.glob("*.wav"))
        for start_s, names in json.loads((folder / "events.json").read_text())
    ]
    return make_manifest("two-tones", clips, vocabulary, folder, where=str(folder))


def main(address: str) -> None:
    folder = Path(address, "source", "tapes")  # or anywhere else: sources are no part of a store
    write_corpus(folder)
    # num_workers=None, which is the default, takes all cores. The same call again goes on where it was stopped.
    ingest(read_corpus(folder), address, IngestOptions(num_frames=256, num_workers=0))
    store = featurestore.open(address)
    for key in sorted(store):
        sample = store[key]
        loudest = sample.fbank.astype(np.float32).mean(0).argmax()
        print(f"{key}  {sample.split:5}  {', '.join(sample.label_names):20}  loudest in mel band {loudest}")


if __name__ == "__main__":
    main(sys.argv[1])
