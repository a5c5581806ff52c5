"""Building a teacher's cache: its values, resuming after every kind of end, and clips that can't be had."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from numpy.typing import NDArray

from featurestore.build import BuildResult, build_cache, build_teacher
from featurestore.cacheplan import CacheOptions, CachePlan, plan_cache
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teacherpool import InProcess
from featurestore.teachers.astteacher import load_ast
from featurestore.teachers.ensemble import Ensemble
from featurestore.verify import verify
from featurestore.views import apply_to_fbank, apply_to_waveform, view_of
from featurestore.waveforms import read_waveform
from ingest.featurise import window_fbank
from ingest.job import IngestOptions, ingest
from manifests.clips import Clip, Sources, make_manifest
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary
from tests.featurestore.teachers import astfiles

MakeStore = Callable[..., Store]
LABELS = ("bark", "bell", "rain") * 4


@pytest.fixture
def store(store_copy: Path) -> Store:
    return Store(store_copy)


@pytest.fixture
def own(make_store: MakeStore) -> tuple[Store, Path]:
    """A store of 12 clips in three shards, clip07 failed, and its corpus, for a test to damage."""
    store = make_store(LABELS)
    return store, corpus_of(store)


def half(values: Any) -> NDArray[np.float32]:
    return np.asarray(values).astype(np.float16).astype(np.float32)


def corpus_of(store: Store) -> Path:
    return Path(store.sources_of_shard(0).address)


def tar_path(store: Store, shard: int) -> Path:
    return store.root / store.tar_name(shard)


def row_of(store: Store, key: str) -> int:
    return store.keys(store.rows(asked=True)).index(key)


def by_hand(store: Store, row: int) -> NDArray[np.float64]:
    """Mean, root mean square and length in ms of a clip's window, decoded here."""
    samples, rate_hz = soundfile.read(corpus_of(store) / store.clip(row).source)
    start_s, window_s = store.ledger(row)["crop_start_ms"] / 1000, 41200 / 16000
    start = round(start_s * rate_hz)
    window = soxr.resample(samples[start : start + round(window_s * rate_hz)], rate_hz, 16000, quality="HQ")
    return np.array([window.mean(), np.sqrt((window**2).mean()), window.size / 16])


def test_waveform_teacher(store: Store, waveform_stats: Any) -> None:
    teacher = waveform_stats()
    result = build_teacher(store, teacher, "stats")
    assert (result.num_rows, result.failures) == (22, [])
    rows = store.rows()
    values = result.cache.embeddings(rows)
    np.testing.assert_allclose(values, np.stack([by_hand(store, row) for row in rows.tolist()]), rtol=2e-3, atol=1e-4)
    # Lengths as they are: 0.7, 2 and 3.5 s (cropped to the window of 2.575 s) and 2.6 s (likewise).
    assert sorted({round(float(length)) for length in values[:, 2]}) == [700, 2000, 2576]
    assert np.isnan(result.cache.embeddings(np.flatnonzero(~store.ok))).all()
    assert all(batch.dtype == torch.float32 for batch in teacher.batches)


def test_the_waveform_is_the_one_that_the_fbank_was_made_from(store: Store, fbanks: dict[str, NDArray[Any]]) -> None:
    for row in store.rows().tolist():
        fbank = window_fbank(read_waveform(store, row, 16000), store.file.fbank)
        # Sums over two threads round otherwise than over the ingest's one: a step of float16.
        np.testing.assert_allclose(fbank, fbanks[store.clip(row).key], rtol=1e-3, atol=2e-3)


def test_another_rate(store: Store, waveform_stats: Any) -> None:
    values = build_teacher(store, waveform_stats(32000), "stats").cache.embeddings(store.rows())
    expected = np.stack([by_hand(store, row) for row in store.rows().tolist()])
    # The tones lie under 8 kHz, part of the noise above.
    np.testing.assert_allclose(values[:, 1], expected[:, 1], rtol=0.05)
    np.testing.assert_allclose(values[:, 2], expected[:, 2], rtol=1e-3)


def test_fbank_teacher(store: Store, fbank_stats: Any, fbanks: dict[str, NDArray[Any]]) -> None:
    cache = build_teacher(store, fbank_stats(), "stats").cache
    assert cache.outputs == ["embedding", "logits"]
    assert cache.attributes.vocabulary == fbank_stats.vocabulary
    rows = store.rows()
    direct = fbank_stats().embed(torch.from_numpy(np.stack([fbanks[key] for key in store.keys(rows)])).float())
    np.testing.assert_allclose(cache.embeddings(rows), half(direct.embedding), rtol=1e-3)
    np.testing.assert_allclose(cache.logits(rows), half(direct.logits), rtol=1e-3)


