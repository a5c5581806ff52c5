"""Subsets: draws that are parts of each other, key files, and how they go together."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import subset
from manifests.clips import Clip
from manifests.errors import InputError
from manifests.subset import EVERYTHING, Selection

IDS = [f"{number:03d}AbCd-_xY" for number in range(60)]
CLIPS = [Clip(f"as_{youtube_id}_{start:09d}", youtube_id, start) for youtube_id in IDS for start in (0, 10_000)]


def refuse(complaints: Sequence[str]) -> None:
    raise InputError("; ".join(complaints))


def chosen(selection: Selection, clips: Sequence[Clip] = CLIPS, seed: int = 0) -> set[str]:
    return {clip.key for clip in selection.choose(iter(clips), seed, refuse)}


def key_file(folder: Path, text: str) -> Selection:
    (folder / "keys.txt").write_text(text)
    return Selection(keys_file=folder / "keys.txt")


def test_everything() -> None:
    assert chosen(EVERYTHING) == {clip.key for clip in CLIPS}


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**32), st.randoms())
def test_limits_are_parts_of_each_other(one: int, two: int, seed: int, random: Random) -> None:
    shuffled = sorted(CLIPS, key=lambda _: random.random())
    smaller, larger = sorted([one, two])
    drawn = chosen(Selection(limit=smaller), shuffled, seed)
    assert len(drawn) == min(smaller, len(CLIPS))
    assert drawn <= chosen(Selection(limit=larger), CLIPS, seed)


def test_a_golden_draw() -> None:
    # The lowest of: for key in ...; do printf 0:$key | b2sum -l 128; done
    keys = ["as_001AbCd-_xY_000010000", "as_032AbCd-_xY_000010000", "as_038AbCd-_xY_000010000"]
    assert sorted(chosen(Selection(limit=3))) == keys


def test_draws_depend_on_the_seed_and_are_not_the_first() -> None:
    draws = {tuple(sorted(chosen(Selection(limit=10), seed=seed))) for seed in range(20)}
    assert len(draws) == 20
    assert len({key for draw in draws for key in draw}) > 80  # 120 x (1 - (11/12)^20) = 99 expected


def test_paper20k(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"paper20k draws 20000 clips, but only 120 are listed; ask for more splits"):
        chosen(Selection(subset="paper20k"))
    assert subset.NUM_PAPER20K == 20_000
    monkeypatch.setattr(subset, "NUM_PAPER20K", 50)
    drawn = chosen(Selection(subset="paper20k"))
    assert drawn == chosen(Selection(limit=50))
    assert chosen(Selection(subset="paper20k", limit=20)) == chosen(Selection(limit=20)) < drawn


def test_a_key_file(tmp_path: Path) -> None:
    text = f"# mine\n\n{CLIPS[0].key}  # a key\r\n{IDS[7]}\n{IDS[7]}\n  {CLIPS[14].key}\n"
    assert chosen(key_file(tmp_path, text)) == {CLIPS[0].key, CLIPS[14].key, CLIPS[15].key}


def test_a_key_file_and_a_limit(tmp_path: Path) -> None:
    selection = Selection(keys_file=key_file(tmp_path, "\n".join(IDS[:10])).keys_file, limit=5)
    drawn = chosen(selection)
    assert len(drawn) == 5
    assert drawn < {clip.key for clip in CLIPS[:20]}
    # Of those named, the draw takes what it would take of all.
    assert drawn == chosen(Selection(limit=5), CLIPS[:20])


def test_names_that_are_in_no_list(tmp_path: Path) -> None:
    selection = key_file(tmp_path, f"{IDS[0]}\n#x\nas_none\n{IDS[1].lower()}\n")
    with pytest.raises(InputError) as caught:
        chosen(selection)
    path = tmp_path / "keys.txt"
    assert str(caught.value) == (
        f"{path}, line 3: 'as_none' is in no list; {path}, line 4: '001abcd-_xy' is in no list"
    )
    heard: list[str] = []
    assert [clip.source for clip in selection.choose(CLIPS, 0, heard.extend)] == [IDS[0], IDS[0]]
    assert len(heard) == 2


def test_key_files_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"keys\.txt names no clip; write one key or YouTube id a line"):
        chosen(key_file(tmp_path, "# nothing\n\n"))
    with pytest.raises(InputError, match=r"none\.txt can't be read"):
        chosen(Selection(keys_file=tmp_path / "none.txt"))


def test_bad_selections() -> None:
    with pytest.raises(InputError, match="--limit 0 takes nothing; give 1 or more"):
        Selection(limit=0)
    with pytest.raises(InputError, match="--subset 'as2m' is not known; give as20k or paper20k"):
        Selection(subset="as2m")  # type: ignore[arg-type]


def test_as20k_is_one_list_alone() -> None:
    as20k = Selection(subset="as20k")
    as20k.check("audioset", ("balanced",))
    for dataset, splits in (("audioset", ("balanced", "eval")), ("audioset", ("eval",)), ("vggsound", ("test",))):
        with pytest.raises(InputError, match=f"as20k is AudioSet's balanced list, but {dataset}'s"):
            as20k.check(dataset, splits)
        EVERYTHING.check(dataset, splits)
