"""AudioSet from its lists to a store: from a folder of files, and through real yt-dlp from a server on loopback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ingest.book import Book, read_parts
from ingest.index import read_index
from ingest.job import rebuild
from ingest.layout import read_store_file
from ingest.location import LocalFolder
from ingest.rawcache import RawCache
from ingest.throttle import Backoff, BlockGuard
from manifests.audioset import audioset_vocabulary
from manifests.errors import InputError
from tests.ingest.audio_writers import Track, mux, sound
from tests.ingest.badserver import BadServer
from tests.ingest.stores import Outcome, Run, assert_sums, contents, outcomes, parts_of, sidecar_of, store_of, times

DASHES, WITH_Y, THIRD, GONE = "--PJHxphWEs", "YzLK8kDqlr0", "aE2O5G5WE_0", "gonegonegon"
# Two clips of one recording, and one of each other; the recordings are 4 s long.
EVAL = ((DASHES, 0.5), (DASHES, 2.0), (WITH_Y, 1.0), (THIRD, 0.0), (GONE, 1.0))
KEYS = {f"as_{recording}_{round(1000 * start_s):09d}": recording for recording, start_s in EVAL}
GOOD = {key for key, recording in KEYS.items() if recording != GONE}
FAST = ("--num-frames", 256, "--clips-per-shard", 2, "--rate", "inf", "--downloads", 1)


def row(recording: str, start_s: float) -> str:
    return f'{recording}, {start_s:.3f}, {start_s + 1.5:.3f}, "/m/09x0r,/m/05zppz"'


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("recordings")
    for number, recording in enumerate((DASHES, WITH_Y, THIRD)):
        mux(folder / f"{recording}.m4a", Track(sound(4.0, 44_100, start_s=4.0 * number), "aac", 44_100))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """The lists of AudioSet as a user would have them."""
    folder = tmp_path / "lists"
    folder.mkdir()
    labels = [f'{index},{label.id},"{label.name}"' for index, label in enumerate(audioset_vocabulary().labels)]
    (folder / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *labels]) + "\n")
    (folder / "eval_segments.csv").write_text("".join(f"{row(*clip)}\n" for clip in EVAL))
    (folder / "balanced_train_segments.csv").write_text(f"{row(THIRD, 2.0)}\n{row(WITH_Y, 2.0)}\n")
    return folder


@pytest.fixture
def server(recordings: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ingest.fetching.Backoff", partial(Backoff, base_s=0.02))
    with BadServer(dict(recordings)) as server:
        yield server


class Ingest:
    """Runs `ingest audioset` on the server, and says what it asked for."""

    def __init__(self, run: Run, lists: Path, server: BadServer) -> None:
        self._run, self._lists, self.server = run, lists, server

    def __call__(self, *options: object, split: str = "eval", workers: int = 0, code: int = 0) -> Outcome:
        self.server.asked.clear()
        source = f"{self.server.url}/mood/{{id}}.m4a"
        corpus = ("audioset", "--split", split, "--metadata", self._lists, "--source", source)
        done = self._run(*corpus, *FAST, "--workers", workers, *options)
        assert done.code == code, done.err
        return done

    @property
    def asked(self) -> set[str]:
        """The recordings that were asked for."""
        return {path.rpartition("/")[2].removesuffix(".m4a") for path in self.server.asked}


@pytest.fixture
def ingest(run: Run, lists: Path, server: BadServer) -> Ingest:
    return Ingest(run, lists, server)


def test_downloads_to_a_store(ingest: Ingest, tmp_path: Path, recordings: dict[str, bytes]) -> None:
    made = ingest("--store", "s")
    root = tmp_path / "s"
    assert made.out.startswith("s: 4 of 5 clips in 3 shards, snapshot 1, mean ")
    assert outcomes(root) == {key: "ok" if key in GOOD else "removed" for key in KEYS}
    # A look at it and the file itself: no more for two clips than for one.
    assert {recording: ingest.server.asked.count(f"/mood/{recording}.m4a") for recording in (DASHES, WITH_Y)} == {
        DASHES: 2,
        WITH_Y: 2,
    }
    for shard in range(3):
        for entry in sidecar_of(root, shard).ledger.to_pylist():
            if entry["ok"]:
                start_ms = int(entry["key"].rpartition("_")[2])
                assert (entry["crop_start_ms"], entry["clip_start_ms"]) == (start_ms, start_ms)
                assert entry["num_frames"] == 148  # of 1.5 s
                assert entry["codec"].startswith("aac")
            else:
                assert entry["detail"] == "HTTP status 404 Not Found"
    cache = RawCache(LocalFolder(root / "raw"))
    for recording in (DASHES, WITH_Y, THIRD):
        entry = cache.find(recording)
        assert entry is not None
        assert (root / "raw" / str(entry.file)).read_bytes() == recordings[f"{recording}.m4a"]
    (part,) = store_of(root).parts
    assert set(part.lists) == {"eval_segments.csv", "class_labels_indices.csv"}
    assert store_of(root).drop_silent
    assert str(tmp_path) not in (root / "store.json").read_text()
    assert_sums(root)

    before = times(root)
    assert ingest("--store", "s").out == made.out
    assert (ingest.asked, times(root)) == (set(), before)

    # Other features need no second download, also in another store on the same cache.
    ingest("--store", "t", "--raw", "s/raw", "--keep-audio")
    assert ingest.asked == set()
    assert outcomes(tmp_path / "t") == outcomes(root)
    # What is gone for good is asked for again when the user says so.
    ingest("--store", "t", "--raw", "s/raw", "--keep-audio", "--retry-failed")
    assert ingest.asked == {GONE}


def test_a_second_split_asks_only_for_what_is_new(ingest: Ingest, tmp_path: Path) -> None:
    ingest("--store", "s")
    shards = contents(tmp_path / "s" / "shards")
    ingest("--store", "s", "--append", split="balanced")
    assert ingest.asked == set()  # its recordings are those of other clips
    assert [part.num_clips_asked for part in store_of(tmp_path / "s").parts] == [5, 2]
    assert {clip.split for clip in parts_of(tmp_path / "s")[1].clips()} == {"balanced"}
    assert shards.items() < contents(tmp_path / "s" / "shards").items()
    assert_sums(tmp_path / "s")


def test_what_may_pass_is_tried_at_once_and_in_later_runs(ingest: Ingest, tmp_path: Path) -> None:
    ingest.server.moods = {f"{WITH_Y}.m4a": "status/500", f"{THIRD}.m4a": "status/403"}
    ingest("--store", "s", "--max-failures", 0.9)
    root = tmp_path / "s"
    tries = ingest.server.asked.count(f"/mood/{WITH_Y}.m4a")
    assert tries >= 4
    reasons = {key: outcomes(root)[key] for key in KEYS if KEYS[key] not in (DASHES, GONE)}
    assert reasons == {f"as_{WITH_Y}_000001000": "network", f"as_{THIRD}_000000000": "forbidden"}
    ingest.server.moods = {f"{THIRD}.m4a": "status/403"}
    ingest("--store", "s")
    assert ingest.asked == {WITH_Y, THIRD}
    assert {key for key, outcome in outcomes(root).items() if outcome == "ok"} == GOOD - {f"as_{THIRD}_000000000"}
    assert [snapshot.num_clips for snapshot in store_of(root).snapshots] == [2, 3]
    assert store_of(root).parts[1].num_clips_asked == 1  # what can't be had yet gets no row
    ingest.server.moods = {}
    ingest("--store", "s")
    assert [snapshot.num_clips for snapshot in store_of(root).snapshots] == [2, 3, 4]
    assert outcomes(root) == {key: "ok" if key in GOOD else "removed" for key in KEYS}
    assert_sums(root)
    ingest("--store", "s")
    assert ingest.asked == set()


def test_a_block_pauses_and_goes_on(ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockGuard, "FIRST_PAUSE_S", 0.05)
    ingest.server.moods = {f"{WITH_Y}.m4a": "busy"}
    ingest("--store", "s")
    assert sorted(outcomes(tmp_path / "s").values()) == ["ok", "ok", "ok", "rate_limited", "removed"]
    state = RawCache(LocalFolder(tmp_path / "s" / "raw")).read_state()
    assert state["num_blocks"] == 2  # in a row: something was fetched after the first one
    monkeypatch.setattr(BlockGuard, "LONGEST_PAUSE_S", 0.05)
    ingest.server.moods = {}
    ingest("--store", "s")
    assert [snapshot.num_clips for snapshot in store_of(tmp_path / "s").snapshots] == [3, 4]


def test_a_server_that_refuses_all_ends_the_run(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockGuard, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(BlockGuard, "MAX_BLOCKS", 2)
    ingest.server.moods = {f"{name}.m4a": "busy" for name in (DASHES, WITH_Y, THIRD)}
    refused = ingest("--store", "s", code=2)
    assert "the server has refused 2 times in a row" in refused.err
    assert not store_of(tmp_path / "s").snapshots


def rebuild_all(location: LocalFolder) -> None:
    store = read_store_file(location)
    book = Book(location, store, read_parts(location, store), read_index(location))
    rebuild(book, range(store.num_shards), num_workers=0)


def test_downloads_that_aren_t_kept(ingest: Ingest, tmp_path: Path) -> None:
    ingest("--store", "kept")
    ingest("--store", "s", "--no-raw")
    root = tmp_path / "s"
    assert {Path(name).suffix for name in contents(root / "raw") if name != ".lock"} == {".json"}
    assert contents(root / "shards") == contents(tmp_path / "kept" / "shards")
    ingest("--store", "s", "--no-raw")
    assert ingest.asked == set()
    tar = next(path for path in (root / "shards").glob("*.tar") if f"as_{WITH_Y}".encode() in path.read_bytes())
    whole = tar.read_bytes()
    tar.unlink()
    # A repair asks no server: what was dropped is said to be.
    with pytest.raises(InputError, match=r"its download was not kept \(--no-raw\)"):
        rebuild_all(LocalFolder(root))
    ingest("--store", "s", "--no-raw")
    assert WITH_Y in ingest.asked
    assert GONE not in ingest.asked
    assert tar.read_bytes() == whole
    assert not list((root / "raw").rglob("*.m4a"))


def test_clips_that_an_unfinished_store_holds_are_not_fetched_again(ingest: Ingest, tmp_path: Path) -> None:
    ingest("--store", "whole")
    ingest.server.moods = {f"{THIRD}.m4a": "status/500"}
    stopped = ingest("--store", "s", "--no-raw", "--max-failures", 0.3, code=2)
    assert "1 network" in stopped.err
    ingest.server.moods = {}
    ingest("--store", "s", "--no-raw")
    assert ingest.asked == {THIRD}
    assert contents(tmp_path / "s" / "shards") == contents(tmp_path / "whole" / "shards")


def test_a_download_that_rots_is_fetched_again(ingest: Ingest, tmp_path: Path) -> None:
    """Its features would be those of another sound, and nobody would know."""
    ingest("--store", "s")
    for path in (tmp_path / "s" / "raw").rglob(f"{WITH_Y}.m4a"):
        content = path.read_bytes()
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    (tmp_path / "other").mkdir()
    (tmp_path / "s" / "raw").rename(tmp_path / "other" / "raw")
    ingest("--store", "other")
    outcome = outcomes(tmp_path / "other")[f"as_{WITH_Y}_000001000"]
    assert (outcome, ingest.asked) == ("damaged", set())
    ingest("--store", "other")
    assert ingest.asked == {WITH_Y}
    assert outcomes(tmp_path / "other")[f"as_{WITH_Y}_000001000"] == "ok"


# Ray's own: sockets and pipes that it leaves to the garbage collector, and what it deprecates in itself.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_gives_the_same_bytes(ingest: Ingest, tmp_path: Path) -> None:
    ingest("--store", "s")
    ingest("--store", "r", workers=2)
    assert ingest.asked == set(KEYS.values())
    assert contents(tmp_path / "r" / "shards") == contents(tmp_path / "s" / "shards")
    assert store_of(tmp_path / "r") == store_of(tmp_path / "s")
    assert_sums(tmp_path / "r")


def test_a_folder_of_files_named_by_their_ids(
    run: Run, lists: Path, tmp_path: Path, recordings: dict[str, bytes], server: BadServer, ingest: Ingest
) -> None:
    folder = tmp_path / "mine" / "eval"
    folder.mkdir(parents=True)
    for recording in (DASHES, WITH_Y, THIRD):
        (folder / f"Y{recording}.m4a").write_bytes(recordings[f"{recording}.m4a"])
    arguments = ("audioset", "--split", "eval", "--metadata", lists, "--source", tmp_path / "mine", "--store", "s")
    made = run(*arguments, *FAST, "--workers", 0)
    assert made.out.startswith("s: 4 of 5 clips in 3 shards, snapshot 1, mean ")
    assert outcomes(tmp_path / "s") == {key: "ok" if key in GOOD else "missing" for key in KEYS}
    assert not (tmp_path / "s" / "raw").exists()
    # The features don't depend on the way that the recordings came.
    ingest("--store", "d")
    assert contents(tmp_path / "s" / "shards").keys() == contents(tmp_path / "d" / "shards").keys()
    for shard in range(3):
        tars = [(tmp_path / name / store_of(tmp_path / name).tar_name(shard)).read_bytes() for name in "sd"]
        assert tars[0] == tars[1]


def test_vggsound_from_a_folder_of_videos(run: Run, tmp_path: Path) -> None:
    """Cut ones by the habit of its own lists, and a whole one."""
    lists, folder = tmp_path / "lists", tmp_path / "video"
    lists.mkdir()
    rows = (f"{DASHES},1,people marching,test", f"{THIRD},3,people marching,test", f"{WITH_Y},0,zebra braying,train")
    (lists / "vggsound.csv").write_text("".join(f"{line}\n" for line in rows))
    folder.mkdir()
    mux(folder / f"{DASHES}_000001.mp4", Track(sound(3.0, 44_100), "aac", 44_100))
    mux(folder / f"{THIRD}.mkv", Track(sound(14.0, 44_100), "aac", 44_100))
    arguments = ("vggsound", "--metadata", lists, "--source", folder, "--store", "s", *FAST, "--workers", 0)
    assert run(*arguments, "--split", "test").out.startswith("s: 2 of 2 clips in 1 shards, snapshot 1, mean ")
    rows_of = {row["key"]: row for row in sidecar_of(tmp_path / "s", 0).ledger.to_pylist()}
    assert rows_of[f"vgg_{DASHES}_000001000"]["clip_start_ms"] == 0
    assert rows_of[f"vgg_{THIRD}_000003000"]["clip_start_ms"] == 3000
    assert store_of(tmp_path / "s").parts[0].lists.keys() == {"vggsound.csv"}
    before = contents(tmp_path / "s")
    refused = run(*arguments, "--split", "train", "--append", "--max-failures", 1)
    assert contents(tmp_path / "s") == before
    assert f"not one of 1 clips could be had: for instance vgg_{WITH_Y}_000000000: missing, no file" in refused.err


def test_two_ingests_don_t_ask_one_server_at_a_time(ingest: Ingest, tmp_path: Path) -> None:
    raw = LocalFolder(tmp_path / "raw")
    raw.create()
    with raw.lock("download"):
        refused = ingest("--store", "s", "--raw", "raw", code=2)
    assert f"another download is at work on {raw}" in refused.err
    assert ingest.asked == set()
    ingest("--store", "s", "--raw", "raw")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--source", "nowhere"), "--source nowhere: no such folder; give youtube, a folder"),
        (("--source", "http://host/x.m4a"), "--source http://host/x.m4a has no {id}"),
        (("--source", "ftp://host/{id}"), "it must start with http:// or https://"),
        (("--cookies", "none.txt"), "--cookies none.txt: no such file"),
        (("--rate", 0), "--rate 0 is not possible"),
        (("--split", "test"), "--split 'test' is not known; give balanced, unbalanced or eval"),
        (("--limit", 0), "--limit 0 takes nothing"),
        (("--subset", "as20k"), "--subset as20k is AudioSet's balanced list"),
        (("--metadata", "none"), "none: no such folder"),
    ],
)
def test_wrong_options_are_one_line(ingest: Ingest, options: tuple[Any, ...], message: str) -> None:
    refused = ingest("--store", "s", *options, code=2)
    assert message in refused.err
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1
    assert ingest.asked == set()


def processes_in(folder: Path) -> list[int]:
    """Processes that work below a folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
        except OSError:
            pass  # it has ended, or is another's
    return found


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_in_the_middle_of_a_slow_download(
    lists: Path, server: BadServer, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    """It takes a second or two, nothing is left running, and the same command goes on."""
    source = f"{server.url}/mood/{{id}}.m4a"
    server.moods = {f"{recording}.m4a": "slow" for recording in (DASHES, WITH_Y, THIRD)}
    arguments = ["audioset", "--split", "eval", "--metadata", lists, "--source", source, "--store", "s", *FAST]
    command = [sys.executable, "-m", "ingest", *map(str, arguments), "--workers", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    with start() as process:
        while sum("m4a" in path for path in server.asked) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(how)
        sent = time.monotonic()
        _, err = process.communicate(timeout=30)
        assert process.returncode == code
        assert time.monotonic() - sent < 5.0
        assert "Traceback" not in err
    while processes_in(tmp_path / "s") and time.monotonic() - sent < 5.0:
        time.sleep(0.05)
    assert processes_in(tmp_path / "s") == []
    server.moods = {}
    with start() as process:
        out, err = process.communicate(timeout=60)
        assert out.startswith("s: 4 of 5 clips in 3 shards"), err
    assert not list((tmp_path / "s" / "raw").glob(".fetch-*"))
    assert_sums(tmp_path / "s")