def test_tokens(store: Store, fbank_stats: Any, fbanks: dict[str, NDArray[Any]]) -> None:
    cache = build_teacher(store, fbank_stats(), "stats", with_tokens=True).cache
    assert cache.outputs == ["embedding", "logits", "tokens"]
    tokens = np.concatenate([cache.read("tokens", shard) for shard in range(5)])
    assert tokens.shape == (25, 128, 1)
    row = int(store.rows()[9])
    fbank = fbanks[store.clip(row).key].astype(np.float32)
    # Token 8 t + f is the patch of frames 16 t... and bins 16 f...
    np.testing.assert_allclose(tokens[row, 8 * 5 + 2, 0], fbank[80:96, 32:48].mean(), rtol=2e-3)


def test_tokens_that_a_teacher_does_not_have(store: Store, fbank_stats: Any) -> None:
    class WithoutTokens(fbank_stats):  # type: ignore[misc]
        def embed(self, batch: torch.Tensor) -> Any:
            output = super().embed(batch)
            return type(output)(output.embedding, output.logits)

    with pytest.raises(InputError, match=r"the teacher 'fbankstats' has no tokens; leave --tokens out"):
        build_teacher(store, WithoutTokens(), "stats", with_tokens=True)
    assert store.teachers == []


def test_tokens_of_waveforms_of_any_length(store: Store, waveform_stats: Any) -> None:
    """They have a number that depends on the clip, and an array holds only rows of one shape."""

    class WithTokens(waveform_stats):  # type: ignore[misc]
        def embed(self, batch: torch.Tensor) -> Any:
            output = super().embed(batch)
            return type(output)(output.embedding, tokens=batch.unfold(1, 1600, 1600).mean(-1, keepdim=True))

    with pytest.raises(InputError, match=r"lengths different numbers of tokens \(10 of 1 s, 25 of 2.6 s\).*leave"):
        build_teacher(store, WithTokens(), "stats", with_tokens=True)
    assert build_teacher(store, WithTokens(), "stats").num_rows == 22


def test_a_complete_cache_is_left_alone(store: Store, fbank_stats: Any) -> None:
    build_teacher(store, fbank_stats(), "stats")
    again = fbank_stats()
    assert build_teacher(store, again, "stats").num_rows == 22
    assert len(again.batches) == 1  # one probe, which told the shapes


def test_only_a_lost_shard_is_made_anew(store: Store, fbank_stats: Any) -> None:
    cache = build_teacher(store, fbank_stats(), "stats").cache
    before = cache.embeddings(store.rows())
    folder = Path(cache.path)
    untouched = {path: path.stat().st_mtime_ns for path in folder.rglob("c/*/0")}
    lost = folder / "embedding/c/2/0"
    lost.unlink()
    again = fbank_stats()
    result = build_teacher(store, again, "stats")
    assert [len(batch) for batch in again.batches] == [1, int(store.ok[10:15].sum())]
    assert (result.cache.embeddings(store.rows()) == before).all()
    assert {path for path, time in untouched.items() if path.stat().st_mtime_ns != time} == {
        lost,
        folder / "logits/c/2/0",
    }


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from featurestore.build import build_teacher
from featurestore.store import Store

FbankStats = runpy.run_path(sys.argv[1])["FbankStats"]

class Killed(FbankStats):
    def embed(self, batch):
        if len(self.batches) == 3:  # a probe and two shards
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(batch)

