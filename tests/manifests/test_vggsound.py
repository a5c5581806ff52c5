"""VGGSound: its classes, the official list and the test list, and what is said of bad rows."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.clips import Clip, Sources
from manifests.errors import InputError
from manifests.listing import Listing
from manifests.subset import Selection
from manifests.vggsound import VGGSOUND_LISTS, vggsound_manifest, vggsound_vocabulary

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "vggsound"
SOURCES = Sources(kind="named_by_id", address="/videos")
OFFICIAL = (
    "---g-f_I2yQ,1,people marching,test",
    "glLQrEijrKg,300,playing hammond organ,train",
    'glLQrEijrKg,310,"bee, wasp, etc. buzzing",test',
)
TEST_LIST = ("---g-f_I2yQ_000001.mp4,people marching", 'glLQrEijrKg_000310.mp4,"bee, wasp, etc. buzzing"')
MARCHING = Clip("vgg_---g-f_I2yQ_000001000", "---g-f_I2yQ", 1_000, 11_000, ("people marching",), "test")
ORGAN = Clip("vgg_glLQrEijrKg_000300000", "glLQrEijrKg", 300_000, 310_000, ("playing hammond organ",), "train")
BEE = Clip("vgg_glLQrEijrKg_000310000", "glLQrEijrKg", 310_000, 320_000, ("bee, wasp, etc. buzzing",), "test")


def folder_of(folder: Path, *rows: str, name: str = "vggsound.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{row}\r\n" for row in rows))
    return folder


def read(folder: Path, *splits: str, skip: bool = False, seed: int = 0) -> Listing:
    return vggsound_manifest(folder, splits, SOURCES, seed=seed, skip_bad_rows=skip)


def message(folder: Path, *splits: str) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, *splits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def clips_of(listing: Listing) -> dict[str, Clip]:
    return {clip.key: clip for clip in listing.manifest.clips()}


def test_the_vocabulary() -> None:
    vocabulary = vggsound_vocabulary()
    assert len(vocabulary) == len(set(vocabulary.ids)) == 309
    assert vocabulary.ids == vocabulary.names == sorted(vocabulary.names)
    assert (vocabulary.ids[0], vocabulary.ids[-1]) == ("air conditioning noise", "zebra braying")
    assert "bee, wasp, etc. buzzing" in vocabulary.ids


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["test"], [MARCHING, BEE]),
        (["train"], [ORGAN]),
        (["test", "train"], [MARCHING, ORGAN, BEE]),
    ],
)
def test_the_official_list(tmp_path: Path, splits: list[str], expected: list[Clip]) -> None:
    listing = read(folder_of(tmp_path, *OFFICIAL), *splits)
    assert clips_of(listing) == {clip.key: clip for clip in expected}
    manifest = listing.manifest
    assert (manifest.dataset, manifest.vocabulary, manifest.sources) == ("vggsound", vggsound_vocabulary(), SOURCES)
    digest = hashlib.sha256((tmp_path / "vggsound.csv").read_bytes()).hexdigest()
    assert listing.list_sha256 == {"vggsound.csv": digest}
    assert listing.num_bad_rows == 0


@pytest.mark.parametrize("name", ["vggsound_test.csv", "test.csv"])
def test_the_test_list(tmp_path: Path, name: str) -> None:
    listing = read(folder_of(tmp_path, *TEST_LIST, name=name), "test")
    assert clips_of(listing) == {clip.key: clip for clip in (MARCHING, BEE)}
    assert list(listing.list_sha256) == [name]
    assert listing.manifest.sha256 == read(folder_of(tmp_path / "all", *OFFICIAL), "test").manifest.sha256


def test_a_list_for_each_split(tmp_path: Path) -> None:
    folder_of(tmp_path, *TEST_LIST, name="vggsound_test.csv")
    folder_of(tmp_path, *TEST_LIST, "and this is not read", name="test.csv")
    text = message(tmp_path, "train", "test")
    assert text.startswith(f"no vggsound.csv in {tmp_path}; copy it there from {VGGSOUND_LISTS['vggsound.csv']}")
    folder_of(tmp_path, OFFICIAL[1], name="vggsound_train.csv")
    listing = read(tmp_path, "train", "test")
    assert clips_of(listing) == {clip.key: clip for clip in (MARCHING, ORGAN, BEE)}
    assert set(listing.list_sha256) == {"vggsound_train.csv", "vggsound_test.csv"}


rows_of_clips = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True),
        st.integers(0, 999_999),
        st.sampled_from(vggsound_vocabulary().ids),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda row: row[:2],
)


@given(rows_of_clips, st.integers(0, 2**32))
def test_what_was_written_in_either_layout_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, str]], seed: int
) -> None:
    official = [f'{i},{start},"{label}",test' for i, start, label in rows]
    files = [f'{i}_{start:06d}.mp4,"{label}"' for i, start, label in reversed(rows)]
    base = tmp_path_factory.getbasetemp()
    one = read(folder_of(base / "official", *official), "test", seed=seed).manifest
    two = read(folder_of(base / "files", *files, name="vggsound_test.csv"), "test", seed=seed).manifest
    assert list(one.clips()) == list(two.clips())
    assert {(c.source, c.start_ms, c.labels) for c in one.clips()} == {(i, s * 1000, (label,)) for i, s, label in rows}


BAD_ROWS = [
    ("#NAME?,1,people marching,test", "'#NAME?' is no YouTube id"),
    ("---G-f_I2y,1,people marching,test", "'---G-f_I2y' is no YouTube id"),
    ("aaaaaaaaaaa,1,people marching", "3 cells; expected 4: YouTube id, start second, label (in quotes), split"),
    ("aaaaaaaaaaa,1,bee, wasp, etc. buzzing,test", "6 cells; expected 4"),
    ("aaaaaaaaaaa,1,people marching,test,", "5 cells; expected 4"),
    ("aaaaaaaaaaa,1,People marching,test", "the label 'People marching' is none of VGGSound's 309 classes"),
    ("aaaaaaaaaaa,1,,test", "the label '' is none of"),
    ("aaaaaaaaaaa,-1,people marching,test", "the time '-1' is no number of seconds"),
    ("aaaaaaaaaaa,1,people marching,eval", "the split is 'eval'; expected train or test"),
    ('aaaaaaaaaaa,1,"people marching,test', "not CSV (unexpected end of data)"),
    (OFFICIAL[0], "the clip vgg_---g-f_I2yQ_000001000 is in the lists for the second time"),
    ("---g-f_I2yQ,1,people crowd,train", "vgg_---g-f_I2yQ_000001000 is in the lists for the second time"),
]
BAD_TEST_ROWS = [
    ("#NAME?_000300.mp4,people marching", "'#NAME?' is no YouTube id"),
    ("aaaaaaaaaa_000300.mp4,people marching", "'aaaaaaaaaa' is no YouTube id"),
    ("aaaaaaaaaaa.mp4,people marching", "'aaaaaaaaaaa.mp4' is no file name such as glLQrEijrKg_000300.mp4"),
    ("aaaaaaaaaaa_300.mp4,people marching", "'aaaaaaaaaaa_300.mp4' is no file name"),
    ("aaaaaaaaaaa_000300.mp4", "1 cells; expected 4: YouTube id, start second, label (in quotes), split, or 2: ID"),
    ("aaaaaaaaaaa_000300.mp4,bee, wasp", "3 cells; expected 4"),
    ("aaaaaaaaaaa_000300.mp4,dog", "the label 'dog' is none of"),
]


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS)
def test_a_bad_row_of_the_official_list(tmp_path: Path, row: str, expected: str) -> None:
    # Whichever split it is of: the damaged cell may be the one that says so.
    text = message(folder_of(tmp_path, OFFICIAL[0], row, *OFFICIAL[1:]), "train")
    assert text.startswith(f"{tmp_path / 'vggsound.csv'}, line 2: ")
    assert expected in text
    assert text.endswith("; correct the file, or leave such rows out with --skip-bad-rows")


@pytest.mark.parametrize(("row", "expected"), BAD_TEST_ROWS)
def test_a_bad_row_of_the_test_list(tmp_path: Path, row: str, expected: str) -> None:
    text = message(folder_of(tmp_path, *TEST_LIST, row, name="vggsound_test.csv"), "test")
    assert text.startswith(f"{tmp_path / 'vggsound_test.csv'}, line 3: ")
    assert expected in text


def test_file_names_in_a_list_that_tells_no_split(tmp_path: Path) -> None:
    assert "line 1: 2 cells; expected 4" in message(folder_of(tmp_path, *TEST_LIST), "test")


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    listing = read(folder_of(tmp_path, *OFFICIAL, *(row for row, _ in BAD_ROWS)), "test", skip=True)
    assert clips_of(listing) == {clip.key: clip for clip in (MARCHING, BEE)}
    assert listing.num_bad_rows == len(BAD_ROWS)
    assert [text.partition(": ")[0] for text in listing.bad_rows] == [
        f"{tmp_path / 'vggsound.csv'}, line {line}" for line in range(4, 9)
    ]


def test_what_can_not_be_asked_for(tmp_path: Path) -> None:
    folder_of(tmp_path, *OFFICIAL)
    assert "--split 'eval' is not known; give train or test" in message(tmp_path, "eval")
    with pytest.raises(InputError, match=r"as20k is AudioSet's balanced list, but vggsound's test was asked for"):
        vggsound_manifest(tmp_path, ["test"], SOURCES, selection=Selection(subset="as20k"))
    with pytest.raises(InputError, match=r"vggsound\.csv \(test\) has no clips"):
        read(folder_of(tmp_path, OFFICIAL[1]), "test")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no lists of VGGSound in {REAL}")
def test_the_real_test_list() -> None:
    listing = read(REAL, "test")
    clips = list(listing.manifest.clips())
    assert (len(clips), listing.num_bad_rows) == (15_446, 0)
    assert {clip.split for clip in clips} == {"test"}
    counts = Counter(label for clip in clips for label in clip.labels)
    assert (len(counts), counts["bee, wasp, etc. buzzing"], min(counts.values())) == (309, 50, 49)
    assert (
        Clip("vgg_glLQrEijrKg_000300000", "glLQrEijrKg", 300_000, 310_000, ("playing hammond organ",), "test") in clips
    )
    # The order and the hash that manifests had when they were made a clip at a time.
    assert listing.manifest.sha256 == "b00850f3ce1854cd123fc1734b555c8f5eabd8167dd2923c6a933ee841562cdc"
