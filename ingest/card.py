"""The dataset card: README.md of a store, in the layout that Hugging Face's hub and `datasets` read."""

import json
import re
from collections.abc import Iterable, Sequence

import pyarrow.compute as pc

from ingest.coverage import Coverage, StoreFacts, present_names
from ingest.licences import terms_of
from manifests.geometry import PatchGrid

# The split that `datasets` shows: shards mix the store's own splits, which stand in each clip's json.
HUB_SPLIT = "clips"
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
# The fields of KEY.json and their types; those that are lists apart.
LIST_FIELDS = {"labels": "string", "label_names": "string", "label_indices": "int64"}
SAMPLE_FIELDS = {
    "key": "string",
    **LIST_FIELDS,
    "split": "string",
    "fold": "int64",
    "source": "string",
    "source_sha256": "string",
    "start_ms": "int64",
    "num_frames": "int64",
}


def hog_shape(facts: StoreFacts) -> tuple[int, int, int]:
    """(patches in time, patches in frequency, orientations)"""
    grid = PatchGrid(num_frames=facts.fbank.num_frames)
    return grid.num_time, grid.num_freq, facts.hog.num_orientations


def dataset_card(facts: StoreFacts, coverage: Coverage) -> str:
    """README.md: YAML front matter, then what the store holds, what it lacks, and how it is read."""
    parts = [
        _front_matter(facts),
        _what(facts),
        _coverage(facts, coverage),
        _features(facts),
        _READING.replace("HUB_SPLIT", HUB_SPLIT),
        _licence(facts),
        _origin(facts),
    ]
    return "\n".join(parts)


def _front_matter(facts: StoreFacts) -> str:
    """The features are spelt out: `datasets` would infer them from the first clips, and stumble over a first null."""
    size = _SIZES[min(max(0, len(str(facts.num_clips)) - 3), len(_SIZES) - 1)]
    lines = ["---", f"pretty_name: {json.dumps(facts.dataset)}"]
    lines += _licence_fields(facts)
    lines += ["task_categories:", "- audio-classification", "tags:", "- audio", "- webdataset", "- fbank", "- hog"]
    lines += ["size_categories:", f"- {size}"]
    lines += [
        "configs:",
        "- config_name: default",
        "  data_files:",
        f"  - split: {HUB_SPLIT}",
        "    path: shards/*.tar",
    ]
    lines += ["dataset_info:", "  features:"]
    lines += _array("fbank.npy", (facts.fbank.num_frames, facts.fbank.num_mel_bins))
    lines += _array("hog.npy", hog_shape(facts))
    lines += ["  - name: flac", "    dtype: binary"] if facts.keep_audio else []
    lines += ["  - name: json", "    struct:"]
    for name, dtype in SAMPLE_FIELDS.items():
        lines += [f"    - name: {name}", f"      {'list' if name in LIST_FIELDS else 'dtype'}: {dtype}"]
    lines += [f"  - name: {name}\n    dtype: string" for name in ("__key__", "__url__")]
    return "\n".join([*lines, "---", ""])


def _licence_fields(facts: StoreFacts) -> list[str]:
    terms = terms_of(facts.dataset, facts.lists)
    ids = [licence.hub_id for licence in terms.licences.values()] + (["unknown"] if terms.unstated else [])
    ids = list(dict.fromkeys(ids))
    lines = [f"license: {ids[0]}"] if len(ids) == 1 else ["license:", *(f"- {hub_id}" for hub_id in ids)]
    others = [licence for licence in terms.licences.values() if licence.hub_id == "other"]
    if others:
        lines += [f"license_name: {'-and-'.join(licence.name for licence in others)}"]
        lines += [f"license_link: {', '.join(dict.fromkeys(licence.url for licence in others))}"]
    return lines


def _array(name: str, shape: Sequence[int]) -> list[str]:
    sizes = [f"        - {size}" for size in shape]
    kind = f"array{len(shape)}_d"
    return [f"  - name: {name}", "    dtype:", f"      {kind}:", "        shape:", *sizes, "        dtype: float16"]


def _what(facts: StoreFacts) -> str:
    audio = ", each clip's audio (KEY.flac)" if facts.keep_audio else ""
    return f"""# {facts.dataset}

Log-mel filter banks (KEY.fbank.npy), HOG statistics of their patches (KEY.hog.npy){audio} and labels (KEY.json) of
{facts.num_clips} clips, in {facts.num_shards} plain WebDataset tars of up to {facts.clips_per_shard} clips asked for. \
{len(facts.vocabulary)} classes; the ordered list is `vocabulary` in store.json.
The shards mix the splits: a clip's own stands in its json.
"""


def _coverage(facts: StoreFacts, coverage: Coverage) -> str:
    files = present_names(coverage.splits)
    counts = zip(coverage.splits, coverage.clips_asked.tolist(), coverage.clips_present.tolist(), files, strict=True)
    splits = [(_split(name), asked, present, f"{present / asked:.2%}", file) for name, asked, present, file in counts]
    text = f"""## What is present, and what is missing

{facts.num_clips} of the {facts.num_clips_asked} clips asked for are present. A figure computed on a part
of an official list is not comparable with one on the whole: quote both numbers.

{_table(("split", "asked for", "present", "share", "keys present"), splits)}
Per class and split: `coverage.csv`.
"""
    missing = (
        facts.clips.filter(pc.invert(facts.clips["ok"])).group_by(["split", "reason"]).aggregate([([], "count_all")])
    )
    if missing.num_rows == 0:
        return text
    ordered = missing.sort_by([("split", "ascending"), ("count_all", "descending"), ("reason", "ascending")])
    rows = [(_split(row["split"]), row["reason"], row["count_all"]) for row in ordered.to_pylist()]
    return f"{text}\nThe missing ones, by name in `missing.csv`:\n\n{_table(('split', 'reason', 'clips'), rows)}"


