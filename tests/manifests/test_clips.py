"""Manifests and vocabularies: a shuffle of the set and the seed alone, a steady hash, what makes a key."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from manifests.clips import MAX_KEY_BYTES, Clip, Manifest, Sources, make_manifest
from manifests.errors import InputError
from manifests.vocabulary import Label, Vocabulary

VOCABULARY = Vocabulary(labels=(Label(id="/m/1", name="Dog"), Label(id="/m/0", name="Cat, wild")))
CLIPS = [
    Clip("a", "x/a.wav", labels=("/m/0", "/m/1")),
    Clip("b", "x/b.wav", start_ms=0, end_ms=10_000, split="eval"),
    Clip("é_@=,+", "x/c d.wav", start_ms=30_000, fold=5),
]
ROOT = Path("/data")
GOLDEN_ORDER = list("cedgfabh")
GOLDEN_HASH = "5385770c83a4c4b474570d2ad8b89c364ab187049bd873ea117f83591e4ed83a"

keys = st.text(st.characters(exclude_characters="./\\:", exclude_categories=["C", "Z"]), min_size=1, max_size=20)
good_keys = keys.filter(lambda key: not key.startswith("-"))
clip_lists = st.lists(
    st.builds(
        Clip,
        key=good_keys,
        source=st.text(st.characters(codec="utf-8")),
        start_ms=st.none() | st.integers(0, 1000),
        end_ms=st.none() | st.integers(1001, 2000),
        labels=st.lists(st.sampled_from(VOCABULARY.ids), unique=True).map(tuple),
        split=st.none() | st.sampled_from(["train", "test"]),
        fold=st.none() | st.integers(0, 9),
    ),
    min_size=1,
    unique_by=lambda clip: clip.key,
)


def manifest_of(clips: list[Clip], seed: int = 0) -> Manifest:
    return make_manifest("set", clips, VOCABULARY, ROOT, seed=seed)


@given(clip_lists, st.randoms(), st.integers(0, 2**32))
def test_the_shuffle_depends_on_the_set_and_the_seed_alone(clips: list[Clip], random: Random, seed: int) -> None:
    shuffled = sorted(clips, key=lambda _: random.random())
    manifest = manifest_of(clips, seed)
    assert list(manifest.clips()) == list(manifest_of(shuffled, seed).clips())
    assert sorted(clip.key for clip in manifest.clips()) == sorted(clip.key for clip in clips)
    assert {clip.key: clip for clip in manifest.clips()} == {clip.key: clip for clip in clips}


def test_seeds_give_different_orders() -> None:
    clips = [Clip(f"k{i:02d}", "a.wav") for i in range(40)]
    orders = {tuple(clip.key for clip in manifest_of(clips, seed).clips()) for seed in range(5)}
    assert len(orders) == 5


def test_a_golden_order() -> None:
    assert [clip.key for clip in manifest_of([Clip(key, "a.wav") for key in "abcdefgh"]).clips()] == GOLDEN_ORDER


def test_ranges_of_rows() -> None:
    manifest = manifest_of(CLIPS)
    everything = list(manifest.clips())
    assert len(manifest) == len(everything) == 3
    assert list(manifest.clips(1)) == everything[1:]
    assert list(manifest.clips(1, 2)) == everything[1:2]
    assert list(manifest.clips(2, 99)) == everything[2:]
    assert list(manifest.clips(99)) == []


def test_the_hash_is_steady() -> None:
    manifest = manifest_of(CLIPS)
    assert manifest.sha256 == GOLDEN_HASH
    assert make_manifest("set", CLIPS, VOCABULARY, Path("/moved")).sha256 == GOLDEN_HASH
    in_batches = pa.concat_tables([manifest.table.slice(0, 1), manifest.table.slice(1)])
    assert replace(manifest, table=in_batches).sha256 == GOLDEN_HASH


@pytest.mark.parametrize(
    "changed",
    [
        replace(CLIPS[1], key="bb"),
        replace(CLIPS[1], source="x/B.wav"),
        replace(CLIPS[1], start_ms=None),
        replace(CLIPS[1], end_ms=10_001),
        replace(CLIPS[1], labels=("/m/1",)),
        replace(CLIPS[1], split=None),
        replace(CLIPS[1], fold=0),
    ],
)
def test_the_hash_feels_every_field(changed: Clip) -> None:
    assert manifest_of([CLIPS[0], changed, CLIPS[2]]).sha256 != GOLDEN_HASH


def test_the_hash_feels_the_dataset_the_vocabulary_and_the_order() -> None:
    others = [
        make_manifest("other", CLIPS, VOCABULARY, ROOT),
        make_manifest("set", CLIPS, Vocabulary(labels=VOCABULARY.labels[::-1]), ROOT),
        make_manifest("set", CLIPS, Vocabulary.from_names(VOCABULARY.ids), ROOT),
        replace(manifest_of(CLIPS), table=manifest_of(CLIPS).table.take([2, 1, 0])),
    ]
    assert len({GOLDEN_HASH, *(other.sha256 for other in others)}) == 5


@pytest.mark.parametrize("key", ["", "-a", "a.b", "a/b", "a\\b", "a:b", "a b", "a\n", "a\0", "k" * 91, "é" * 46])
def test_a_bad_key(key: str) -> None:
    with pytest.raises(InputError, match=r"list\.csv: .* \(of a\.wav\) can't be a key: a key has 1 to 90 bytes"):
        make_manifest("set", [Clip(key, "a.wav")], VOCABULARY, ROOT, where="list.csv")


@pytest.mark.parametrize("key", ["a", "a-", "as_--PJHxphWEs_000030000", "k" * MAX_KEY_BYTES, "é" * 45])
def test_a_good_key(key: str) -> None:
    assert next(manifest_of([Clip(key, "a.wav")]).clips()).key == key


def test_a_key_twice_names_both_clips() -> None:
    with pytest.raises(InputError, match=r"the key 'k' stands for two clips, a\.wav and b\.wav; .*: rename one"):
        manifest_of([Clip("k", "a.wav"), Clip("j", "c.wav"), Clip("k", "b.wav")])


def test_other_bad_clips() -> None:
    with pytest.raises(InputError, match="the list has no clips; at least one is needed"):
        manifest_of([])
    with pytest.raises(InputError, match="clip a ends at 5 ms, which is not after its start"):
        manifest_of([Clip("a", "a.wav", start_ms=5, end_ms=5)])
    with pytest.raises(InputError, match="clip a ends at 0 ms"):
        manifest_of([Clip("a", "a.wav", end_ms=0)])
    with pytest.raises(InputError, match="clip a starts at -1 ms; expected 0 or later"):
        manifest_of([Clip("a", "a.wav", start_ms=-1)])
    with pytest.raises(InputError, match=r"clip a \(a\.wav\): unknown label '/m/9'; the vocabulary has 2 labels: /m/1"):
        manifest_of([Clip("a", "a.wav", labels=("/m/0", "/m/9"))])


@pytest.mark.parametrize("kind", ["files", "named_by_id", "raw_cache"])
def test_where_sources_are_is_no_part_of_the_hash(kind: Any) -> None:
    sources = Sources(kind=kind, address="s3://bucket/raw")
    manifest = make_manifest("set", CLIPS, VOCABULARY, sources)
    assert (manifest.sha256, manifest.sources) == (GOLDEN_HASH, sources)
    assert manifest_of(CLIPS).sources == Sources(kind="files", address="/data")
    assert manifest_of(CLIPS).root == ROOT
    with pytest.raises(ValidationError, match="kind"):
        Sources(kind="tapes", address="/")  # type: ignore[arg-type]


def test_a_vocabulary() -> None:
    assert Vocabulary.from_names(["b", "a", "b"]).ids == ["a", "b"]
    assert VOCABULARY.names == ["Dog", "Cat, wild"]
    assert VOCABULARY.position == {"/m/1": 0, "/m/0": 1}
    assert VOCABULARY.indices(["/m/0", "/m/1"]) == [1, 0]
    assert (len(VOCABULARY), len(Vocabulary())) == (2, 0)
    # `position` is cached in the object, which must not show in comparisons.
    assert VOCABULARY.model_copy(deep=True) == VOCABULARY == Vocabulary(labels=VOCABULARY.labels)
    with pytest.raises(InputError, match=r"names the label id 'a' twice; ids must be unique"):
        Vocabulary(labels=(Label(id="a", name="x"), Label(id="a", name="y")))
