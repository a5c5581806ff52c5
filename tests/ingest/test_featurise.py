"""One clip: where its window lies, how it is looped, and what is kept of it."""

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from ingest.fbank import fbank
from ingest.featurise import Features, featurise, looped
from ingest.hog import hog
from ingest.layout import Part, StoreFile
from ingest.ledger import ClipError, Reason
from ingest.sourcefile import source_path
from ingest.sources import SourceFile, local_source
from ingest.window import crop_start_ms, read_window
from manifests.clips import Clip
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Vocabulary

RATE_HZ = 16_000
SPEC, HOG_SPEC = FbankSpec(num_frames=256), HogSpec()
WINDOW_S = 2.575


def features_of(path: Path, **options: bool) -> Features:
    store = StoreFile(
        dataset="s",
        clips_per_shard=1,
        seed=0,
        keep_audio=options.get("keep_audio", False),
        drop_silent=options.get("drop_silent", False),
        fbank=SPEC,
        hog=HOG_SPEC,
        vocabulary=Vocabulary(),
        versions={},
        parts=(Part(num_clips_asked=1, manifest_sha256="", wanted_sha256=""),),
    )
    return featurise(Clip("a", path.name), path, store)


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """Ten seconds in which a sample's value times 2**20 is its number."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.arange(10 * RATE_HZ, dtype=np.float32) / 2**20, RATE_HZ, subtype="FLOAT")
    return path


def span_ms(path: Path, clip: Clip, seed: int = 0) -> tuple[int, int]:
    """Where a ramp's window lies, as its samples say."""
    window = read_window(path, clip, RATE_HZ, WINDOW_S, seed)
    first, last = (round(float(window.waveform[i]) * 2**20) for i in (0, -1))
    assert last - first + 1 == window.waveform.size
    assert window.start_ms == first // 16
    return first // 16, (last + 1) // 16


def test_looped_by_hand() -> None:
    waveform = np.array([1, 2, 3], np.float32)
    assert looped(waveform, 8).tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert looped(waveform, 3).tolist() == [1, 2, 3]
    assert looped(waveform, 2).tolist() == [1, 2]


@given(start_ms=st.integers(0, 5000), length_ms=st.integers(1, 20_000), seed=st.integers(0, 5), key=st.text(max_size=5))
def test_a_crop_lies_within_its_clip(start_ms: int, length_ms: int, seed: int, key: str) -> None:
    clip = Clip(key, "a.wav", start_ms, start_ms + length_ms)
    crop_ms = crop_start_ms(clip, None, WINDOW_S, seed)
    if length_ms <= 2575:
        assert crop_ms == start_ms
    else:
        assert start_ms <= crop_ms <= start_ms + length_ms - 2575


def test_crops_cover_their_range_evenly() -> None:
    counts = Counter(crop_start_ms(Clip(f"k{i}", "a.wav"), 2.575 + 0.009, WINDOW_S, 0) for i in range(3000))
    assert sorted(counts) == list(range(10))
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_a_crop_depends_on_seed_and_key_alone() -> None:
    def crop(key: str, seed: int, **other: object) -> int:
        return crop_start_ms(Clip(key, **{"source": "a.wav", **other}), 60.0, WINDOW_S, seed)

    # sha256 of "0:x", its first eight bytes, modulo 57,426 places.
    assert crop("x", 0) == int(hashlib.sha256(b"0:x").hexdigest()[:16], 16) % 57_426
    assert crop("x", 0) == crop("x", 0, source="b.wav", labels=("l",), split="train", fold=3)
    assert len({crop("x", seed) for seed in range(20)}) == 20
    assert len({crop(f"x{i}", 0) for i in range(20)}) == 20


def test_a_crop_stays_within_the_file_where_its_clip_ends_later(ramp: Path) -> None:
    for i in range(20):
        first_ms, last_ms = span_ms(ramp, Clip(f"k{i}", "ramp.wav", 5000, 600_000))
        assert first_ms >= 5000
        assert last_ms == first_ms + 2575 <= 10_000


def test_a_file_of_unknown_length_starts_at_its_start() -> None:
    assert crop_start_ms(Clip("x", "a.webm"), None, WINDOW_S, 0) == 0
    assert crop_start_ms(Clip("x", "a.webm", 1234), None, WINDOW_S, 0) == 1234


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "expected"),
    [
        (1000, 2000, (1000, 2000)),
        (0, 500, (0, 500)),
        (None, 1250, (0, 1250)),
        (9000, None, (9000, 10_000)),
        (9500, 12_000, (9500, 10_000)),
        (3000, 5575, (3000, 5575)),
    ],
)
def test_a_window_is_the_clip(ramp: Path, start_ms: int | None, end_ms: int | None, expected: tuple[int, int]) -> None:
    assert span_ms(ramp, Clip("x", "ramp.wav", start_ms, end_ms)) == expected


def test_a_long_clip_s_window_is_one_window_long(ramp: Path) -> None:
    spans = [span_ms(ramp, Clip("x", "ramp.wav", 2000, 8000), seed) for seed in range(10)]
    assert all(last - first == 2575 for first, last in spans)
    assert all(first >= 2000 and last <= 8000 for first, last in spans)
    assert len(set(spans)) > 5


