"""Clips that failed come into the store once they can be had: in shards of their own, behind what was published."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.child import Child
from ingest.job import ingest
from ingest.location import LocalFolder
from ingest.opening import open_book
from ingest.retry import retriable
from ingest.status import read_status
from manifests.clips import Manifest, make_manifest
from manifests.errors import InputError
from tests.ingest.stores import (
    OPTIONS,
    VOCABULARY,
    assert_sums,
    clip_of,
    contents,
    files_of,
    fingerprint,
    index_of,
    outcomes,
    store_of,
    times,
    write_sound,
)

RETRY = replace(OPTIONS, retry_failed=True)
# Stands for the decoder: stuck, crashed or itself, as a file beside it says.
HELPER = """
import os, signal, time
from pathlib import Path
from ingest import decoder_child
from ingest.child import serve

def answer(request):
    mood = Path(request["path"] + ".mood")
    if mood.exists() and mood.read_text() == "stuck":
        time.sleep(60)
    if mood.exists() and mood.read_text() == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return decoder_child.answer(request)

if __name__ == "__main__":
    serve(answer)
"""
LIMIT_S = 4.0


@pytest.fixture
def moody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a corpus whose decoder does as `KEY.wav.mood` says."""
    (tmp_path / "moody_decoder.py").write_text(HELPER)
    paths = [tmp_path, Path(__file__).parents[2]]
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, paths)))
    child = Child("moody_decoder")
    monkeypatch.setattr("ingest.decoder._child", child)
    monkeypatch.setattr("ingest.decoder.TIME_LIMIT_S", LIMIT_S)
    yield tmp_path / "sounds"
    child.close()


def counts(root: Path) -> list[tuple[int, int, int, int]]:
    """Of each snapshot: shards, rows, clips asked for, clips had."""
    return [(s.num_shards, s.num_rows, s.num_clips_asked, s.num_clips) for s in store_of(root).snapshots]


