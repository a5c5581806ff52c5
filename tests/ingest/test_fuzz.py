"""Mutated real files through the whole path: finite features or a typed reason, no crash, no hang."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import ingest.decoder
from ingest.job import ingest as run_ingest
from ingest.ledger import Reason
from ingest.plan import IngestOptions
from manifests.folder import FolderOptions, folder_manifest
from tests.ingest.audio_writers import AMR, Track, can_encode, mux, sound, write

Rng = np.random.Generator
NUM_MUTANTS = 300
ALLOWED = {Reason.NOT_AUDIO, Reason.NO_AUDIO_STREAM, Reason.DECODE, Reason.TOO_SHORT, Reason.NON_FINITE}
# What lengths, counts and rates are set to.
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 2**63 - 1)


def originals(folder: Path) -> list[Path]:
    """Small files of each container and codec."""
    folder.mkdir()
    short, wide, low = sound(0.6, 44_100, 2), sound(0.6, 48_000), sound(0.6, 8_000)
    for name, subtype in (("a.wav", "PCM_16"), ("b.wav", "FLOAT"), ("c.wav", "MS_ADPCM"), ("d.flac", "PCM_16")):
        write(folder / name, short, subtype=subtype)
    for name in ("e.ogg", "f.mp3", "g.aiff", "h.caf", "i.au"):
        write(folder / name, short)
    write(folder / "j.opus", wide, 48_000, "OPUS", format="OGG")
    write(folder / "k.wav", low, 8_000, "GSM610")
    mux(folder / "l.m4a", Track(short, "aac"))
    mux(folder / "m.m4a", Track(short, "aac"), options={"movflags": "frag_keyframe+empty_moov"})
    mux(folder / "n.webm", Track(wide, "libopus", 48_000), video="libvpx")
    mux(folder / "o.mkv", Track(short, "flac"))
    mux(folder / "p.mp4", Track(short, "aac"), video="mpeg4")
    mux(folder / "q.avi", Track(short, "libmp3lame"), video="mpeg4")
    mux(folder / "r.aac", Track(short, "aac"), form="adts")
    mux(folder / "s.ts", Track(short, "aac"), form="mpegts")
    mux(folder / "t.flv", Track(short, "libmp3lame"))
    mux(folder / "u.wma", Track(short, "wmav2", bit_rate=64_000), form="asf")
    mux(folder / "v.m4a", Track(short, "alac"))
    mux(folder / "w.ac3", Track(short, "ac3"))
    if can_encode(AMR):
        mux(folder / "x.amr", Track(low, AMR, 8_000), form="amr")
    mux(folder / "y.wv", Track(short, "wavpack"))
    mux(folder / "z.m4a", Track(sound(0.3, 48_000, 8), "aac", 48_000))
    return sorted(folder.iterdir())


def _place(content: bytearray, rng: Rng) -> int:
    """A byte of the file: of its header every second time, where a change does most."""
    most = len(content) if rng.random() < 0.5 else min(len(content), 200)
    return int(rng.integers(most)) if most else 0


def flip_bits(content: bytearray, other: bytes, rng: Rng) -> None:
    for _ in range(int(rng.integers(1, 20)) if content else 0):
        content[_place(content, rng)] ^= 1 << int(rng.integers(8))


def cut(content: bytearray, other: bytes, rng: Rng) -> None:
    del content[_place(content, rng) :]


def zero(content: bytearray, other: bytes, rng: Rng) -> None:
    start, size = _place(content, rng), int(rng.integers(1, 4000))
    content[start : start + size] = bytes(len(content[start : start + size]))


def double(content: bytearray, other: bytes, rng: Rng) -> None:
    start, size = _place(content, rng), int(rng.integers(1, 4000))
    content[start:start] = content[start : start + size]


def drop(content: bytearray, other: bytes, rng: Rng) -> None:
    start, size = _place(content, rng), int(rng.integers(1, 4000))
    del content[start : start + size]


def noise(content: bytearray, other: bytes, rng: Rng) -> None:
    start, size = _place(content, rng), int(rng.integers(1, 400))
    content[start : start + size] = rng.bytes(len(content[start : start + size]))


def set_field(content: bytearray, other: bytes, rng: Rng) -> None:
    start, size = _place(content, rng), int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice(np.array(EXTREMES, np.uint64))) % 256**size
    content[start : start + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")


def splice(content: bytearray, other: bytes, rng: Rng) -> None:
    start, size = int(rng.integers(len(other))), int(rng.integers(1, 20_000))
    place = _place(content, rng)
    content[place : place + int(rng.integers(2)) * size] = other[start : start + size]


MUTATIONS: tuple[Callable[[bytearray, bytes, Rng], None], ...] = (
    *(flip_bits, cut, zero, double, drop, noise, splice),
    *(set_field, set_field, set_field),
)


def mutant(seed: int, files: list[Path]) -> tuple[str, bytes]:
    """The suffix and content of the mutant that belongs to `seed`: one of the files, changed in one to four places."""
    rng = np.random.default_rng(seed)
    victim, donor = (files[int(place)] for place in rng.integers(len(files), size=2))
    content, other = bytearray(victim.read_bytes()), donor.read_bytes()
    for place in rng.integers(len(MUTATIONS), size=int(rng.integers(1, 5))):
        MUTATIONS[int(place)](content, other, rng)
    return victim.suffix, bytes(content)


def test_mutated_files_end_in_features_or_in_a_reason(
    tmp_path: Path, shared_clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest.decoder, "TIME_LIMIT_S", 20.0)
    files = [*originals(tmp_path / "originals"), *shared_clips]
    folder = tmp_path / "mutants"
    folder.mkdir()
    for seed in range(NUM_MUTANTS):
        suffix, content = mutant(seed, files)
        (folder / f"seed{seed:04d}{suffix}").write_bytes(content)
    manifest = folder_manifest(folder, FolderOptions(labels="none"))
    run_ingest(manifest, tmp_path / "store", IngestOptions(num_frames=256, num_workers=0, max_failures=1.0))
    rows = [row for path in (tmp_path / "store").glob("shards/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["key"] for row in rows} == {f"seed{seed:04d}" for seed in range(NUM_MUTANTS)}
    bad = {row["key"]: row["detail"] for row in rows if _is_bad(row)}
    assert bad == {}
    # Else the mutations are too harsh, or too mild, to say anything.
    assert 0.1 < np.mean([row["ok"] for row in rows]) < 0.9


def _is_bad(row: dict[str, Any]) -> bool:
    """A crash by a signal, a hang, or features that are no numbers."""
    if row["ok"]:
        return not np.isfinite([row["fbank_sum"], row["fbank_sum_sq"], row["rms"], row["peak"]]).all()
    return row["reason"] not in ALLOWED or "crashed" in row["detail"]


@pytest.fixture
def shared_clips() -> list[Path]:
    """A few real clips, where they are."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "esc10" / "audio"
    return sorted(folder.glob("*.ogg"))[:3]
