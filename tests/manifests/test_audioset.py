"""AudioSet: the shipped labels, both layouts of its lists, what is said of bad rows, and manifests in many batches."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import clips as clips_module
from manifests.audioset import audioset_lists, audioset_manifest, audioset_vocabulary
from manifests.clips import Clip, Manifest, Sources, make_manifest
from manifests.errors import InputError
from manifests.listing import Listing
from manifests.subset import Selection

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "audioset"
SOURCES = Sources(kind="raw_cache", address="raw")
HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017",
    "# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4",
    "# YTID, start_seconds, end_seconds, positive_labels",
)
GOOGLES = (
    '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"',
    '-aE2O5G5WE_, 0.000, 9.500, "/m/03fwl"',
    'zzLK8kDqlr0, 239.800, 249.800, "/m/01m2v,/m/07qc9xj"',
)
REQUOTED = (
    '--PJHxphWEs,30,40,"/m/09x0r,/t/dd00088"',
    "-aE2O5G5WE_,0,9.5,/m/03fwl",
    'zzLK8kDqlr0,239.8,249.8,"/m/01m2v,/m/07qc9xj"',
)
GOLDEN_ORDER = ["as_zzLK8kDqlr0_000239800", "as_--PJHxphWEs_000030000", "as_-aE2O5G5WE__000000000"]
GOLDEN_HASH = "260ea7a00e391037beaf382a55852ae797b5d5845defef5ceee69159aa751b10"


def folder_of(folder: Path, labels: str | None = None, **rows_of: Iterable[str]) -> Path:
    """Lists by the first word of their file's name, and the labels."""
    folder.mkdir(exist_ok=True)
    for name, rows in rows_of.items():
        stem = {"balanced": "balanced_train", "unbalanced": "unbalanced_train", "eval": "eval"}[name]
        (folder / f"{stem}_segments.csv").write_text("".join(f"{row}\n" for row in rows))
    (folder / "class_labels_indices.csv").write_text(labels_csv() if labels is None else labels)
    return folder


def labels_csv() -> str:
    rows = [f'{index},{label.id},"{label.name}"' for index, label in enumerate(audioset_vocabulary().labels)]
    return "\n".join(["index,mid,display_name", *rows]) + "\n"


def read(folder: Path, *splits: str, skip: bool = False, selection: Selection | None = None, seed: int = 0) -> Listing:
    selection = selection or Selection()
    return audioset_manifest(folder, splits, SOURCES, selection=selection, seed=seed, skip_bad_rows=skip)


def message(folder: Path, *splits: str, selection: Selection | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, *(splits or ("eval",)), selection=selection)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_vocabulary_is_audioset_in_the_order_of_its_csv() -> None:
    vocabulary = audioset_vocabulary()
    assert len(vocabulary) == len(set(vocabulary.ids)) == len(set(vocabulary.names)) == 527
    assert (vocabulary.ids[0], vocabulary.names[0]) == ("/m/09x0r", "Speech")
    assert vocabulary.names[1] == "Male speech, man speaking"
    assert (vocabulary.ids[526], vocabulary.names[526]) == ("/m/07hvw1", "Field recording")


def test_vocabulary_is_read_once() -> None:
    assert audioset_vocabulary() is audioset_vocabulary()


@pytest.mark.parametrize(
    "rows", [(*HEADER, *GOOGLES), (*HEADER[1:], *REQUOTED), REQUOTED], ids=["google", "re", "bare"]
)
def test_both_layouts(tmp_path: Path, rows: tuple[str, ...]) -> None:
    folder = folder_of(tmp_path, eval=rows)
    listing = read(folder, "eval")
    manifest = listing.manifest
    assert {clip.source: clip for clip in manifest.clips()} == {
        "--PJHxphWEs": Clip(
            *("as_--PJHxphWEs_000030000", "--PJHxphWEs", 30_000, 40_000), ("/m/09x0r", "/t/dd00088"), "eval"
        ),
        "-aE2O5G5WE_": Clip("as_-aE2O5G5WE__000000000", "-aE2O5G5WE_", 0, 9_500, ("/m/03fwl",), "eval"),
        "zzLK8kDqlr0": Clip(
            *("as_zzLK8kDqlr0_000239800", "zzLK8kDqlr0", 239_800, 249_800), ("/m/01m2v", "/m/07qc9xj"), "eval"
        ),
    }
    assert (manifest.dataset, manifest.vocabulary, manifest.sources) == ("audioset", audioset_vocabulary(), SOURCES)
    assert [clip.key for clip in manifest.clips()] == GOLDEN_ORDER
    assert manifest.sha256 == GOLDEN_HASH
    assert listing.list_sha256 == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("eval_segments.csv", "class_labels_indices.csv")
    }
    assert (listing.num_bad_rows, listing.bad_rows) == (0, ())