@pytest.mark.parametrize("source", ["../out.wav", "/etc/passwd", "a/../../out.wav", "link/out.wav"])
def test_a_path_that_leaves_the_corpus_is_refused(tmp_path: Path, source: str) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(tmp_path / "other")
    for name in ("out.wav", "other/out.wav"):
        soundfile.write(tmp_path / name, np.zeros(16_000), RATE_HZ)
    with (
        pytest.raises(ClipError, match="unreadable: the path leaves the corpus's folder"),
        local_source(SourceFile(str(root), source)),
    ):
        pass


def test_a_path_within_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "real").symlink_to(tmp_path)
    assert source_path(tmp_path / "real", "a/./b.wav") == (tmp_path / "a" / "b.wav").resolve()


def test_features_of_a_short_clip(tmp_path: Path) -> None:
    samples = (0.1 * np.random.default_rng(0).standard_normal(20_000)).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    features = features_of(tmp_path / "a.wav", keep_audio=True)
    tiled = torch.from_numpy(np.tile(samples, 3)[: SPEC.num_samples])
    assert np.array_equal(features.fbank, fbank(tiled, SPEC).half().numpy())
    assert np.array_equal(features.hog, hog(torch.from_numpy(features.fbank).float(), HOG_SPEC).half().numpy())
    assert (features.fbank.shape, features.hog.shape) == ((256, 128), (16, 8, 9))
    assert features.num_frames == 1 + (20_000 - 400) // 160
    assert features.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert features.flac is not None
    kept, rate_hz = soundfile.read(io.BytesIO(features.flac), dtype="float32")
    assert rate_hz == RATE_HZ
    np.testing.assert_allclose(kept, samples, atol=0.51 / 2**15)


def test_a_loud_float_file_is_clipped_in_its_flac_alone(tmp_path: Path) -> None:
    samples = np.linspace(-2, 2, 8000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT")
    features = features_of(tmp_path / "a.wav", keep_audio=True)
    assert np.array_equal(features.window.waveform, samples)
    assert features.flac is not None
    kept, _ = soundfile.read(io.BytesIO(features.flac), dtype="float32")
    np.testing.assert_allclose(kept, samples.clip(-1, 1), atol=1.01 / 2**15)


@pytest.mark.parametrize(("num_samples", "fits"), [(0, False), (399, False), (400, True)])
def test_less_than_a_frame_is_too_short(tmp_path: Path, num_samples: int, fits: bool) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(num_samples, 0.1), RATE_HZ)
    if fits:
        assert features_of(tmp_path / "a.wav").num_frames == 1
        return
    with pytest.raises(ClipError, match=f"{num_samples} samples, less than one frame of 400") as caught:
        features_of(tmp_path / "a.wav")
    assert caught.value.reason is Reason.TOO_SHORT


def test_silence_is_the_floor(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(50_000), RATE_HZ)
    features = features_of(tmp_path / "a.wav")
    assert np.unique(features.fbank).tolist() == [np.float16(np.log(np.finfo(np.float32).eps))]
    assert not features.hog.any()


@pytest.mark.parametrize(("peak", "dropped"), [(0.0, True), (2.0**-17, True), (2.0**-16, False)])
def test_silence_is_dropped_where_the_corpus_says_so(tmp_path: Path, peak: float, dropped: bool) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(9000, peak, np.float32), RATE_HZ, subtype="FLOAT")
    assert features_of(tmp_path / "a.wav").peak == peak
    if not dropped:
        assert features_of(tmp_path / "a.wav", drop_silent=True).peak == peak
        return
    with pytest.raises(ClipError, match=r"nothing in it is louder than 1\.5e-05 of full scale") as caught:
        features_of(tmp_path / "a.wav", drop_silent=True)
    assert caught.value.reason is Reason.SILENT


# A recording of ten seconds in which a clip of 2 s starts at 5 s, and files that hold the clip alone.
@pytest.mark.parametrize(
    ("duration_s", "is_cut", "expected"),
    [
        (10.0, False, (5000, 7000)),
        (10.0, None, (5000, 7000)),
        (2.0, None, (0, 2000)),
        (2.5, None, (0, 2000)),  # hardly longer than the clip: cut with a margin
        (2.51, None, (0, 0)),  # a recording that ends before the clip begins
        (2.0, True, (0, 2000)),
        (1.9, None, (0, 1900)),
        (10.0, True, (0, 2000)),
    ],
)
def test_the_clip_in_a_cut_and_in_a_whole_recording(
    tmp_path: Path, duration_s: float, is_cut: bool | None, expected: tuple[int, int]
) -> None:
    path = tmp_path / "a.wav"
    samples = np.arange(round(duration_s * RATE_HZ), dtype=np.float32) / 2**20
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    window = read_window(path, Clip("x", "id", 5000, 7000), RATE_HZ, WINDOW_S, 0, is_cut)
    if expected == (0, 0):
        assert window.waveform.size == 0
        return
    first, last = (round(float(window.waveform[i]) * 2**20) for i in (0, -1))
    assert (first // 16, (last + 1) // 16) == expected
    assert (window.start_ms, window.clip_start_ms) == (expected[0], 0 if expected[0] == 0 else 5000)
