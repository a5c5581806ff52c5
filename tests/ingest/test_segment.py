"""Long files cut into consecutive clips."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.segment import segment_manifest
from ingest.window import read_window
from manifests.clips import Clip, Manifest, make_manifest
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(["a", "b"])
RATE_HZ = 16_000


def manifest_of(root: Path, *clips: Clip) -> Manifest:
    return make_manifest("long", clips, VOCABULARY, root, seed=3)


def write_ramp(path: Path, duration_s: float) -> None:
    """A sample's value says where it is."""
    num_samples = round(duration_s * RATE_HZ)
    soundfile.write(path, np.arange(num_samples, dtype=np.float32) / 2**20, RATE_HZ, subtype="FLOAT")


def spans(manifest: Manifest) -> list[tuple[str, int | None, int | None]]:
    return sorted((clip.key, clip.start_ms, clip.end_ms) for clip in manifest.clips())


@pytest.mark.parametrize(
    ("duration_s", "ends"),
    [
        (4.0, [(0, 1500), (1500, 3000), (3000, 4000)]),  # a rest of two thirds is kept, short
        (3.7, [(0, 1500), (1500, 3000)]),  # one of less than half is dropped
        (3.0, [(0, 1500), (1500, 3000)]),
        (0.2, [(0, 200)]),  # a file gives at least one clip
    ],
)
def test_segments_of_a_file(tmp_path: Path, duration_s: float, ends: list[tuple[int, int]]) -> None:
    write_ramp(tmp_path / "x.wav", duration_s)
    cut = segment_manifest(manifest_of(tmp_path, Clip("x", "x.wav", labels=("b",), split="train", fold=2)), 1.5)
    assert spans(cut) == [(f"x_{start:09d}", start, end) for start, end in ends]
    assert {(clip.source, clip.labels, clip.split, clip.fold) for clip in cut.clips()} == {
        ("x.wav", ("b",), "train", 2)
    }
    assert (cut.dataset, cut.root, cut.seed, cut.vocabulary) == ("long", tmp_path, 3, VOCABULARY)


def test_segments_of_a_cut(tmp_path: Path) -> None:
    write_ramp(tmp_path / "x.wav", 9.0)
    cut = segment_manifest(manifest_of(tmp_path, Clip("x", "x.wav", 2000, 4500), Clip("y", "x.wav", 7500)), 1.0)
    assert [span[1:] for span in spans(cut) if span[0].startswith("x")] == [(2000, 3000), (3000, 4000), (4000, 4500)]
    assert [span[1:] for span in spans(cut) if span[0].startswith("y")] == [(7500, 8500), (8500, 9000)]


def test_the_windows_of_the_segments_are_the_file(tmp_path: Path) -> None:
    write_ramp(tmp_path / "x.wav", 3.0)
    cut = segment_manifest(manifest_of(tmp_path, Clip("x", "x.wav")), 0.5)
    in_order = sorted(cut.clips(), key=lambda clip: clip.key)
    parts = [read_window(tmp_path / "x.wav", clip, RATE_HZ, 2.575, 0).waveform for clip in in_order]
    assert np.array_equal(np.concatenate(parts), soundfile.read(tmp_path / "x.wav", dtype="float32")[0])


def test_files_that_cant_be_read_stay_one_clip_for_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    clips = [Clip("bad", "bad.wav"), Clip("gone", "gone.wav"), Clip("out", "../out.wav")]
    cut = segment_manifest(manifest_of(tmp_path, *clips), 1.0)
    assert spans(cut) == [("bad", None, None), ("gone", None, None), ("out", None, None)]


def test_too_short_a_segment(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--segment 0\.01 is not possible; give seconds from 0\.1 to 86400"):
        segment_manifest(manifest_of(tmp_path, Clip("x", "x.wav")), 0.01)
    with pytest.raises(InputError, match="--segment nan is not possible"):
        segment_manifest(manifest_of(tmp_path, Clip("x", "x.wav")), float("nan"))
