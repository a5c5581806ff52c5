"""A corpus of odd files goes through the whole ingest: each is right, or a ledger row with a typed reason."""

import csv
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from ingest.decode import measure_duration_s, open_audio
from ingest.job import ingest
from ingest.ledger import ClipError, Reason
from ingest.plan import IngestOptions
from manifests.errors import InputError
from manifests.folder import FolderOptions, folder_manifest
from tests.ingest import broken_audio, odd_audio
from tests.ingest.audio_writers import EXACT, LOSSY, Case, Track, mux, sound, write

OPTIONS = IngestOptions(num_frames=256, num_workers=0, max_failures=1.0)
MAKERS = (
    *(odd_audio.rates, odd_audio.channels, odd_audio.sample_formats, odd_audio.containers, odd_audio.videos),
    *(odd_audio.mp3s, odd_audio.streams, odd_audio.names, odd_audio.three_hours),
    *(broken_audio.riffs, broken_audio.torn, broken_audio.no_audio, broken_audio.levels, broken_audio.lengths),
)
LOUD_WITHIN = 5.0  # log-mel energies below a clip's loudest that are compared


@dataclass(frozen=True)
class Result:
    """What a store holds of a clip: its ledger row, and its fbank where there is one."""

    row: dict[str, Any]
    fbank: NDArray[np.float32]


def ingest_clips(
    folder: Path, clips: Sequence[dict[str, Any]], spoil: Callable[[], None] | None = None
) -> list[Result]:
    """Ingests clips, given as rows of the CSV, and reads the shards as docs/formats.md says, in the same order."""
    table = folder.with_suffix(".csv")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "key", "start_s", "end_s"])
        writer.writeheader()
        writer.writerows({"key": f"c{number:04d}", **clip} for number, clip in enumerate(clips))
    manifest = folder_manifest(folder, FolderOptions(labels_csv=table, labels="none"))
    if spoil is not None:
        spoil()
    store = folder.with_suffix(".store")
    ingest(manifest, store, OPTIONS)
    results = {row["key"]: Result(row, fbank) for shard in store.glob("shards/*.tar") for row, fbank in _read(shard)}
    return [results[f"c{number:04d}"] for number in range(len(clips))]


def _read(shard: Path) -> list[tuple[dict[str, Any], NDArray[np.float32]]]:
    rows = pq.read_table(shard.with_suffix(".parquet")).to_pylist()
    with tarfile.open(shard) as archive:
        members = {member.name: archive.extractfile(member) for member in archive}
        fbanks = {name: np.load(BytesIO(file.read())) for name, file in members.items() if file and "fbank" in name}
    return [(row, fbanks.get(f"{row['key']}.fbank.npy", np.zeros(0)).astype(np.float32)) for row in rows]


def difference(fbank: NDArray[np.float32], expected: NDArray[np.float32], num_frames: int) -> float:
    """The mean difference where the sound is loud; a few frames at both ends, where codecs fade, don't count."""
    mine, right = fbank[2 : num_frames - 3], expected[2 : num_frames - 3]
    loud = right > right.max(initial=-99.0) - LOUD_WITHIN
    return float(np.abs(mine - right)[loud].mean()) if loud.any() else 0.0


def faults(case: Case, result: Result, plain: Result) -> list[str]:
    """What is wrong with a clip; `plain` is the same sound from a plain 16 kHz file."""
    row, right = result.row, plain.row
    if case.reasons or not row["ok"]:
        return [] if row["reason"] in case.reasons else [f"{row['reason']}: {row['detail']}"]
    pad = 0 if case.tolerance == EXACT else 8  # codecs pad to whole packets
    within = 0.01 if case.tolerance == EXACT else 0.15
    away = difference(result.fbank, plain.fbank, min(row["num_frames"], right["num_frames"]))
    checks = {
        f"rate {row['source_rate_hz']}": row["source_rate_hz"] == case.rate_hz,
        f"channels {row['num_channels']}": row["num_channels"] == case.num_channels,
        f"duration {row['duration_s']}": case.duration_s is None or abs(row["duration_s"] - case.duration_s) < 0.07,
        f"frames {row['num_frames']}": -1 <= row["num_frames"] - right["num_frames"] <= pad,
        f"rms {row['rms']}": row["rms"] == pytest.approx(right["rms"], rel=within, abs=1e-6),
        f"difference {away:.3f}": away <= case.tolerance,
        "not finite": bool(np.isfinite(result.fbank).all()),
    }
    return [fault for fault, is_right in checks.items() if not is_right]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("any")) / "odd"


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[Case]:
    folder.mkdir()
    return [case for make in MAKERS for case in make(folder)]


def test_every_file_is_right_or_has_its_reason(folder: Path, cases: list[Case]) -> None:
    names = [f"plain_{number}.wav" for number in range(len(cases))]
    for name, case in zip(names, cases, strict=True):
        samples = sound(case.length_s, 16_000, start_s=case.sound_s, narrow=case.narrow)
        write(folder / name, case.gain * samples + case.offset, 16_000, "DOUBLE")
    listed = [{"file": case.name, "start_s": case.start_s, "end_s": case.end_s} for case in cases]
    results = ingest_clips(folder, [*listed, *({"file": name} for name in names)])
    odd, plain = results[: len(cases)], results[len(cases) :]
    wrong = {case.name: faults(case, *pair) for case, *pair in zip(cases, odd, plain, strict=True)}
    assert {name: found for name, found in wrong.items() if found} == {}
    assert len(cases) >= 60
    assert {Reason(result.row["reason"]) for result in odd if not result.row["ok"]} == {
        *(Reason.NOT_AUDIO, Reason.NO_AUDIO_STREAM, Reason.DECODE, Reason.TOO_SHORT, Reason.NON_FINITE),
    }


