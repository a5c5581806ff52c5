"""Recordings and sounds on both sides of a split are all found, and nothing else is."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featurestore import cli
from featurestore.leakage import Leak, find_leaks
from featurestore.store import Store
from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.clips import Clip, Sources, make_manifest
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

NO_LABELS = Vocabulary()


@dataclass(frozen=True)
class Sound:
    """A clip and its file: noise of a seed (None: silence), of so many seconds."""

    key: str
    split: str | None = None
    fold: int | None = None
    source: str = ""
    seed: int | None = 0
    duration_s: float = 0.5
    start_ms: int | None = None
    subtype: str = "PCM_16"

    @property
    def file(self) -> str:
        return self.source or f"{self.key}.wav"


def make_store(home: Path, sounds: Sequence[Sound], name: str = "s", **options: int) -> Store:
    """A store of these sounds, whose files lie in home/sounds."""
    (home / "sounds").mkdir(parents=True, exist_ok=True)
    for sound in sounds:
        noise = np.random.default_rng(sound.seed).standard_normal(round(16_000 * sound.duration_s))
        samples = np.zeros_like(noise) if sound.seed is None else 0.1 * noise
        if sound.subtype == "PCM_16":  # libsndfile rounds for each container in its own way
            samples = np.round(32768 * samples).astype(np.int16)
        if not (home / "sounds" / sound.file).exists():
            soundfile.write(home / "sounds" / sound.file, samples, 16_000, subtype=sound.subtype)
    clips = [
        Clip(
            sound.key,
            sound.file,
            start_ms=sound.start_ms,
            end_ms=None if sound.start_ms is None else sound.start_ms + 500,
            split=sound.split,
            fold=sound.fold,
        )
        for sound in sounds
    ]
    chosen = {"num_frames": 256, "clips_per_shard": 3, "num_workers": 0, **options}
    ingest(make_manifest(name, clips, NO_LABELS, home / "sounds"), home / name, IngestOptions(**chosen))  # type: ignore[arg-type]
    return Store(home / name)


def named(leaks: Sequence[Leak]) -> dict[str, list[frozenset[tuple[str, str]]]]:
    """Pairs of (part, key) by kind: which of two is told first doesn't matter."""
    found: dict[str, list[frozenset[tuple[str, str]]]] = {}
    for leak in leaks:
        pair = frozenset({(leak.part, leak.key), (leak.other_part, leak.other_key)})
        found.setdefault(leak.kind, []).append(pair)
    return found


def pair(one: str, other: str) -> frozenset[tuple[str, str]]:
    """Of PART/KEY and PART/KEY."""
    first, second = (tuple(text.rsplit("/", 1)) for text in (one, other))
    return frozenset({(first[0], first[1]), (second[0], second[1])})


def test_nothing_is_shared(tmp_path: Path) -> None:
    sounds = [Sound(f"c{number}", "eval" if number % 2 else "train", seed=number) for number in range(8)]
    assert find_leaks([make_store(tmp_path, sounds)]) == []


def test_clips_of_one_recording(tmp_path: Path) -> None:
    sounds = [
        *(Sound(f"v{start}", "train", source="v.wav", duration_s=2, start_ms=start) for start in (0, 500)),
        Sound("v1000", "eval", source="v.wav", duration_s=2, start_ms=1000),
        # Two clips of a recording in one split are no leak.
        *(Sound(f"w{start}", "eval", source="w.wav", seed=1, duration_s=2, start_ms=start) for start in (0, 500)),
        Sound("x", "train", seed=2),
    ]
    leaks = find_leaks([make_store(tmp_path, sounds)])
    found = named(leaks)
    assert list(found) == ["recording"]
    assert sorted(map(sorted, found["recording"])) == [
        [("eval", "v1000"), ("train", "v0")],
        [("eval", "v1000"), ("train", "v500")],
    ]