def test_line_ends_marks_and_empty_lines(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, eval=())
    text = '\ufeff# a comment with a " in it\r\n\r\n#\r\n' + "\r\n".join(GOOGLES)
    (folder / "eval_segments.csv").write_bytes(text.encode())
    assert read(folder, "eval").manifest.sha256 == GOLDEN_HASH


rows_of_clips = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True),
        st.integers(0, 40_000_000),
        st.integers(1, 10_000),
        st.lists(st.sampled_from(audioset_vocabulary().ids), min_size=1, max_size=12, unique=True),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda row: row[:2],
)


@settings(max_examples=30)
@given(rows_of_clips, st.integers(0, 2**32))
def test_what_was_written_in_either_layout_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, int, list[str]]], seed: int
) -> None:
    googles = [f'{i}, {s / 1000:.3f}, {(s + n) / 1000:.3f}, "{",".join(m)}"' for i, s, n, m in rows]
    requoted = [
        f"{i},{s / 1000:.12g},{(s + n) / 1000:.12g}," + (m[0] if len(m) == 1 else f'"{",".join(m)}"')
        for i, s, n, m in reversed(rows)
    ]
    folder = tmp_path_factory.getbasetemp() / "layouts"
    manifests = [
        read(folder_of(folder, balanced=[*HEADER, *googles]), "balanced", seed=seed).manifest,
        read(folder_of(folder, balanced=requoted), "balanced", seed=seed).manifest,
    ]
    assert list(manifests[0].clips()) == list(manifests[1].clips())
    assert {(c.source, c.start_ms, c.end_ms, c.labels) for c in manifests[0].clips()} == {
        (i, s, s + n, tuple(m)) for i, s, n, m in rows
    }


BAD_ROWS = [
    ('#NAME?, 0.000, 10.000, "/m/09x0r"', "'#NAME?' is no YouTube id; expected 11 of A-Z"),
    ('PJHxphWEs, 0.000, 10.000, "/m/09x0r"', "'PJHxphWEs' is no YouTube id"),
    ('PJHxphWEs+., 0.000, 10.000, "/m/09x0r"', "'PJHxphWEs+.' is no YouTube id"),
    ('PJHxphWEsé1, 0.000, 10.000, "/m/09x0r"', "is no YouTube id"),
    (', 0.000, 10.000, "/m/09x0r"', "'' is no YouTube id"),
    ("aaaaaaaaaaa, 0.000, 10.000", "3 cells; expected 4: YouTube id, start and end in seconds, MIDs"),
    ("aaaaaaaaaaa, 0.000, 10.000, /m/09x0r,/t/dd00088", "5 cells; expected 4"),
    ('aaaaaaaaaaa, 0.000, 10.000, "/m/09x0r",', "5 cells; expected 4"),
    ('aaaaaaaaaaa, 0.000, 10.000, "/m/09x0r,/m/none"', "the label '/m/none' is none of AudioSet's 527 MIDs"),
    ('aaaaaaaaaaa, 0.000, 10.000, "Speech"', "the label 'Speech' is none of"),
    ('aaaaaaaaaaa, 0.000, 10.000, ""', "the label '' is none of"),
    ('aaaaaaaaaaa, 0.000, x, "/m/09x0r"', "the time 'x' is no number of seconds; expected one such as 30"),
    ('aaaaaaaaaaa, -1, 10, "/m/09x0r"', "the time '-1' is no number"),
    ('aaaaaaaaaaa, nan, 10, "/m/09x0r"', "the time 'nan' is no number"),
    ('aaaaaaaaaaa, 0, 1e1, "/m/09x0r"', "the time '1e1' is no number"),
    ('aaaaaaaaaaa, 0, 1234567, "/m/09x0r"', "the time '1234567' is no number"),
    ('aaaaaaaaaaa, 40.000, 30.000, "/m/09x0r"', "ends at 30.000 s, which is not after its start at 40.000 s"),
    ('aaaaaaaaaaa, 40.000, 40.0001, "/m/09x0r"', "ends at 40.0001 s, which is not after"),
    ('aaaaaaaaaaa, 0.000, 10.000, "/m/09x0r', "not CSV (unexpected end of data); check its quotes"),
    ('aaaaaaaaaaa, 0.000, 10.000, "/m/09x0r" x', "not CSV ("),
    (GOOGLES[0], "the clip as_--PJHxphWEs_000030000 is in the lists for the second time"),
    ('--PJHxphWEs, 30.0, 35.0, "/m/09x0r"', "is in the lists for the second time"),
]


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS)
def test_a_bad_row_is_named(tmp_path: Path, row: str, expected: str) -> None:
    folder = folder_of(tmp_path, eval=[*HEADER, GOOGLES[0], row, GOOGLES[1]])
    text = message(folder)
    assert text.startswith(f"{folder / 'eval_segments.csv'}, line 5: ")
    assert expected in text
    assert text.endswith("; correct the file, or leave such rows out with --skip-bad-rows")


