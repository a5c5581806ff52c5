"""What a store says of itself to others is true, exact, the same every time, and read by their tools."""

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.coverage import present_names
from ingest.describe import StoreFacts, describe, described_files
from manifests.clips import SCHEMA as MANIFEST_SCHEMA
from manifests.errors import InputError
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Label, Vocabulary

VOCABULARY = Vocabulary(labels=(Label(id="/m/1", name='Rain, "heavy"'), Label(id="/m/2", name="Bark")))
# key, labels, split, reason where it is missing
CLIPS = [
    ("c", ["/m/2"], "train", None),
    ("a", ["/m/1", "/m/2"], "train", None),
    ("d", ["/m/1"], "train", "removed"),
    ("x,1", ["/m/1", "/m/1"], "eval", "private"),
    ("b", [], "eval", None),
    ("B", ["/m/2"], None, None),
    ("e", ["/m/2"], None, "removed"),
    ("f", ["/m/2"], "train", "private"),
    ("g", ["/m/2"], "train", "removed"),
]
CLIP_TYPES = pa.schema(
    [
        *(MANIFEST_SCHEMA.field(name) for name in ("key", "labels", "split", "fold")),
        pa.field("ok", pa.bool_()),
        pa.field("reason", pa.string()),
    ]
)


def table_of(clips: list[tuple[str, list[str], str | None, str | None]]) -> pa.Table:
    rows = [
        {"key": key, "labels": labels, "split": split, "fold": None, "ok": reason is None, "reason": reason}
        for key, labels, split, reason in clips
    ]
    # As a store's is: of several chunks, the later cut out of a longer one.
    whole = pa.Table.from_pylist(rows, schema=CLIP_TYPES)
    return pa.concat_tables([whole.slice(0, 4), whole.slice(4)])


FACTS = StoreFacts(
    dataset="birds",
    vocabulary=VOCABULARY,
    fbank=FbankSpec(num_frames=512),
    hog=HogSpec(),
    clips_per_shard=5,
    num_shards=2,
    num_clips=4,
    num_clips_asked=9,
    mean=-4.25,
    std=3.5,
    snapshot=2,
    fingerprint="f" * 64,
    keep_audio=True,
    tar_names=("shards/birds-000000.tar", "shards/birds-000001.tar"),
    tar_sizes=(1024, 2048),
    tar_sha256=("a" * 64, "b" * 64),
    clips=table_of(CLIPS),
    lists={"eval_segments.csv": "c" * 64},
    versions={"numpy": "2.0"},
)


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_the_files() -> None:
    assert set(describe(FACTS)) == {
        *("README.md", "croissant.json", "coverage.csv", "missing.csv"),
        *("present_eval.txt", "present_train.txt", "present_without_split.txt"),
    }
    assert described_files(FACTS) == sorted(describe(FACTS))


def test_the_same_facts_give_the_same_bytes() -> None:
    again = replace(FACTS, lists=dict(FACTS.lists), clips=table_of(CLIPS).combine_chunks())
    assert describe(again) == describe(FACTS)


def test_coverage_by_class_and_split() -> None:
    # x,1 names /m/1 twice and counts once.
    assert rows_of(describe(FACTS)["coverage.csv"]) == [
        ["id", "name", "split", "asked", "present"],
        ["/m/1", 'Rain, "heavy"', "eval", "1", "0"],
        ["/m/2", "Bark", "eval", "0", "0"],
        ["/m/1", 'Rain, "heavy"', "train", "2", "1"],
        ["/m/2", "Bark", "train", "4", "2"],
        ["/m/1", 'Rain, "heavy"', "", "0", "0"],
        ["/m/2", "Bark", "", "2", "1"],
    ]


def test_the_keys_that_are_present_and_those_that_are_missing() -> None:
    files = describe(FACTS)
    assert files["present_train.txt"] == "a\nc\n"
    assert files["present_eval.txt"] == "b\n"
    assert files["present_without_split.txt"] == "B\n"
    assert rows_of(files["missing.csv"]) == [
        ["key", "split", "reason"],
        ["x,1", "eval", "private"],
        *(["d", "train", "removed"], ["f", "train", "private"], ["g", "train", "removed"]),
        ["e", "", "removed"],
    ]