def test_a_hang_and_a_crash_become_rows_and_a_plain_run_tries_the_hang_again(moody: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    manifest = files_of(moody, [f"a{i}" for i in range(5)])
    (moody / "a1.wav.mood").write_text("stuck")
    (moody / "a3.wav.mood").write_text("crash")
    ingest(manifest, root, OPTIONS)
    assert outcomes(root) == {"a0": "ok", "a1": "timeout", "a2": "ok", "a3": "decode", "a4": "ok"}
    details = dict(zip(*(index_of(root).table[name].to_pylist() for name in ("key", "detail")), strict=True))
    assert details["a1"] == "the decoder didn't end within 4 s"
    assert details["a3"].startswith("the decoder crashed: ended by signal 11")
    for name in ("a1", "a3"):
        (moody / f"{name}.wav.mood").unlink()
    before = contents(root / "shards")
    ingest(manifest, root, OPTIONS)
    assert outcomes(root) == {"a0": "ok", "a1": "ok", "a2": "ok", "a3": "decode", "a4": "ok"}
    assert counts(root) == [(2, 5, 5, 3), (3, 6, 5, 4)]
    ingest(manifest, root, RETRY)
    assert set(outcomes(root).values()) == {"ok"}
    assert counts(root) == [(2, 5, 5, 3), (3, 6, 5, 4), (4, 7, 5, 5)]
    assert before.items() < contents(root / "shards").items()
    assert [fingerprint(root, snapshot) for snapshot in store_of(root).snapshots] == [
        snapshot.fingerprint for snapshot in store_of(root).snapshots
    ]
    assert_sums(root)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    return tmp_path / "sounds"


@pytest.fixture
def manifest(sounds: Path) -> Manifest:
    return files_of(sounds, ["a0", "a1", "a2", "a3"], bad=["b0", "b1"])


@pytest.fixture
def root(manifest: Manifest, tmp_path: Path) -> Path:
    """A store in which b0 and b1 failed."""
    ingest(manifest, tmp_path / "store", OPTIONS)
    return tmp_path / "store"


def test_what_failed_for_good_is_tried_when_the_user_says_so(manifest: Manifest, root: Path, sounds: Path) -> None:
    write_sound(sounds / "b0.wav")
    before = times(root)
    ingest(manifest, root, OPTIONS)
    ingest(manifest, root, replace(OPTIONS, append=True))
    assert times(root) == before
    store = ingest(manifest, root, RETRY)
    # Both were tried, and both have a row in the new part: one of them failed once more.
    assert [part.num_clips_asked for part in store.parts] == [6, 2]
    assert store.parts[1].wanted_sha256 == store.parts[0].wanted_sha256 == manifest.sha256
    assert counts(root) == [(2, 6, 6, 4), (3, 8, 6, 5)]
    assert outcomes(root) == {**dict.fromkeys(["a0", "a1", "a2", "a3", "b0"], "ok"), "b1": "not_audio"}
    assert_sums(root)
    after = times(root)
    for options in (OPTIONS, RETRY):
        ingest(manifest, root, options)
    assert {name for name, time in after.items() if times(root)[name] != time} <= {
        *("manifest.parquet", "store.json", "SHA256SUMS")
    }
    assert counts(root) == [(2, 6, 6, 4), (3, 8, 6, 5)]


def test_a_clip_that_was_tried_again_counts_once(manifest: Manifest, root: Path, sounds: Path) -> None:
    write_sound(sounds / "b0.wav")
    ingest(manifest, root, RETRY)
    status = read_status(LocalFolder(root))
    assert (status.num_asked, status.num_ok, status.num_failed) == (6, 5, 1)
    assert (status.reasons, sum(status.asked.values()), sum(status.present.values())) == ({"not_audio": 1}, 6, 5)
    assert (status.num_shards_done, status.store.num_shards) == (3, 3)
    assert sorted((root / "present_train.txt").read_text().split()) == ["a0", "a1", "a2", "a3", "b0"]
    assert (root / "missing.csv").read_text().count("b1") >= 1
    assert "b0" not in (root / "missing.csv").read_text()


def test_a_part_of_which_nothing_succeeds_is_dropped(manifest: Manifest, root: Path) -> None:
    before = contents(root)
    for _ in range(2):
        ingest(manifest, root, RETRY)
        assert contents(root) == before


def test_a_second_list_s_clips_are_tried_again_by_its_own_command(manifest: Manifest, root: Path, sounds: Path) -> None:
    second = files_of(sounds, ["c0", "c1"], bad=["d0"])
    append = replace(OPTIONS, append=True)
    ingest(second, root, append)
    for name in ("b0", "d0"):
        write_sound(sounds / f"{name}.wav")
    ingest(manifest, root, RETRY)
    assert outcomes(root)["b0"] == "ok"
    assert outcomes(root)["d0"] == "not_audio"
    ingest(second, root, replace(append, retry_failed=True))
    assert outcomes(root)["d0"] == "ok"
    assert counts(root) == [(2, 6, 6, 4), (3, 9, 9, 6), (4, 11, 9, 7), (5, 12, 9, 8)]
    assert_sums(root)


def test_a_retried_part_s_shard_that_is_gone_is_made_again(manifest: Manifest, root: Path, sounds: Path) -> None:
    write_sound(sounds / "b0.wav")
    ingest(manifest, root, RETRY)
    before = contents(root)
    write_sound(sounds / "b1.wav")  # settled where it failed, and in a part to come where it succeeds
    for name in ("s-000001.tar", "s-000002.parquet"):
        (root / "shards" / name).unlink()
    ingest(manifest, root, OPTIONS)
    assert contents(root) == before


def test_a_published_clip_that_can_t_be_had_any_more_leaves_the_store_as_it_was(
    manifest: Manifest, root: Path, sounds: Path
) -> None:
    name = next(
        name for name in ("s-000000", "s-000001") if b"a0.json" in (root / "shards" / f"{name}.tar").read_bytes()
    )
    tar = root / "shards" / f"{name}.tar"
    whole = tar.read_bytes()
    at = whole.index(b"a0.fbank.npy") + 2000
    tar.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 : -1])
    (sounds / "a0.wav").rename(sounds / "away")
    with pytest.raises(
        InputError, match=r"clip a0 is in s-00000\d and can't be had any more \(missing: no such file\)"
    ):
        ingest(manifest, root, OPTIONS)
    (sounds / "away").rename(sounds / "a0.wav")
    ingest(manifest, root, OPTIONS)
    assert tar.read_bytes() == whole
    assert_sums(root)


def test_which_clips_are_worth_another_try(manifest: Manifest, root: Path, sounds: Path) -> None:
    def tried(wanted: Manifest, num_rows: int = 6, **options: bool) -> list[str]:
        book = open_book(LocalFolder(root), manifest, store_of(root), append=False)
        chosen = replace(OPTIONS, **options)  # type: ignore[arg-type]
        return sorted(clip.key for clip in retriable(book, num_rows, wanted, chosen))

    assert tried(manifest) == []
    assert tried(manifest, retry_failed=True) == ["b0", "b1"]
    fewer = make_manifest("s", [clip_of("b1"), clip_of("a0"), clip_of("new")], VOCABULARY, sounds)
    assert tried(fewer, retry_failed=True) == ["b1"]
    assert tried(manifest, num_rows=0, retry_failed=True) == []
