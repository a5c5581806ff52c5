"""Sound in pieces without seams, from a helper that may hang or crash."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from ingest import decoder
from ingest.ledger import ClipError, Reason
from training.audiopieces import PIECE_S, PieceReader, pieces

RATE = 16_000


def noise(path: Path, duration_s: float, rate_hz: int) -> np.ndarray:
    sound = 0.1 * np.random.default_rng(0).standard_normal(round(duration_s * rate_hz)).astype(np.float32)
    soundfile.write(path, sound, rate_hz, subtype="FLOAT")
    return sound


@pytest.mark.parametrize(("duration_s", "sizes"), [(2 * PIECE_S + 1.25, [30, 30, 1.25]), (PIECE_S, [30, 0]), (1, [1])])
def test_pieces_are_the_sound(tmp_path: Path, duration_s: float, sizes: list[float]) -> None:
    sound = noise(tmp_path / "a.wav", duration_s, RATE)
    found = list(pieces(tmp_path / "a.wav", RATE))
    assert [piece.size / RATE for piece in found] == sizes
    np.testing.assert_array_equal(np.concatenate(found), sound)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100])
def test_resampled_without_a_seam(tmp_path: Path, rate_hz: int) -> None:
    sound = noise(tmp_path / "a.wav", 2 * PIECE_S + 3, rate_hz)
    found = np.concatenate(list(pieces(tmp_path / "a.wav", RATE)))
    whole = soxr.resample(sound, rate_hz, RATE, quality="HQ")
    assert abs(found.size - whole.size) <= 1
    size = min(found.size, whole.size)
    np.testing.assert_allclose(found[:size], whole[:size], atol=1e-4)


def test_helper_goes_from_file_to_file(tmp_path: Path) -> None:
    long, short = noise(tmp_path / "long.wav", PIECE_S + 2, RATE), noise(tmp_path / "short.wav", 1, RATE)
    (tmp_path / "text.wav").write_text("not a sound")
    reader = PieceReader()
    try:
        np.testing.assert_array_equal(np.concatenate(list(reader.pieces(tmp_path / "long.wav", RATE))), long)
        with pytest.raises(ClipError) as caught:
            list(reader.pieces(tmp_path / "text.wav", RATE))
        assert caught.value.reason == Reason.NOT_AUDIO
        with pytest.raises(ClipError, match="no such file"):
            list(reader.pieces(tmp_path / "absent.wav", RATE))
        next(reader.pieces(tmp_path / "long.wav", RATE))  # given up half way
        np.testing.assert_array_equal(np.concatenate(list(reader.pieces(tmp_path / "short.wav", RATE))), short)
    finally:
        reader.close()


def test_a_decoder_that_hangs_or_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "a.wav", 1, RATE)
    os.mkfifo(tmp_path / "pipe.wav")
    reader = PieceReader()
    monkeypatch.setattr(decoder, "TIME_LIMIT_S", 0.0)
    try:
        with pytest.raises(ClipError) as caught:  # it has no time even to start
            list(reader.pieces(tmp_path / "a.wav", RATE))
        assert caught.value.reason == Reason.TIMEOUT
    finally:
        reader.close()
    monkeypatch.undo()
    reader = PieceReader()
    try:
        with pytest.raises(ClipError, match="a pipe, socket or device"):
            list(reader.pieces(tmp_path / "pipe.wav", RATE))
        going_on = reader.pieces(tmp_path / "a.wav", RATE)
        next(going_on)
        reader.close()
        # A new helper knows nothing of the file: what came is not taken for all of it.
        with pytest.raises(ClipError, match="crashed"):
            list(going_on)
    finally:
        reader.close()