build_teacher(Store(Path(sys.argv[2])), Killed(), "stats")
"""


def test_kill_and_resume(store: Store, fbank_stats: Any) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).with_name("conftest.py")), str(store.root)]
    killed = subprocess.run(command, capture_output=True, timeout=100)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = TeacherCache(store, "stats")
    assert [left.has_shard(shard) for shard in range(5)] == [True, True, False, False, False]
    teacher = fbank_stats()
    resumed = build_teacher(store, teacher, "stats")
    assert len(teacher.batches) == 1 + 3
    whole = build_teacher(store, fbank_stats(), "whole")
    for shard in range(5):
        for output in ("embedding", "logits"):
            np.testing.assert_array_equal(resumed.cache.read(output, shard), whole.cache.read(output, shard))


def test_a_missing_source_has_no_row(own: tuple[Store, Path], waveform_stats: Any) -> None:
    store, corpus = own
    (corpus / "clip03.wav").rename(corpus / "away.wav")
    result = build_teacher(store, waveform_stats(), "stats")
    assert result.failures == ["clip03: missing: no such file"]
    assert result.num_rows == 10
    row = row_of(store, "clip03")
    assert np.isnan(result.cache.embeddings(np.array([row]))).all()
    others = np.setdiff1d(store.rows(), [row])
    assert np.isfinite(result.cache.embeddings(others)).all()
    (corpus / "away.wav").rename(corpus / "clip03.wav")
    mended = build_teacher(store, waveform_stats(), "stats")
    assert (mended.num_rows, mended.failures) == (11, [])
    np.testing.assert_allclose(mended.cache.embeddings(np.array([row]))[0], by_hand(store, row), rtol=2e-3, atol=1e-4)


def test_a_shard_without_any_source(own: tuple[Store, Path], waveform_stats: Any) -> None:
    store, corpus = own
    for row in range(5):
        (corpus / store.clip(row).source).unlink()
    result = build_teacher(store, waveform_stats(), "stats")
    assert len(result.failures) == int(store.ok[:5].sum())
    assert np.isnan(result.cache.read("embedding", 0)).all()
    assert [result.cache.has_shard(shard) for shard in range(3)] == [False, True, True]


def test_a_changed_source_has_no_row(own: tuple[Store, Path], waveform_stats: Any) -> None:
    store, corpus = own
    path = corpus / "clip05.wav"
    samples, rate_hz = soundfile.read(path)
    soundfile.write(path, samples * 0.5, rate_hz)
    result = build_teacher(store, waveform_stats(), "stats")
    assert result.failures == [f"clip05: unreadable: {path} has changed since it was ingested"]
    assert np.isnan(result.cache.embeddings(np.array([row_of(store, "clip05")]))).all()


def test_kept_audio_stands_in_for_the_source(make_store: MakeStore, waveform_stats: Any) -> None:
    store = make_store(LABELS[:6], keep_audio=True)
    from_source = build_teacher(store, waveform_stats(), "source").cache.embeddings(store.rows())
    for path in corpus_of(store).glob("*.wav"):
        path.unlink()
    result = build_teacher(store, waveform_stats(), "flac")
    assert (result.num_rows, result.failures) == (6, [])
    np.testing.assert_allclose(result.cache.embeddings(store.rows()), from_source, rtol=2e-3, atol=1e-4)


def test_damaged_kept_audio_is_a_failure(make_store: MakeStore, waveform_stats: Any) -> None:
    store = make_store(LABELS[:6], keep_audio=True)
    for path in corpus_of(store).glob("*.wav"):
        path.unlink()
    tar = tar_path(store, 0)
    content = bytearray(tar.read_bytes())
    offset = store.ledger(2)["audio_offset"]
    content[offset : offset + 200] = bytes(200)
    tar.write_bytes(content)
    tar_path(store, 1).unlink()
    failures = build_teacher(store, waveform_stats(), "stats").failures
    assert len(failures) == 2
    assert failures[0].startswith(f"{store.clip(2).key}: decode: ")
    assert failures[1].startswith(f"{store.clip(5).key}: unreadable: {store.tar_name(1)}: No such")


def test_a_teacher_of_other_fbanks_is_refused(store: Store, fbank_stats: Any) -> None:
    with pytest.raises(InputError, match=r"'fbankstats' takes fbanks of 1024 frames, and .*copy holds 256: ingest"):
        build_teacher(store, fbank_stats(1024), "stats")
    assert store.teachers == []


def test_another_teacher_of_the_same_name_is_refused(store: Store, fbank_stats: Any, waveform_stats: Any) -> None:
    build_teacher(store, fbank_stats(), "stats")
    other = fbank_stats()
    other.provenance = {"checkpoint_sha256": "2" * 64}
    with pytest.raises(
        InputError, match=r"differs in provenance\.checkpoint_sha256 \(1{20}\.\.\. there, 2{20}\.\.\. wanted\); delete"
    ):
        build_teacher(store, other, "stats")
    with pytest.raises(
        InputError, match=r"differs in teacher \(fbankstats there, wavestats wanted\), embedding_dim .*, outputs"
    ):
        build_teacher(store, waveform_stats(), "stats")


def test_tokens_of_waveforms_of_one_number(store: Store, waveform_stats: Any) -> None:
    """As of a teacher that pads or cuts its input."""

    class WithTokens(waveform_stats):  # type: ignore[misc]
        def embed(self, batch: torch.Tensor) -> Any:
            output = super().embed(batch)
            padded = torch.nn.functional.pad(batch, (0, 48_000 - batch.shape[1]))
            return type(output)(output.embedding, tokens=padded.unfold(1, 16_000, 16_000).mean(-1, keepdim=True))

    cache = build_teacher(store, WithTokens(), "stats", with_tokens=True).cache
    assert cache.row_shape("tokens") == (3, 1)
    row = next(row for row in store.rows().tolist() if store.ledger(row)["num_frames"] == 256)
    first_s = read_waveform(store, row, 16000)[:16_000]
    np.testing.assert_allclose(cache.gather("tokens", np.array([row]))[0, 0, 0], first_s.mean(), rtol=2e-3, atol=1e-6)


def test_tokens_that_no_chunk_holds(store: Store, fbank_stats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.cacheplan.MAX_CHUNK_BYTES", 1000)
    with pytest.raises(InputError, match=r"^5 clips' tokens, a shard's, take .* with fewer --clips-per-shard$"):
        build_teacher(store, fbank_stats(), "stats", with_tokens=True)
    assert build_teacher(store, fbank_stats(), "stats").num_rows == 22


def planned(store: Store, teacher: Any, **options: Any) -> BuildResult:
    return build_cache(plan_cache(store, Ensemble([teacher]), "stats", CacheOptions(**options)), InProcess())


def test_views_of_waveforms(store: Store, waveform_stats: Any) -> None:
    cache = planned(store, waveform_stats(32000), num_views=2, views_seed=7).cache
    assert cache.outputs == ["embedding", "embedding_views"]
    assert (cache.attributes.num_views, cache.attributes.views_seed) == (2, 7)
    rows = store.rows()
    plain = build_teacher(store, waveform_stats(32000), "plain").cache
    np.testing.assert_array_equal(cache.embeddings(rows), plain.embeddings(rows))
    for number in range(2):
        seen = cache.gather_view("embedding", rows, number)
        for values, row, key in zip(seen, rows.tolist(), store.keys(rows), strict=True):
            view = view_of(key, number, 7, 256)
            waveform = apply_to_waveform(read_waveform(store, row, 32000), view, 32000, store.file.fbank)
            expected = [waveform.mean(), np.sqrt(np.square(waveform).mean()), 2575.0]
            np.testing.assert_allclose(values, expected, rtol=2e-3, atol=1e-4)


def test_views_of_fbanks(store: Store, fbank_stats: Any, fbanks: dict[str, NDArray[Any]]) -> None:
    cache = planned(store, fbank_stats(), num_views=3).cache
    assert cache.outputs == ["embedding", "logits", "embedding_views", "logits_views"]
    rows = store.rows()
    viewed = [apply_to_fbank(fbanks[key], view_of(key, 2, 0, 256)) for key in store.keys(rows)]
    direct = fbank_stats().embed(torch.from_numpy(np.stack(viewed)))
    np.testing.assert_allclose(cache.gather_view("embedding", rows, 2), half(direct.embedding), rtol=1e-3)
    np.testing.assert_allclose(cache.gather_view("logits", rows, 2), half(direct.logits), rtol=1e-3)
    assert np.isnan(cache.gather("embedding_views", np.flatnonzero(~store.ok))).all()
    assert verify(store.location) == []


def test_other_views_are_another_cache(store: Store, fbank_stats: Any) -> None:
    planned(store, fbank_stats(), num_views=2)
    with pytest.raises(InputError, match=r"differs in num_views \(2 there, 3 wanted\), views_seed \(0 there, 1 want"):
        planned(store, fbank_stats(), num_views=3, views_seed=1)


def test_bfloat16(store: Store, tmp_path: Path) -> None:
    path = astfiles.save(astfiles.made_up(), tmp_path)
    rows = store.rows()
    exact = planned(store, load_ast(path)).cache
    assert exact.attributes.precision == "float32"
    with pytest.raises(InputError, match=r"differs in precision \(float32 there, bfloat16 wanted\)"):
        planned(store, load_ast(path), precision="bfloat16")
    plan = plan_cache(store, Ensemble([load_ast(path)]), "lower", CacheOptions(precision="bfloat16"))
    lowered = build_cache(plan, InProcess()).cache
    assert lowered.attributes.precision == "bfloat16"
    # The network's products have 8 bits; its input and the stored values do not.
    error = np.linalg.norm(lowered.embeddings(rows) - exact.embeddings(rows), axis=1)
    assert (error < 0.03 * np.linalg.norm(exact.embeddings(rows), axis=1)).all()
    assert error.min() > 0
    assert (plan.precision(True), planned_precision(plan, "auto", True)) == ("bfloat16", "bfloat16")
    assert (planned_precision(plan, "auto", False), planned_precision(plan, "float32", True)) == ("float32", "float32")


def planned_precision(plan: CachePlan, precision: Any, on_cuda: bool) -> str:
    return replace(plan, options=CacheOptions(precision=precision)).precision(on_cuda)


def test_no_waveforms_at_all_is_one_error_before_any_work(own: tuple[Store, Path], waveform_stats: Any) -> None:
    store, corpus = own
    corpus.rename(corpus.parent / "away")
    message = rf"takes waveforms, and none is at hand: of 11 clips looked for, no source is in {corpus}, and"
    with pytest.raises(InputError, match=message):
        build_teacher(store, waveform_stats(), "stats")
    assert store.teachers == []
    (corpus.parent / "away").rename(corpus)
    whole = build_teacher(store, waveform_stats(), "stats")
    corpus.rename(corpus.parent / "away")
    # Nothing is wanted of the sources any more, until a shard is lost.
    assert build_teacher(store, waveform_stats(), "stats").num_rows == whole.num_rows == 11
    (Path(whole.cache.path) / "embedding/c/1/0").unlink()
    with pytest.raises(InputError, match=message):
        build_teacher(store, waveform_stats(), "stats")


def test_one_source_is_enough_to_begin(own: tuple[Store, Path], waveform_stats: Any) -> None:
    store, corpus = own
    for path in corpus.glob("*.wav"):
        if path.name != "clip10.wav":
            path.unlink()
    result = build_teacher(store, waveform_stats(), "stats")
    assert (result.num_rows, len(result.failures)) == (1, 10)


IDS = ("aaaaaaaaaaa", "bbbbbbbbbbb")


def store_of_ids(home: Path, *, keep_audio: bool) -> Store:
    """A store of two clips from a folder of files named by their ids, which is gone."""
    corpus = home / "byid"
    corpus.mkdir()
    for number, recording in enumerate(IDS):
        noise = 0.1 * np.random.default_rng(number).standard_normal(32_000)
        soundfile.write(corpus / f"{recording}.wav", noise, 16_000)
    vocabulary = Vocabulary.from_names(["hum"])
    clips = [Clip(f"{recording}_0", recording, start_ms=0, end_ms=2000, labels=("hum",)) for recording in IDS]
    manifest = replace(
        make_manifest("ids", clips, vocabulary, corpus), sources=Sources(kind="named_by_id", address=str(corpus))
    )
    ingest(manifest, home / "ids", IngestOptions(num_frames=256, num_workers=0, keep_audio=keep_audio))
    shutil.rmtree(corpus)
    return Store(home / "ids")


def test_kept_audio_stands_in_for_a_folder_that_is_gone(tmp_path: Path, waveform_stats: Any) -> None:
    store = store_of_ids(tmp_path, keep_audio=True)
    result = build_teacher(store, waveform_stats(), "stats")
    assert (result.num_rows, result.failures) == (2, [])
    np.testing.assert_allclose(result.cache.embeddings(np.arange(2))[:, 1:], [[0.1, 2000.0]] * 2, rtol=0.02)


def test_a_folder_of_ids_that_is_gone(tmp_path: Path, waveform_stats: Any) -> None:
    store = store_of_ids(tmp_path, keep_audio=False)
    with pytest.raises(InputError, match=r"of 2 clips looked for, no source is in .*byid, and the shards hold no KEY"):
        build_teacher(store, waveform_stats(), "stats")


def test_kept_audio_stands_in_for_a_source_that_has_changed(make_store: MakeStore, waveform_stats: Any) -> None:
    store = make_store(LABELS[:6], keep_audio=True)
    before = build_teacher(store, waveform_stats(), "before").cache.embeddings(store.rows())
    write = corpus_of(store) / "clip03.wav"
    samples, rate_hz = soundfile.read(write)
    soundfile.write(write, samples * 0.5, rate_hz)
    after = build_teacher(store, waveform_stats(), "after")
    assert after.failures == []
    np.testing.assert_allclose(after.cache.embeddings(store.rows()), before, rtol=2e-3, atol=1e-4)