def test_as_many_pairs_as_clips_but_one(tmp_path: Path) -> None:
    """4 clips of one recording in train, 3 in eval: each is named, always with one of the other side."""
    sounds = [
        Sound(f"v{number}", "train" if number < 4 else "eval", source="v.wav", duration_s=4, start_ms=500 * number)
        for number in range(7)
    ]
    leaks = find_leaks([make_store(tmp_path, sounds)])
    assert [leak.kind for leak in leaks] == ["recording"] * 6
    assert all(leak.part != leak.other_part for leak in leaks)
    assert {key for leak in leaks for key in (leak.key, leak.other_key)} == {f"v{number}" for number in range(7)}


def test_equal_audio_under_two_names(tmp_path: Path) -> None:
    sounds = [
        Sound("a", "train", seed=1),
        Sound("b", "eval", seed=1),
        # In another container, with the same samples: the same fbank, bit by bit.
        Sound("c", "train", seed=2),
        Sound("d", "eval", seed=2, source="d.flac"),
        # Of the same noise, but not rounded to 16 bit: another fbank, and so no claim.
        Sound("e", "train", seed=3),
        Sound("f", "eval", seed=3, subtype="FLOAT"),
        Sound("g", "train", seed=4),
        Sound("h", "eval", seed=4, source="h.ogg", subtype="VORBIS"),
        # Twice in one split.
        Sound("i", "train", seed=5),
        Sound("j", "train", seed=5),
    ]
    found = named(find_leaks([make_store(tmp_path, sounds)]))
    assert list(found) == ["audio"]
    assert set(found["audio"]) == {pair("train/a", "eval/b"), pair("train/c", "eval/d")}
    assert len(found["audio"]) == 2


def test_a_long_file_under_two_names(tmp_path: Path) -> None:
    """Of clips longer than the window a random part is heard, another one for each key: their files tell."""
    sounds = [
        Sound("a", "train", seed=1, duration_s=4),
        Sound("b", "eval", seed=1, duration_s=4),
        Sound("c", "eval", seed=2),
    ]
    store = make_store(tmp_path, sounds)
    hashes = {store.ledger(row)["fbank_sha256"] for row in range(3)}
    assert len(hashes) == 3
    (leak,) = find_leaks([store])
    assert named([leak]) == {"file": [pair("train/a", "eval/b")]}
    assert str(leak).endswith(" are of files with the same content")


def test_silence_is_no_leak_of_sound(tmp_path: Path) -> None:
    sounds = [
        Sound("a", "train", seed=None),
        Sound("b", "eval", seed=None),
        Sound("c", "train", seed=None, duration_s=3),
        Sound("d", "eval", seed=None, duration_s=3),
        Sound("e", "train", source="quiet.wav", seed=None, start_ms=0, duration_s=2),
        Sound("f", "eval", source="quiet.wav", seed=None, start_ms=1000, duration_s=2),
    ]
    store = make_store(tmp_path, sounds)
    assert all(store.ledger(row)["silent"] for row in range(6))
    assert named(find_leaks([store])) == {"recording": [pair("train/e", "eval/f")]}


def test_failed_clips_are_nowhere(tmp_path: Path) -> None:
    sounds = [
        Sound("a", "train", source="v.wav"),
        Sound("b", "eval", source="v.wav", start_ms=9_000),
        Sound("c", "eval", seed=1),
    ]
    store = make_store(tmp_path, sounds)
    assert len(store) == 2
    assert find_leaks([store]) == []


def test_several_splits_and_folds(tmp_path: Path) -> None:
    sounds = [
        Sound("a", "train", 1, seed=1),
        Sound("b", "eval", 1, seed=1),
        Sound("c", "test", 1, seed=1),
        Sound("d", "train", 1, seed=2),
        Sound("e", "train", 2, seed=2),  # another fold of the same split: splits come first
    ]
    leaks = find_leaks([make_store(tmp_path, sounds)])
    assert len(leaks) == 2
    assert {key for leak in leaks for key in (leak.key, leak.other_key)} == {"a", "b", "c"}
    assert all(leak.part != leak.other_part for leak in leaks)
    folds = [Sound(s.key, None, s.fold, seed=s.seed) for s in sounds]
    assert named(find_leaks([make_store(tmp_path, folds, "folds")])) == {"audio": [pair("fold 1/d", "fold 2/e")]}