def test_a_line_that_is_not_utf8(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, eval=())
    (folder / "eval_segments.csv").write_bytes(b"\n".join([GOOGLES[0].encode(), b"\xff" * 11 + b",0,1,/m/09x0r"]))
    assert f"{folder / 'eval_segments.csv'}, line 2: not UTF-8; correct" in message(folder)


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, eval=[*HEADER, *GOOGLES, *(row for row, _ in BAD_ROWS)])
    listing = read(folder, "eval", skip=True)
    assert listing.manifest.sha256 == GOLDEN_HASH  # a lost quote costs its own row alone
    assert listing.num_bad_rows == len(BAD_ROWS)
    assert [text.partition(": ")[0] for text in listing.bad_rows] == [
        f"{folder / 'eval_segments.csv'}, line {line}" for line in range(7, 12)
    ]
    assert "'#NAME?' is no YouTube id" in listing.bad_rows[0]


def test_nothing_but_bad_rows(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, eval=["#NAME?,0,10,/m/09x0r"])
    with pytest.raises(InputError, match=r"eval_segments\.csv has no clips"):
        read(folder, "eval", skip=True)


def test_several_splits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, balanced=GOOGLES[:1], eval=GOOGLES[1:2], unbalanced=[*HEADER, *GOOGLES[2:]])
    splits = ("eval", "balanced", "unbalanced", "eval")
    listing = read(folder, *splits)
    assert {clip.source: clip.split for clip in listing.manifest.clips()} == {
        "--PJHxphWEs": "balanced",
        "-aE2O5G5WE_": "eval",
        "zzLK8kDqlr0": "unbalanced",
    }
    assert set(listing.list_sha256) == set(audioset_lists(splits)) == {path.name for path in folder.iterdir()}
    again = folder_of(tmp_path, balanced=GOOGLES[:1], eval=[*HEADER, *REQUOTED[:1]])
    assert "eval_segments.csv, line 4: the clip as_--PJHxphWEs_000030000 is in the lists for the second" in message(
        again, "balanced", "eval"
    )


def test_the_official_addresses() -> None:
    address = "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
    assert audioset_lists(["unbalanced"]) == {
        "class_labels_indices.csv": f"{address}/class_labels_indices.csv",
        "unbalanced_train_segments.csv": f"{address}/unbalanced_train_segments.csv",
    }


def test_unknown_splits_and_missing_lists(tmp_path: Path) -> None:
    assert "--split 'train' is not known; give balanced, unbalanced or eval" in message(tmp_path, "train")
    with pytest.raises(InputError, match="no split is asked for; give balanced"):
        read(tmp_path)
    assert f"no class_labels_indices.csv in {tmp_path}; copy it there from http://storage" in message(tmp_path)
    folder = folder_of(tmp_path, eval=GOOGLES)
    assert "no balanced_train_segments.csv in" in message(folder, "eval", "balanced")


