"""Where a clip's file is: by path, by the id in a file's name in all habits, in a cache of downloads."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.job import ingest
from ingest.ledger import ClipError, Reason
from ingest.location import LocalFolder
from ingest.rawcache import RawCache
from ingest.sources import NamedById, SourceFile, Unavailable, find_source, local_source, open_sources
from manifests.clips import Clip, Sources, make_manifest
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary
from tests.ingest.stores import OPTIONS, sidecar_of

ID, DASHES, WITH_Y, UNDERSCORES = "zzLK8kDqlr0", "--PJHxphWEs", "YzLK8kDqlr0", "_a_30_40_a_"
RATE_HZ = 16_000


def clip(source: str = ID, start_ms: int = 30_000, end_ms: int = 40_000) -> Clip:
    return Clip(f"as_{source}_{start_ms:09d}", source, start_ms, end_ms)


def folder_of(root: Path, *names: str) -> NamedById:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return NamedById(root)


def found(root: Path, wanted: Clip, *names: str) -> tuple[str, bool | None]:
    file = folder_of(root, *names).find(wanted)
    assert file.location == str(root)
    return file.name, file.is_cut


@pytest.mark.parametrize("source", [ID, DASHES, WITH_Y, UNDERSCORES])
@pytest.mark.parametrize(
    ("habit", "is_cut"),
    [
        ("{}.m4a", None),
        ("Y{}.wav", None),
        ("{}_30.flac", True),
        ("{}_30.0.opus", True),
        ("{}_30.000_40.000.ogg", True),
        ("Y{}_30_40.webm", True),
        ("{}_30000_40000.wav", True),
        ("Y{}_30000.mkv", True),
        ("{}_000030.mp4", True),
        ("{}_000030000.MP3", True),
        ("balanced/0/{}.M4A", None),
    ],
)
def test_every_habit(tmp_path: Path, source: str, habit: str, is_cut: bool | None) -> None:
    name = habit.format(source)
    others = ("aaaaaaaaaaa.wav", "bbbbbbbbbbb_30.wav", f"{source}_7.wav")
    assert found(tmp_path, clip(source), name, *others) == (name, is_cut)


@pytest.mark.parametrize(
    "name",
    [
        f"{ID}_31.wav",
        f"{ID}_30.5.wav",
        f"{ID}_3000.wav",
        f"{ID}x.wav",
        f"x{ID}.wav",
        f"{ID}_a.wav",
        f"{ID}.txt",
        f"{ID}.wav.part",
        f"{ID.lower()}.wav",
    ],
)
def test_what_is_another_clip_or_no_clip(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, name, "aaaaaaaaaaa.wav")
    with pytest.raises(ClipError) as caught:
        folder.find(clip())
    assert caught.value.reason is Reason.MISSING
    other_start = name.startswith(f"{ID}_3")
    expected = f"no file of {ID} starts there, only {name}" if other_start else f"no file is named by {ID}"
    assert caught.value.detail == expected


def test_half_seconds_and_a_start_at_zero(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, f"{ID}_0.wav", f"{ID}_239.8.wav", f"{ID}_1500.wav")
    assert folder.find(clip(start_ms=0)).name == f"{ID}_0.wav"
    assert folder.find(clip(start_ms=239_800)).name == f"{ID}_239.8.wav"
    assert folder.find(clip(start_ms=1500)).name == f"{ID}_1500.wav"


def test_a_name_that_says_the_start_is_preferred(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, f"{ID}.wav", f"{ID}_30.wav")
    assert folder.find(clip()) == SourceFile(str(tmp_path), f"{ID}_30.wav", is_cut=True)
    assert folder.find(clip(start_ms=60_000)) == SourceFile(str(tmp_path), f"{ID}.wav", is_cut=None)


def test_both_readings_of_a_name_that_begins_with_y(tmp_path: Path) -> None:
    """Twelve characters with a Y in front are one id alone; eleven may be an id, or nothing."""
    folder = folder_of(tmp_path, f"Y{ID}.wav", f"{WITH_Y}_30.wav", f"Y{WITH_Y}_60.wav")
    assert folder.find(clip()).name == f"Y{ID}.wav"
    assert folder.find(clip(WITH_Y)).name == f"{WITH_Y}_30.wav"
    assert folder.find(clip(WITH_Y, 60_000)).name == f"Y{WITH_Y}_60.wav"


def test_a_time_is_not_taken_for_a_part_of_the_id(tmp_path: Path) -> None:
    name = "Yabcdefghij_30_40.wav"  # of Yabcdefghij, and not of abcdefghij_ with a Y in front
    folder = folder_of(tmp_path, name, "Yabcdefghij_.wav")
    assert folder.find(clip("Yabcdefghij")).name == name
    assert folder.find(clip("abcdefghij_")).name == "Yabcdefghij_.wav"


def test_the_first_by_name_is_taken_of_several(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, f"b/{ID}.wav", f"a/{ID}.wav", f"a/{ID}.flac")
    assert folder.find(clip()).name == f"a/{ID}.flac"


def test_a_folder_without_such_names_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no file named by a YouTube id \(such as ID\.m4a"):
        folder_of(tmp_path, "dog.wav", f"{ID}.csv")
    with pytest.raises(InputError, match="none is no folder; give the folder that holds the files"):
        open_sources(Sources(kind="named_by_id", address=str(tmp_path / "none")))


def write_ramp(path: Path, duration_s: float, first: int = 0) -> None:
    """A sample's value times 2**20 is its number in the recording."""
    samples = np.arange(first, first + round(duration_s * RATE_HZ), dtype=np.float32) / 2**20
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")


