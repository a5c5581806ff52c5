"""Others read a store with their own tools, and all get the same."""

import csv
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray

from tests.end_to_end.stock_readers import CROISSANT, GUESSING, READERS, TAR, Arrays, environment, read

NUM_FRAMES, NUM_SAMPLES = 256, 41_200
RATES_HZ = (16_000, 8_000, 44_100)
# Shorter and longer than the window of 2.575 s.
DURATIONS_S = (0.4, 1.3, 2.575, 3.2)
LABELS = ("rain", "bark;rain", "", "bark")
SPLITS = ("test", "train", "train", "eval", "train")


def write_corpus(root: Path) -> None:
    """Eleven sounds and a file that is none, with a table of their labels and splits."""
    root.mkdir()
    rng = np.random.default_rng(5)
    rows = []
    for number in range(12):
        rate_hz = RATES_HZ[number % len(RATES_HZ)]
        noise = rng.standard_normal(round(DURATIONS_S[number % len(DURATIONS_S)] * rate_hz))
        soundfile.write(root / f"s{number:02d}.wav", 0.1 * noise, rate_hz, subtype="PCM_16")
        rows.append([f"s{number:02d}.wav", LABELS[number % len(LABELS)], SPLITS[number % len(SPLITS)]])
    (root / "s07.wav").write_text("no sound")
    with (root / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "labels", "split"], *rows])