def test_a_store_without_splits_or_classes() -> None:
    clips = table_of([("b", [], None, None), ("a", [], None, None)])
    files = describe(replace(FACTS, clips=clips, vocabulary=Vocabulary(), num_clips=2, num_clips_asked=2))
    assert files["present_all.txt"] == "a\nb\n"
    assert rows_of(files["coverage.csv"]) == [["id", "name", "split", "asked", "present"]]
    assert rows_of(files["missing.csv"]) == [["key", "split", "reason"]]
    assert "missing.csv" not in files["README.md"]


def test_nothing_of_a_split_is_present() -> None:
    files = describe(replace(FACTS, clips=table_of([("b", [], "train", None), ("a", [], "eval", "removed")])))
    assert (files["present_eval.txt"], files["present_train.txt"]) == ("", "b\n")
    assert "| eval | 1 | 0 | 0.00% | present_eval.txt |" in files["README.md"]


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(InputError, match="unknown label '/m/9'"):
        describe(replace(FACTS, clips=table_of([("b", ["/m/1", "/m/9"], None, None)])))


def test_counts_against_a_slow_count() -> None:
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary.from_names(f"class{number:02d}" for number in range(20))
    clips = [
        (
            f"k{number:04d}",
            rng.choice(vocabulary.ids, rng.integers(0, 4)).tolist(),
            [None, "eval", "train"][rng.integers(3)],
            [None, None, "removed"][rng.integers(3)],
        )
        for number in rng.permutation(2000).tolist()
    ]
    files = describe(replace(FACTS, vocabulary=vocabulary, clips=table_of(clips)))
    for label, _, split, asked, present in rows_of(files["coverage.csv"])[1:]:
        having = [clip for clip in clips if label in clip[1] and (clip[2] or "") == split]
        assert (int(asked), int(present)) == (len(having), sum(clip[3] is None for clip in having))
    assert files["present_eval.txt"].split() == sorted(c[0] for c in clips if c[2] == "eval" and c[3] is None)


@pytest.mark.parametrize(
    ("splits", "names"),
    [
        ((None,), ["present_all.txt"]),
        (("all",), ["present_all.txt"]),
        (("eval", "train", None), ["present_eval.txt", "present_train.txt", "present_without_split.txt"]),
        (("../../etc/passwd",), ["present_______etc_passwd.txt"]),
        (("", "_"), ["present__.txt", "present__-bdc4e106.txt"]),
        (("Eval", "eval"), ["present_Eval.txt", "present_eval-4a794bab.txt"]),
    ],
)
def test_names_of_splits(splits: tuple[str | None, ...], names: list[str]) -> None:
    assert present_names(splits) == names


@given(st.sets(st.one_of(st.none(), st.text(max_size=80), st.sampled_from("aA/._-b")), min_size=1, max_size=8))
def test_names_of_splits_stay_in_the_folder_and_differ(splits: set[str | None]) -> None:
    named = sorted(split for split in splits if split is not None)
    names = present_names((*named, None) if None in splits else tuple(named))
    assert len({name.casefold() for name in names}) == len(splits)
    for name in names:
        assert Path(name).name == name
        assert name.isascii()
        assert name.startswith("present_")
        assert len(name) < 200


def test_users_names_dont_break_the_card() -> None:
    clips = table_of([("a", [], "x|y\n# head", "removed"), ("b", [], "<b>", None)])
    card = describe(replace(FACTS, clips=clips))["README.md"]
    (line,) = [line for line in card.splitlines() if "x\\|y" in line and "removed" not in line]
    assert line == "| x\\|y \\# head | 1 | 0 | 0.00% | present_x_y___head.txt |"
    assert "| \\<b\\> | 1 | 1 | 100.00% |" in card


@pytest.mark.parametrize(
    ("dataset", "licence", "terms"),
    [
        ("audioset", "other", "belong to those who uploaded the videos"),
        ("vggsound", "other", "belong to those who uploaded the videos"),
        ("esc50", "cc-by-nc-3.0", "not for commercial use"),
        ("esc10", "cc-by-3.0", "CC BY 3.0"),
        ("birds", "unknown", "Not stated"),
    ],
)
def test_the_licence(dataset: str, licence: str, terms: str) -> None:
    files = describe(replace(FACTS, dataset=dataset, lists={}))
    assert f"\nlicense: {licence}\n" in files["README.md"]
    assert terms in " ".join(files["README.md"].split("## Licence")[1].split())
    assert ("license" in json.loads(files["croissant.json"])) == (dataset != "birds")