def test_cuts_and_whole_recordings_in_one_folder(tmp_path: Path) -> None:
    """Two clips of one recording, one that was cut out, and one of each kind whose name tells nothing."""
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    write_ramp(sounds / f"{ID}.wav", 12.0)
    write_ramp(sounds / f"{DASHES}_6000_8000.wav", 2.0)
    write_ramp(sounds / f"Y{WITH_Y}.wav", 2.1)
    write_ramp(sounds / f"{UNDERSCORES}.wav", 9.0)
    clips = [
        clip(ID, 1000, 3000),
        clip(ID, 9000, 11_000),
        clip(DASHES, 6000, 8000),
        clip(WITH_Y, 6000, 8000),
        clip(UNDERSCORES, 6000, 8000),
        clip("ccccccccccc", 0, 2000),
        clip(DASHES, 7000, 9000),
    ]
    manifest = make_manifest("s", clips, Vocabulary(), Sources(kind="named_by_id", address=str(sounds)))
    ingest(manifest, tmp_path / "s", OPTIONS)
    rows = {row["key"]: row for shard in range(3) for row in sidecar_of(tmp_path / "s", shard).ledger.to_pylist()}
    started = {key: (row["crop_start_ms"], row["clip_start_ms"]) for key, row in rows.items() if row["ok"]}
    assert started == {
        f"as_{ID}_000001000": (1000, 1000),
        f"as_{ID}_000009000": (9000, 9000),
        f"as_{DASHES}_000006000": (0, 0),
        f"as_{WITH_Y}_000006000": (0, 0),
        f"as_{UNDERSCORES}_000006000": (6000, 6000),
    }
    # A ramp's mean says where in it the window lies.
    rms = {key: row["rms"] * 2**20 / RATE_HZ for key, row in rows.items() if row["ok"]}
    assert rms[f"as_{ID}_000009000"] == pytest.approx(10.0, rel=0.01)
    assert rms[f"as_{UNDERSCORES}_000006000"] == pytest.approx(7.0, rel=0.01)
    assert rms[f"as_{DASHES}_000006000"] == pytest.approx(np.sqrt(4 / 3), rel=0.01)
    assert {key: row["detail"] for key, row in rows.items() if not row["ok"]} == {
        "as_ccccccccccc_000000000": "no file is named by ccccccccccc",
        f"as_{DASHES}_000007000": f"no file of {DASHES} starts there, only {DASHES}_6000_8000.wav",
    }


def test_files_by_path(tmp_path: Path) -> None:
    sources = open_sources(Sources(kind="files", address=str(tmp_path)))
    file = find_source(sources, Clip("a", "x/a.wav"))
    assert file == SourceFile(str(tmp_path), "x/a.wav", is_cut=False)
    with local_source(file) as path:
        assert path == tmp_path / "x" / "a.wav"
    with pytest.raises(ClipError, match="the path leaves"), local_source(SourceFile(str(tmp_path), "../a.wav")):
        pass


def test_downloads(tmp_path: Path) -> None:
    cache = RawCache(LocalFolder(tmp_path / "raw"))
    (tmp_path / "media.webm").write_bytes(b"sound")
    kept = cache.add(ID, tmp_path / "media.webm", "251")
    (tmp_path / "media.webm").write_bytes(b"sound")
    cache.add(WITH_Y, tmp_path / "media.webm", "251")
    cache.drop(WITH_Y)
    cache.fail(DASHES, Reason.PRIVATE, "it is private")
    sources = open_sources(Sources(kind="raw_cache", address=str(tmp_path / "raw")))
    assert kept.file is not None
    sha256 = hashlib.sha256(b"sound").hexdigest()
    assert find_source(sources, clip()) == SourceFile(str(tmp_path / "raw"), kept.file, is_cut=False, sha256=sha256)
    assert find_source(sources, clip(DASHES)) == Unavailable(Reason.PRIVATE, "it is private")
    assert find_source(sources, clip(WITH_Y)) == Unavailable(Reason.MISSING, "its download was not kept (--no-raw)")
    assert find_source(sources, clip(UNDERSCORES)) == Unavailable(Reason.MISSING, f"{UNDERSCORES} was never fetched")