def _features(facts: StoreFacts) -> str:
    fbank, (time, freq, orientations) = facts.fbank, hog_shape(facts)
    size = facts.hog.cell_size
    return f"""## The features

- **fbank**: float16 ({fbank.num_frames}, {fbank.num_mel_bins}), **not normalised**. Mono, {fbank.sample_rate_hz} Hz, \
[-1, 1], less its mean; Kaldi's log-mel energies of
  {fbank.frame_length_ms} ms frames every {fbank.frame_shift_ms} ms, {fbank.window} window, {fbank.low_hz} to \
{fbank.high_hz} Hz, preemphasis {fbank.preemphasis}, htk_compat, no dither. Shorter clips are repeated to the
  window of {fbank.num_samples} samples (`num_frames` counts the frames before that), longer ones cut at a seeded \
random point.
- **hog**: float16 ({time}, {freq}, {orientations}): time, frequency, orientation. Histograms of gradient magnitude \
per {size}x{size} patch, unsigned
  orientation, not normalised by blocks, divided by {size * size}; the sum over orientations is the patch's mean \
magnitude.
- All fbank values have mean {facts.mean:.6f} and standard deviation {facts.std:.6f}; store.json has all digits. To \
normalise: `(fbank - mean) / std`
  (AST's recipe divides by twice the standard deviation).
"""


_READING = """## How to read it

The lines below run in this folder.

webdataset:

```python
import glob
import webdataset

shards = sorted(glob.glob("shards/*.tar"))
for clip in webdataset.WebDataset(shards, shardshuffle=False).decode():
    fbank, hog, about = clip["fbank.npy"], clip["hog.npy"], clip["json"]
    print(about["key"], about["split"], about["labels"], fbank.shape, hog.shape)
```

Hugging Face `datasets`; without `streaming=True` it converts all shards into its own cache first:

```python
import os
from datasets import load_dataset

folder = os.getcwd()  # "." won't do: it takes the dataset's name from the folder's
clips = load_dataset(folder, split="HUB_SPLIT", streaming=True).with_format("numpy")
for clip in clips:
    print(clip["json"]["key"], clip["fbank.npy"].shape, clip["hog.npy"].shape)
```

numpy and pyarrow, at random and without parsing a tar, normalised:

```python
import glob
import json

import numpy as np
import pyarrow.parquet as pq

with open("store.json") as file:
    store = json.load(file)
num_frames, snapshot = store["fbank"]["num_frames"], store["snapshots"][-1]
for sidecar in sorted(glob.glob("shards/*.parquet")):
    tar = sidecar.removesuffix(".parquet") + ".tar"
    for clip in pq.read_table(sidecar, columns=["key", "ok", "fbank_offset"]).to_pylist():
        if clip["ok"]:
            fbank = np.fromfile(tar, "<f2", num_frames * 128, offset=clip["fbank_offset"]).reshape(num_frames, 128)
            normalised = (fbank.astype(np.float32) - snapshot["mean"]) / snapshot["std"]
            print(clip["key"], normalised.shape)
```

Whether the files are whole:

```sh
sha256sum --quiet --check SHA256SUMS
```
"""


_NOT_STATED = """Not stated. The features derive from the recordings, whose terms apply; whoever publishes this store \
should say them
here.
"""


def _licence(facts: StoreFacts) -> str:
    terms = terms_of(facts.dataset, facts.lists)
    texts = {name: f"[{one.name}]({one.url}). {one.terms}\n" for name, one in terms.licences.items()}
    texts |= dict.fromkeys(terms.unstated, _NOT_STATED)
    if list(texts) == [facts.dataset]:
        sections = list(texts.values())
    else:
        sections = [f"Clips of {name}: {text}" for name, text in texts.items()]
        sections += [] if terms.unstated or "+" in facts.dataset else ["Clips of any other origin: not stated.\n"]
    citations = dict.fromkeys(licence.citation for licence in terms.licences.values())
    sections += ["```bibtex\n" + "\n".join(citations) + "\n```\n"] if citations else []
    return "\n".join(["## Licence\n", *sections])


def _origin(facts: StoreFacts) -> str:
    text = f"""## Origin

Snapshot {facts.snapshot}, fingerprint `{facts.fingerprint}`: a sha256 over the recipe and the shards. croissant.json \
says the same for
machines.
"""
    if facts.lists:
        text += f"\n{_table(('list', 'sha256'), sorted(facts.lists.items()))}"
    if facts.versions:
        text += f"\n{_table(('made with', 'version'), sorted(facts.versions.items()))}"
    return text


def _split(name: str | None) -> str:
    return "(none)" if name is None else name


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(_cell(value) for value in line) + " |\n" for line in lines)


def _cell(value: object) -> str:
    """Names come from users: none may end its cell or line, or start markup."""
    return re.sub(r"([\\|<>\[\]*#`])", r"\\\1", re.sub(r"\s+", " ", str(value)))