def ingested(folder: Path, *options: str) -> Path:
    """A store made by the command `ingest`."""
    write_corpus(folder / "sounds")
    table = ["--labels-csv", str(folder / "sounds" / "table.csv")]
    sizes = ["--num-frames", str(NUM_FRAMES), "--clips-per-shard", "5", "--workers", "0"]
    command = [sys.executable, "-m", "ingest", "folder", str(folder / "sounds"), *table, *sizes, *options]
    subprocess.run([*command, "--store", str(folder / "store")], check=True, timeout=200)
    return folder / "store"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With audio."""
    return ingested(tmp_path_factory.mktemp("reuse"), "--keep-audio")


@pytest.fixture(scope="module")
def plain_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without audio."""
    return ingested(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def arrays(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """What tar and numpy read, which the others are held against."""
    return read(store, TAR, tmp_path_factory.mktemp("tar"))


def keys_of(arrays: Arrays) -> list[str]:
    return [name.removeprefix("fbank/") for name in arrays if name.startswith("fbank/")]


def mean_magnitude(fbank: NDArray[np.float16]) -> NDArray[np.float32]:
    """Mean gradient magnitude of each patch, (16, 8), from the words of docs/formats.md."""
    values = fbank.astype(np.float32)
    values[:, 3] = (values[:, 2] + values[:, 4]) / 2
    gradients = np.zeros((2, *values.shape), np.float32)
    gradients[0, 1:-1] = values[2:] - values[:-2]
    gradients[1, :, 1:-1] = values[:, 2:] - values[:, :-2]
    return np.hypot(*gradients).reshape(NUM_FRAMES // 16, 16, 8, 16).mean((1, 3))


def test_tar_and_numpy_read_all_that_was_made(arrays: Arrays) -> None:
    numbers = [number for number in range(12) if number != 7]
    assert sorted(keys_of(arrays)) == [f"s{number:02d}" for number in numbers]
    for number in numbers:
        fbank, hog = arrays[f"fbank/s{number:02d}"], arrays[f"hog/s{number:02d}"]
        assert (fbank.dtype, fbank.shape) == (np.float16, (NUM_FRAMES, 128))
        assert (hog.dtype, hog.shape) == (np.float16, (NUM_FRAMES // 16, 8, 9))
        assert hog.astype(np.float32).sum(-1) == pytest.approx(mean_magnitude(fbank), rel=2e-3, abs=1e-3)
        wanted = [label for label in LABELS[number % len(LABELS)].split(";") if label]
        assert arrays[f"labels/s{number:02d}"].tolist() == wanted


@pytest.mark.parametrize("reader", [name for name in READERS if name != "tar and numpy"])
def test_the_readers_agree(store: Path, arrays: Arrays, reader: str, tmp_path: Path) -> None:
    found = read(store, READERS[reader], tmp_path)
    # In the same order: that of the rows.
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("reader", GUESSING)
def test_datasets_reads_the_tars_alone(plain_store: Path, reader: str, tmp_path: Path) -> None:
    expected, found = read(plain_store, TAR, tmp_path), read(plain_store, GUESSING[reader], tmp_path)
    assert len(keys_of(expected)) == 11
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_the_fbank_is_kaldis_of_the_flac_member(arrays: Arrays) -> None:
    for number in (0, 3, 6, 9):  # at 16 kHz, so that the FLAC holds the very samples
        samples, rate_hz = soundfile.read(io.BytesIO(arrays[f"flac/s{number:02d}"].tobytes()), dtype="float32")
        assert (rate_hz, samples.size) == (16_000, min(NUM_SAMPLES, round(DURATIONS_S[number % 4] * 16_000)))
        waveform = torch.from_numpy(np.resize(samples, NUM_SAMPLES))[None]
        fbank = torchaudio.compliance.kaldi.fbank(
            waveform - waveform.mean(),
            htk_compat=True,
            sample_frequency=16_000,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
        ).numpy()
        # 1e-3, as docs/formats.md states, and the rounding to float16 behind it
        rounding = np.spacing(np.abs(fbank).astype(np.float16)).astype(np.float32) / 2
        assert (np.abs(arrays[f"fbank/s{number:02d}"] - fbank) <= 1e-3 + rounding).all()


def test_sha256sum_checks_the_store(store: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=store, check=True, timeout=60, capture_output=True, text=True)
    checked = {line.partition(":")[0] for line in done.stdout.splitlines()}
    files = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    assert checked == files - {"SHA256SUMS", ".lock"}


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", card, re.MULTILINE | re.DOTALL)


def test_the_cards_python_runs(store: Path, arrays: Arrays, tmp_path: Path) -> None:
    snippets = blocks((store / "README.md").read_text(), "python")
    assert [re.search(r"webdataset|load_dataset|fromfile", snippet)[0] for snippet in snippets] == [  # type: ignore[index]
        "webdataset",
        "load_dataset",
        "fromfile",
    ]
    for snippet in snippets:
        command = [sys.executable, "-c", snippet]
        lines = subprocess.check_output(
            command, cwd=store, env=environment(tmp_path), timeout=100, text=True
        ).splitlines()
        assert [line.split()[0] for line in lines] == keys_of(arrays)
        assert all("(256, 128)" in line for line in lines)


def test_the_cards_shell_runs(store: Path) -> None:
    (snippet,) = blocks((store / "README.md").read_text(), "sh")
    subprocess.run(["bash", "-e", "-c", snippet], cwd=store, check=True, timeout=60)


def test_the_lists_are_of_what_is_there(store: Path, arrays: Arrays) -> None:
    split_of = {f"s{number:02d}": SPLITS[number % len(SPLITS)] for number in range(12)}
    for split in ("eval", "test", "train"):
        present = [key for key in sorted(keys_of(arrays)) if split_of[key] == split]
        assert (store / f"present_{split}.txt").read_text().split() == present
    assert (store / "missing.csv").read_text().splitlines() == ["key,split,reason", "s07,train,not_audio"]


def test_croissant_has_the_files_sha256(store: Path) -> None:
    distribution = json.loads((store / "croissant.json").read_text())["distribution"]
    files = {file["contentUrl"]: file["sha256"] for file in distribution if "sha256" in file}
    assert files.keys() >= {path.relative_to(store).as_posix() for path in store.glob("shards/*.tar")}
    sums = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    subprocess.run(["sha256sum", "--check", "--strict"], input=sums.encode(), cwd=store, check=True, timeout=60)


def test_card_and_croissant_name_the_fields_of_the_json_members(store: Path) -> None:
    with tarfile.open(next(store.glob("shards/*.tar"))) as tar:
        member = next(tar.extractfile(name) for name in tar.getnames() if name.endswith(".json"))
        assert member is not None
        fields = list(json.load(member))
    card = (store / "README.md").read_text().split("  - name: json\n")[1].split("  - name: __key__")[0]
    assert re.findall(r"- name: (\w+)", card) == fields
    metadata = json.loads((store / "croissant.json").read_text())
    (samples,) = (records for records in metadata["recordSet"] if records["@id"] == "samples")
    assert [field["name"] for field in samples["field"]] == fields


def test_mlcroissant_reads_the_labels(store: Path, arrays: Arrays, tmp_path: Path) -> None:
    found = read(store, CROISSANT, tmp_path)
    assert list(found) == [name for name in arrays if name.startswith("labels/")]
    assert all(found[name].tolist() == arrays[name].tolist() for name in found)