def test_across_stores(tmp_path: Path) -> None:
    one = make_store(tmp_path, [Sound("a", seed=1), Sound("b", seed=2)], "one")
    other = make_store(tmp_path, [Sound("c", "eval", seed=1), Sound("d", "train", source="b.wav")], "other")
    with pytest.raises(InputError, match="one has no splits or folds to compare; name a second store"):
        find_leaks([one])
    found = named(find_leaks([one, other]))
    first, second = str(one.location), str(other.location)
    assert found == {
        "recording": [pair(f"{first}/b", f"{second}: train/d")],
        "audio": [pair(f"{first}/a", f"{second}: eval/c")],
    }


def test_a_store_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its clips are on both sides, under one name: refused, as `merge` does."""
    store = make_store(tmp_path, [Sound("a", "train", seed=1), Sound("b", "eval", seed=1)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(store.root)
    for address in (str(store.root), "s", "./s/", "link"):
        with pytest.raises(InputError, match="is named twice; name different stores, or one alone"):
            find_leaks([store, Store(address)])


def test_one_video_in_two_corpora(tmp_path: Path) -> None:
    """Ids of recordings mean the same in every list, wherever their files lie; paths in two folders don't."""
    stores = []
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        for stem in ("abcdefghijk_10", "own"):
            noise = np.random.default_rng([seed, len(stem)]).standard_normal(8000) / 10
            soundfile.write(tmp_path / name / f"{stem}.wav", noise, 16_000)
        sources = Sources(kind="named_by_id", address=str(tmp_path / name))
        clip = Clip(f"{name}_clip", "abcdefghijk", 10_000, 20_000, split="train")
        options = IngestOptions(num_frames=256, num_workers=0)
        ingest(make_manifest(name, [clip], NO_LABELS, sources), tmp_path / f"{name}-store", options)
        stores.append(Store(tmp_path / f"{name}-store"))
        ingest(
            make_manifest(name, [Clip("own", "own.wav")], NO_LABELS, tmp_path / name), tmp_path / f"{name}-own", options
        )
        stores.append(Store(tmp_path / f"{name}-own"))
    (leak,) = find_leaks(stores)
    assert (leak.kind, {leak.key, leak.other_key}) == ("recording", {"one_clip", "two_clip"})


def test_a_missing_sidecar(tmp_path: Path) -> None:
    store = make_store(tmp_path, [Sound("a", "train", seed=1), Sound("b", "eval", seed=2)])
    (store.root / store.file.sidecar_name(0)).unlink()
    with pytest.raises(InputError, match="lacks the sidecar of s-000000; run `featurestore repair`"):
        find_leaks([store])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shared = [Sound(f"c{number:02d}", "eval" if number % 2 else "train", seed=number // 2) for number in range(110)]
    store = make_store(tmp_path, shared, clips_per_shard=60)

    def leakage(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["featurestore", "leakage", str(store.root), *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return end.value.code, capsys.readouterr().out.splitlines()

    status, lines = leakage()
    assert (status, len(lines)) == (1, 51)
    assert lines[-1] == f"{store.root}: 55 leaks, 55 by audio; --all prints them all"
    status, lines = leakage("--all")
    assert (status, len(lines)) == (1, 56)
    assert lines[-1] == f"{store.root}: 55 leaks, 55 by audio"
    assert (
        sum(
            line in ("c10 (train) and c11 (eval) sound the same", "c11 (eval) and c10 (train) sound the same")
            for line in lines
        )
        == 1
    )
