"""A folder of the user's own: labels, keys, folds and splits, and what is said when something doesn't fit."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.clips import MAX_KEY_BYTES, Clip, Manifest
from manifests.errors import InputError
from manifests.folder import AUDIO_EXTENSIONS, FolderOptions, _automatic_key, _with_keys, folder_manifest, passed_over
from manifests.folder import _Entry as Entry

URBANSOUND = Path(__file__).parents[2].parent / "shared" / "data" / "urbansound"


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def by_key(manifest: Manifest) -> dict[str, Clip]:
    return {clip.key: clip for clip in manifest.clips()}


def hash8(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def with_csv(root: Path, text: str) -> FolderOptions:
    make(root, "a.wav", "b.wav", "sub/c.wav")
    path = root / "labels.csv"
    path.write_text(text)
    return FolderOptions(labels_csv=path)


def message(root: Path, options: FolderOptions) -> str:
    with pytest.raises(InputError) as caught:
        folder_manifest(root, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_are_the_files_folders(tmp_path: Path) -> None:
    root = make(tmp_path / "My sounds", "dog/a b.wav", "deep/cat/x.OGG", "cat/.h.wav", ".git/y.wav", "cat/readme.md")
    manifest = folder_manifest(root)
    assert manifest.dataset == "My_sounds"
    assert manifest.vocabulary.ids == ["cat", "dog"]
    assert by_key(manifest) == {
        "dog_a_b": Clip("dog_a_b", "dog/a b.wav", labels=("dog",)),
        "deep_cat_x": Clip("deep_cat_x", "deep/cat/x.OGG", labels=("cat",)),
    }


def test_every_extension_is_found(tmp_path: Path) -> None:
    make(tmp_path, *(f"x/{extension}.{extension}" for extension in AUDIO_EXTENSIONS))
    assert len(folder_manifest(tmp_path)) == len(AUDIO_EXTENSIONS) == 30


def test_no_labels_and_a_file_in_the_root(tmp_path: Path) -> None:
    make(tmp_path, "-a.wav")
    assert "a.wav lies in no folder that could be its label; put it in one, or use --labels none" in message(
        tmp_path, FolderOptions()
    )
    manifest = folder_manifest(tmp_path, FolderOptions(labels="none", dataset="mine"))
    assert (manifest.dataset, len(manifest.vocabulary)) == ("mine", 0)
    assert by_key(manifest) == {"_a": Clip("_a", "-a.wav")}


def test_an_empty_folder(tmp_path: Path) -> None:
    text = message(make(tmp_path, "notes.txt"), FolderOptions())
    assert f"{tmp_path} has no audio files; looked for wav, flac, ogg, " in text
    assert text.endswith("tta: is it the right folder?")


def test_keys_that_would_be_the_same_get_a_hash(tmp_path: Path) -> None:
    make(tmp_path, "x/a b.wav", "x/a_b.wav", "x/c.wav", "x/c.ogg", "x/d.wav")
    keys = {clip.source: clip.key for clip in folder_manifest(tmp_path).clips()}
    assert keys.pop("x/d.wav") == "x_d"
    # Paths without the extension differ in one pair and are the same in the other.
    assert keys == {
        name: f"{stem}_{hash8(name)}"
        for name, stem in (("x/a b.wav", "x_a_b"), ("x/a_b.wav", "x_a_b"), ("x/c.wav", "x_c"), ("x/c.ogg", "x_c"))
    }


def test_a_long_key_is_shortened(tmp_path: Path) -> None:
    name = f"{'x' * 60}/{'y' * 60}.wav"
    (key,) = by_key(folder_manifest(make(tmp_path, name)))
    assert key == f"{'x' * 60}_{'y' * 20}_{hash8(name)}"
    assert len(key) == MAX_KEY_BYTES


@given(st.lists(st.text("ab -./é", min_size=1, max_size=120).filter(lambda s: s.strip("./ ")), unique=True, max_size=8))
def test_automatic_keys_are_good_and_distinct(sources: list[str]) -> None:
    keys = [clip.key for clip in _with_keys([Entry("", Clip("", source)) for source in sources])]
    assert len(set(keys)) == len(sources)
    assert all(
        len(key) <= MAX_KEY_BYTES and not key.startswith("-") and set(key) <= set("ab-_0123456789cdef") for key in keys
    )
    assert _automatic_key(Clip("", "a/b.c.wav", start_ms=1500)) == "a_b_c_000001500"


def test_a_csv_gives_everything(tmp_path: Path) -> None:
    options = with_csv(
        tmp_path,
        "path,labels,split,fold,key,start_s,end_s\n"
        'a.wav,"dog; cat;dog",train,1,mine,,\n'
        "a.wav,dog,train,2,,1.5,3\n"
        "sub/../sub/c.wav,,test,3,,,2.25\n",
    )
    manifest = folder_manifest(tmp_path, options)
    assert by_key(manifest) == {
        "mine": Clip("mine", "a.wav", None, None, ("dog", "cat"), "train", 1),
        "a_000001500": Clip("a_000001500", "a.wav", 1500, 3000, ("dog",), "train", 2),
        "sub_c_000000000": Clip("sub_c_000000000", "sub/c.wav", None, 2250, (), "test", 3),
    }
    assert manifest.vocabulary.ids == ["cat", "dog"]


def test_two_cuts_from_one_start_differ_in_hash(tmp_path: Path) -> None:
    options = with_csv(tmp_path, "file,label,start_s,end_s\na.wav,x,1,2\na.wav,x,1,3\na.wav,x,,\n")
    hashes = {f"a_000001000_{hash8('a.wav:1000:2000')}", f"a_000001000_{hash8('a.wav:1000:3000')}"}
    assert set(by_key(folder_manifest(tmp_path, options))) == {"a", *hashes}


def test_a_given_key_is_kept_beside_an_automatic_one(tmp_path: Path) -> None:
    options = with_csv(tmp_path, "file,label,key\na.wav,x,b\nb.wav,x,\n")
    assert {clip.source: clip.key for clip in folder_manifest(tmp_path, options).clips()} == {
        "a.wav": "b",
        "b.wav": f"b_{hash8('b.wav')}",
    }


def test_label_is_taken_whole_and_another_column_split(tmp_path: Path) -> None:
    options = with_csv(tmp_path, "file,label,tags\na.wav,x;y,p;q\n")
    assert by_key(folder_manifest(tmp_path, options))["a"].labels == ("x;y",)
    options = FolderOptions(labels_csv=options.labels_csv, label_column="tags")
    assert by_key(folder_manifest(tmp_path, options))["a"].labels == ("p", "q")
    options = FolderOptions(labels_csv=options.labels_csv, labels="none")
    assert by_key(folder_manifest(tmp_path, options))["a"].labels == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,label\na.wav,x\n", "1: no column 'file', 'filename' or 'path'; found, separated by commas: 'name' and "),
        ("name,label\na.wav,x\n", "name the column that is meant with --file-column"),
        ("file,class\na.wav,x\n", "no column 'label' or 'labels'; found, separated by commas: 'file' and 'class'; "),
        ("file,class\na.wav,x\n", "name the column that is meant with --label-column"),
        ("file,label\n../a.wav,x\n", "line 2: '../a.wav' leads out of "),
        ("file,label,fold\na.wav,x,one\n", "line 2: fold is 'one'; expected a whole number"),
        ("file,label,start_s\na.wav,x,-1\n", "line 2: start_s is '-1'; expected seconds from 0 on"),
        ("file,label,end_s\na.wav,x,long\n", "line 2: end_s is 'long'; expected seconds from 0 on"),
        ("file,label,start_s,end_s\na.wav,x,2,2\n", "line 2: the clip ends at 2000 ms, which is not after its start"),
        ("file,label,fold\na.wav,x,1\nb.wav,x,\n", "line 3: no fold, which other lines have; give all lines one"),
        ("file,label,split\na.wav,x,\nb.wav,x,test\n", "line 2: no split, which other lines have"),
        ("file,label\na.wav,x\nb.wav,x\nsub/../a.wav,y\n", "line 4: the same clip as "),
        ("file,label\na.wav,x\nb.wav,x\nsub/../a.wav,y\n", "labels.csv, line 2 (a.wav); remove one"),
        ("file,label,key\na.wav,x,k\nb.wav,x,k\n", "line 3: the same key as "),
        ("file,label,key\na.wav,x,k\nb.wav,x,k\n", "labels.csv, line 2 (k); remove one"),
        ("file,label,key\na.wav,x,a.b\n", "labels.csv: 'a.b' (of a.wav) can't be a key"),
        ("file,label\nnone.wav,x\n", "none.wav ("),
        ("file,label\nnone.wav,x\na.wav,x\n", "1 of 2 files are missing or unreadable: "),
        ("file,label\nsub,x\n", "1 of 1 files are missing or unreadable: "),
    ],
)
def test_a_bad_csv(tmp_path: Path, text: str, expected: str) -> None:
    found = message(tmp_path, with_csv(tmp_path, text))
    assert expected in found
    assert str(tmp_path / "labels.csv") in found


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = with_csv(tmp_path, "clip,class,part,group\na.wav,x,train,1\nb.wav,y,test,2\n").labels_csv
    options = FolderOptions(
        labels_csv=path, file_column="clip", label_column="class", split_column="part", fold_column="group"
    )
    clip = by_key(folder_manifest(tmp_path, options))["b"]
    assert (clip.labels, clip.split, clip.fold) == (("y",), "test", 2)
    options = FolderOptions(labels_csv=path, file_column="clip", label_column="class", fold_column="fold")
    assert "no column 'fold'; found" in message(tmp_path, options)
    with pytest.raises(InputError, match="give its CSV file with --labels-csv"):
        FolderOptions(label_column="class")


def test_patterns_over_paths(tmp_path: Path) -> None:
    make(tmp_path, "train/dog/1-a.wav", "test/dog/5-b.wav")
    options = FolderOptions(split_pattern=r"^(train|test)/", fold_pattern=r"/(\d)-[^/]*$")
    clips = by_key(folder_manifest(tmp_path, options))
    assert {key: (clip.split, clip.fold) for key, clip in clips.items()} == {
        "train_dog_1-a": ("train", 1),
        "test_dog_5-b": ("test", 5),
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("(", "--fold-pattern '(' is no regular expression: "),
        (r"\d", "has no group; put (...) around the part that is meant"),
        (r"(\d+)x", r"dog/1a.wav: --fold-pattern '(\\d+)x' finds nothing in 'dog/1a.wav'; correct the pattern"),
        ("([a-z]+)", "dog/1a.wav: the group of --fold-pattern is 'dog'; expected a whole number"),
    ],
)
def test_a_bad_pattern(tmp_path: Path, pattern: str, expected: str) -> None:
    assert expected in message(make(tmp_path, "dog/1a.wav"), FolderOptions(fold_pattern=pattern))


def test_a_vocabulary_fixes_the_order(tmp_path: Path) -> None:
    root, vocabulary = make(tmp_path / "root", "dog/a.wav", "cat/b.wav"), tmp_path / "vocabulary.txt"
    options = FolderOptions(vocabulary_file=vocabulary)
    vocabulary.write_bytes(b"\xef\xbb\xbfdog\r\n\r\ncow\r\ncat\r\n")
    assert folder_manifest(root, options).vocabulary.ids == ["dog", "cow", "cat"]
    vocabulary.write_text("dog\ncow\n")
    assert f"cat/b.wav: the label 'cat' is none of the 2 in {vocabulary}; add it there, or" in message(root, options)
    vocabulary.write_text("dog\ncat\ndog\n")
    assert f"{vocabulary}, line 3: 'dog' is on line 1 already; remove one" in message(root, options)


@pytest.mark.skipif(not URBANSOUND.is_dir(), reason=f"no UrbanSound clips in {URBANSOUND}")
def test_the_real_urbansound_clips() -> None:
    options = FolderOptions(labels_csv=URBANSOUND / "labels.csv", label_column="category", dataset="urbansound")
    manifest = folder_manifest(URBANSOUND / "audio", options)
    clips = by_key(manifest)
    assert len(clips) == 1761
    assert set(Counter(clip.fold for clip in clips.values())) == {1, 2}
    assert len(manifest.vocabulary) == 10
    assert clips["101415-3-0-2"] == Clip("101415-3-0-2", "101415-3-0-2.ogg", labels=("dog_bark",), fold=1)


def test_files_that_are_no_audio_by_their_names_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/one.wav", "a/two.WAV", "a/notes.txt", "b.TXT", "plain", ".hidden.txt"):
        (tmp_path / name).touch()
    assert passed_over(tmp_path) == {".txt": 2, "": 1}