CC_BY, CC_BY_NC = "https://creativecommons.org/licenses/by/4.0/", "https://creativecommons.org/licenses/by-nc/3.0/"


@pytest.mark.parametrize(
    ("dataset", "lists", "front", "of_clips", "urls", "cited"),
    [
        (
            "audioset+vggsound",
            [],
            "license: other\nlicense_name: audioset-labels-cc-by-4.0-and-vggsound-labels-cc-by-4.0\n"
            f"license_link: {CC_BY}\n",
            ["audioset: [audioset-labels-cc-by-4.0]", "vggsound: [vggsound-labels-cc-by-4.0]"],
            CC_BY,
            ["gemmeke2017audioset", "chen2020vggsound"],
        ),
        (
            "esc50+birds+audioset",
            ["eval_segments.csv"],
            f"license:\n- cc-by-nc-3.0\n- other\n- unknown\nlicense_name: audioset-labels-cc-by-4.0\n"
            f"license_link: {CC_BY}\n",
            ["esc50: [CC BY-NC 3.0]", "audioset: [audioset-labels-cc-by-4.0]", "birds: Not stated."],
            [CC_BY_NC, CC_BY],
            ["piczak2015esc", "gemmeke2017audioset"],
        ),
        (
            "dogs",
            ["class_labels_indices.csv", "balanced_train_segments.csv"],
            f"license: other\nlicense_name: audioset-labels-cc-by-4.0\nlicense_link: {CC_BY}\n",
            ["audioset: [audioset-labels-cc-by-4.0]", "any other origin: not stated."],
            CC_BY,
            ["gemmeke2017audioset"],
        ),
        (
            "both",
            ["vggsound.csv", "eval_segments.csv"],
            "license: other\nlicense_name: audioset-labels-cc-by-4.0-and-vggsound-labels-cc-by-4.0\n"
            f"license_link: {CC_BY}\n",
            [
                "audioset: [audioset-labels-cc-by-4.0]",
                "vggsound: [vggsound-labels-cc-by-4.0]",
                "any other origin: not stated.",
            ],
            CC_BY,
            ["gemmeke2017audioset", "chen2020vggsound"],
        ),
        ("esc50+esc10", [], "license:\n- cc-by-nc-3.0\n- cc-by-3.0\n", None, None, ["piczak2015esc"]),
        ("one+two", [], "license: unknown\n", ["one: Not stated.", "two: Not stated."], None, []),
    ],
)
def test_the_licences_of_merges_and_renamed_subsets(
    dataset: str, lists: list[str], front: str, of_clips: list[str] | None, urls: object, cited: list[str]
) -> None:
    files = describe(replace(FACTS, dataset=dataset, lists=dict.fromkeys(lists, "a" * 64)))
    card, croissant = files["README.md"], json.loads(files["croissant.json"])
    assert f"\n{front}task_categories:\n" in card
    section = card.split("## Licence")[1].split("## Origin")[0]
    if of_clips is not None:
        paragraphs = [line.removeprefix("Clips of ") for line in section.splitlines() if line.startswith("Clips of ")]
        assert [one for one, start in zip(paragraphs, of_clips, strict=True) if not one.startswith(start)] == []
        assert croissant.get("license") == urls
    for text in (section, croissant.get("citeAs", "")):
        assert re.findall(r"@inproceedings\{(\w+),", text) == cited


READ_CARD = """
import json
import os
from datasets import load_dataset_builder
from huggingface_hub import DatasetCard

data = DatasetCard.load("README.md").data
builder = load_dataset_builder(os.getcwd())
features = {name: repr(feature) for name, feature in builder.info.features.items()}
files = {split: list(files) for split, files in builder.config.data_files.items()}
print(json.dumps([data.to_dict(), features, files]))
"""
READ_CROISSANT = """
import json
import mlcroissant

dataset = mlcroissant.Dataset("croissant.json")
issues = dataset.metadata.ctx.issues
records = {name: list(dataset.records(name)) for name in ("clips", "coverage", "missing")}
print(json.dumps([sorted(issues.errors), sorted(issues.warnings), records], default=bytes.decode))
"""