@pytest.mark.parametrize("page", ["<!DOCTYPE html>\n<html>", "\ufeff \n<html>"])
def test_files_that_are_no_lists(tmp_path: Path, page: str) -> None:
    folder = folder_of(tmp_path, eval=[page])
    first_line = page.startswith("<")
    assert ("eval_segments.csv is a web page, not a list" if first_line else "line 2: 1 cells;") in message(folder)
    assert "eval_segments.csv lists no clip; expected one a line" in message(folder_of(tmp_path, eval=HEADER))
    assert "eval_segments.csv lists no clip" in message(folder_of(tmp_path, eval=()))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "0,/m/09x0r",
            "0,/m/other",
            "line 2: index 0 is /m/other, but AudioSet has /m/09x0r there; take",
        ),
        ("1,/m/05zppz", "2,/m/05zppz", "line 3: index 2 is /m/05zppz, but AudioSet has /m/02zsn there"),
        ("1,/m/05zppz", "0,/m/09x0r", "line 3: index 0 is /m/09x0r, but"),
        ("1,/m/05zppz", "527,/m/05zppz", "line 3: index 527 is /m/05zppz, but AudioSet has 527 labels"),
        ("index,mid", "index,id", "line 1: no column 'mid'"),
        ('526,/m/07hvw1,"Field recording"\n', "", "has 526 labels, but AudioSet has 527"),
    ],
)
def test_other_labels_are_refused(tmp_path: Path, old: str, new: str, expected: str) -> None:
    csv = labels_csv()
    assert old in csv
    text = message(folder_of(tmp_path, labels=csv.replace(old, new, 1), eval=GOOGLES))
    assert "class_labels_indices.csv" in text
    assert expected in text


def test_as20k(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, balanced=GOOGLES, eval=GOOGLES)
    as20k = Selection(subset="as20k")
    assert len(read(folder, "balanced", selection=as20k).manifest) == 3
    for splits in (("eval",), ("balanced", "eval")):
        text = message(folder, *splits, selection=as20k)
        assert "as20k is AudioSet's balanced list" in text
        assert "--split balanced alone" in text


def slow_hash(manifest: Manifest) -> str:
    digest = hashlib.sha256(json.dumps([manifest.dataset, manifest.vocabulary.model_dump()]).encode())
    for row in manifest.table.to_pylist():
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


@pytest.mark.parametrize("rows_a_batch", [1, 7, 100])
def test_order_and_hash_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch, rows_a_batch: int) -> None:
    monkeypatch.setattr(clips_module, "ROWS_A_BATCH", rows_a_batch)
    random, ids = Random(3), audioset_vocabulary().ids
    odd = ['x"}, {"end_ms": 3', "\t漢\U0001d11e\\", '"}, {"', "plain"]
    clips = [
        Clip(
            key=f"{random.choice('aé漢𝄞Z_')}{number}",
            source=random.choice(odd),
            start_ms=random.choice([None, 0, 5]),
            labels=tuple(random.sample(ids, random.randint(0, 4))),
            split=random.choice([None, "eval", '"}, {"end_ms"']),
        )
        for number in range(101)
    ]
    manifest = make_manifest("seté", clips, audioset_vocabulary(), SOURCES, seed=9)
    ranked = sorted(clips, key=lambda clip: clip.key)
    assert list(manifest.clips()) == [ranked[i] for i in np.random.default_rng(9).permutation(101)]
    assert manifest.sha256 == slow_hash(manifest)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no lists of AudioSet in {REAL}")
def test_the_real_lists() -> None:
    listing = read(REAL, "balanced", "eval")
    clips = list(listing.manifest.clips())
    assert listing.num_bad_rows == 0
    assert sum(clip.split == "balanced" for clip in clips) == 22_160
    assert sum(clip.split == "eval" for clip in clips) == 20_371
    assert sum(len(clip.labels) for clip in clips if clip.split == "balanced") == 52_882  # as the list's header says
    first = next(clip for clip in clips if clip.source == "--PJHxphWEs")
    assert first == Clip(
        *("as_--PJHxphWEs_000030000", "--PJHxphWEs", 30_000, 40_000, ("/m/09x0r", "/t/dd00088"), "balanced")
    )
    # The order and the hash that manifests had when they were made a clip at a time.
    assert listing.manifest.sha256 == "539dbf9e1980830d19412198ee37ef4cf1546b10a9bf8efc5fad319d8d1cc7cc"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no lists of AudioSet in {REAL}")
def test_paper20k_of_the_real_lists() -> None:
    paper20k = read(REAL, "balanced", selection=Selection(subset="paper20k")).manifest
    fewer = read(REAL, "balanced", selection=Selection(subset="paper20k", limit=500)).manifest
    keys, some = ({clip.key for clip in manifest.clips()} for manifest in (paper20k, fewer))
    assert (len(keys), len(some)) == (20_000, 500)
    assert some < keys
    assert some == {clip.key for clip in read(REAL, "balanced", selection=Selection(limit=500)).manifest.clips()}
    other = read(REAL, "balanced", selection=Selection(subset="paper20k"), seed=1).manifest
    assert {clip.key for clip in other.clips()} != keys