def test_the_comparison_sees_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    variants = {
        "plain": sound(1.0, 16_000),
        "half_a_millisecond": sound(1.0, 16_000, start_s=0.0005),
        "louder": 1.01 * sound(1.0, 16_000),
        "frame": sound(1.0, 16_000, start_s=0.01),
        "faster": sound(1.0, 16_160)[:16_000],
    }
    for name, samples in variants.items():
        write(folder / f"{name}.wav", samples, 16_000, "FLOAT")
    plain, *others = ingest_clips(folder, [{"file": f"{name}.wav"} for name in variants])
    half, louder, frame, faster = (difference(other.fbank, plain.fbank, 98) for other in others)
    assert min(half, louder) > EXACT
    assert min(frame, faster) > LOSSY


def test_files_that_change_after_they_were_listed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    expected = {
        "good.wav": None,
        "pipe.wav": Reason.UNREADABLE,
        "folder.wav": Reason.UNREADABLE,
        "ring.wav": Reason.UNREADABLE,
        "dangling.wav": Reason.MISSING,
        "gone.wav": Reason.MISSING,
        "emptied.wav": Reason.NOT_AUDIO,
    }
    if os.geteuid() != 0:  # who may read everything
        expected["secret.wav"] = Reason.UNREADABLE
    for name in expected:
        write(folder / name, sound(1.0, 16_000), 16_000)

    def spoil() -> None:
        for name in set(expected) - {"good.wav", "secret.wav"}:
            (folder / name).unlink()
        os.mkfifo(folder / "pipe.wav")
        (folder / "folder.wav").mkdir()
        (folder / "ring.wav").symlink_to("ring2.wav")
        (folder / "ring2.wav").symlink_to("ring.wav")
        (folder / "dangling.wav").symlink_to("nowhere.wav")
        (folder / "emptied.wav").touch()
        if "secret.wav" in expected:
            (folder / "secret.wav").chmod(0)

    results = ingest_clips(folder, [{"file": name} for name in expected], spoil)
    found = {name: result.row["reason"] for name, result in zip(expected, results, strict=True)}
    assert found == {name: reason and reason.value for name, reason in expected.items()}


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(InputError, match="1 of 1 files are missing or unreadable"):
        folder_manifest(tmp_path, FolderOptions(labels="none"))
    with pytest.raises(ClipError, match="unreadable: a pipe, socket or device"), open_audio(tmp_path / "a.wav"):
        pass


# Both decoders, with and without an index, and codecs that can't seek at all.
SEEKABLE = {
    "a.wav": "PCM_16",
    "a.flac": "PCM_16",
    "g.wav": "GSM610",
    "v.wav": "G721_32",
    "a.caf": "PCM_16",
    "a.ogg": "flac",
    "a.tta": "tta",
    "a.aac": "aac",
    "a.ts": "mp2",
}


@pytest.mark.parametrize("name", SEEKABLE)
def test_an_open_file_is_read_in_any_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if SEEKABLE[name].isupper():
        write(path, sound(4.0), subtype=SEEKABLE[name])
    else:
        mux(path, Track(sound(4.0), SEEKABLE[name]), form={"aac": "adts", "ts": "mpegts"}.get(path.suffix[1:]))
    with open_audio(path) as source:
        whole = source.read(0, 10 * 44_100)
        assert whole.size == pytest.approx(4 * 44_100, abs=3000)
        for start in (100_000, 20_000, 150_000, 0, 88_200, 44_100, 500_000, 1000):
            part = source.read(start, 5000)
            # Lossy frames lean on those before, of which a second was read.
            np.testing.assert_allclose(part, whole[start : start + 5000], atol=1e-3)
        assert measure_duration_s(source) == whole.size / 44_100


WINDOWS_FROM_THE_MIDDLE = """
import json, sys, time
from pathlib import Path
import numpy, soundfile, soxr, ingest.ffmpeg
from ingest.decode import decode, open_audio

def memory_mib(which):
    # Not getrusage's: that peak is the parent's at first.
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0]) / 1024

for path in sys.argv[1:]:
    before_mib, start_s = memory_mib("VmRSS"), time.process_time()
    with open_audio(Path(path)) as source:
        size = decode(source, 16_000, 5400.0, 10.0).size
    print(json.dumps([Path(path).name, size, memory_mib("VmHWM") - before_mib, time.process_time() - start_s]))
"""


def test_a_window_of_three_hours_takes_little_memory_and_work(folder: Path, cases: list[Case]) -> None:
    odd_audio.write_long_wav(folder / "long_stereo.wav", 44_100, 2)
    names = [case.name for case in cases if case.name.startswith("long.")]
    paths = [str(folder / name) for name in ("long_stereo.wav", *names)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WINDOWS_FROM_THE_MIDDLE, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    taken = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(taken) == len(paths) == 6
    for name, num_samples, grown_mib, cpu_s in taken:
        assert num_samples == 160_000, name
        # The whole of it would be 330 MiB at 8 kHz in mono, and 3.6 GiB at 44.1 kHz in stereo.
        assert grown_mib < 64, name
        # A processor's time, and not the clock's: decoding all of it takes tens of seconds.
        assert cpu_s < 5, name