def answer(script: str, folder: Path) -> list[object]:
    """What a script prints as JSON, run in a process of its own: other people's libraries warn."""
    environment = {"PATH": "", "HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, cwd=folder, env=environment, timeout=100, stdout=subprocess.PIPE)
    result: list[object] = json.loads(done.stdout)
    return result


@pytest.fixture
def dataset() -> str:
    return "audioset"


@pytest.fixture
def folder(dataset: str, tmp_path: Path) -> Path:
    """A folder with the description of FACTS, a manifest, and files in the shards' places."""
    for name, text in describe(replace(FACTS, dataset=dataset)).items():
        (tmp_path / name).write_text(text)
    for name in FACTS.tar_names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(10_240))
    manifest = pa.Table.from_pylist(
        [{"key": key, "source": f"{key}.wav", "labels": labels, "split": split} for key, labels, split, _ in CLIPS],
        schema=MANIFEST_SCHEMA,
    )
    pq.write_table(manifest, tmp_path / "manifest.parquet")
    return tmp_path


def test_hugging_face_reads_the_card(folder: Path) -> None:
    data, features, files = answer(READ_CARD, folder)
    assert isinstance(data, dict)
    assert isinstance(features, dict)
    assert data["pretty_name"] == "audioset"
    assert (data["license"], data["license_name"]) == ("other", "audioset-labels-cc-by-4.0")
    assert data["task_categories"] == ["audio-classification"]
    assert data["size_categories"] == ["n<1K"]
    assert features["fbank.npy"] == "Array2D(shape=(512, 128), dtype='float16')"
    assert features["hog.npy"] == "Array3D(shape=(32, 8, 9), dtype='float16')"
    assert features["flac"] == "Value('binary')"
    assert "'labels': List(Value('string'))" in features["json"]
    assert files == {"clips": [str(folder / name) for name in FACTS.tar_names]}


@pytest.mark.parametrize("dataset", ["audioset+esc50+birds"])
def test_hugging_face_reads_several_licences(folder: Path) -> None:
    data, _, _ = answer(READ_CARD, folder)
    assert isinstance(data, dict)
    assert data["license"] == ["other", "cc-by-nc-3.0", "unknown"]


@pytest.mark.parametrize(
    ("num_clips", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (2_084_320, "1M<n<10M")]
)
def test_the_size_category(num_clips: int, size: str) -> None:
    assert f"size_categories:\n- {size}\n" in describe(replace(FACTS, num_clips=num_clips))["README.md"]


@pytest.mark.parametrize("dataset", ["audioset", "audioset+esc50+birds"])
def test_mlcroissant_validates_and_reads(folder: Path) -> None:
    errors, warnings, records = answer(READ_CROISSANT, folder)
    assert errors == []
    # A date would make two stores of one recipe differ.
    assert isinstance(warnings, list)
    assert all("datePublished" in warning for warning in warnings)
    assert isinstance(records, dict)
    assert [(row["clips/key"], row["clips/labels"]) for row in records["clips"]] == [clip[:2] for clip in CLIPS]
    assert [row["coverage/present"] for row in records["coverage"]] == [0, 0, 1, 2, 0, 1]
    assert [row["missing/reason"] for row in records["missing"]] == [
        "private",
        "removed",
        "private",
        "removed",
        "removed",
    ]


def test_croissant_has_every_files_sha256(folder: Path) -> None:
    metadata = json.loads((folder / "croissant.json").read_text())
    files = {file["@id"]: file for file in metadata["distribution"] if file["@type"] == "cr:FileObject"}
    assert {name: (files[name]["sha256"], files[name]["contentSize"]) for name in FACTS.tar_names} == {
        FACTS.tar_names[0]: ("a" * 64, "1024 B"),
        FACTS.tar_names[1]: ("b" * 64, "2048 B"),
    }
    tables = files.keys() - set(FACTS.tar_names)
    assert tables == {path.name for path in folder.iterdir() if path.suffix in (".csv", ".txt")}
    sums = "".join(f"{files[name]['sha256']}  {name}\n" for name in sorted(tables))
    subprocess.run(["sha256sum", "--check", "--strict"], input=sums.encode(), check=True, cwd=folder, timeout=10)
    arrays = {
        field["@id"]: (field["dataType"], field["arrayShape"])
        for records in metadata["recordSet"]
        for field in records["field"]
        if field["name"] == "values"
    }
    assert arrays == {"fbank/values": ("cr:Float16", "512,128"), "hog/values": ("cr:Float16", "32,8,9")}
