"""A tiny corpus and a finished store that the tests share; neither may be written to."""

import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import settings

from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.clips import Manifest
from manifests.folder import folder_manifest

# Examples are no benchmark: on a busy machine one may take its time. The same ones each time, so that a change is
# judged by itself; `pytest --hypothesis-profile explore` looks for new ones.
settings.register_profile("project", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("project")

# pytest-xdist's workers ignore Ctrl-C, and so would all that they start, whose answer to it is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Shorter and longer than the window of 256 frames, 2.575 s; every class gets several rates.
RATES_HZ = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000)
DURATIONS_S = (0.3, 0.5, 1.0, 1.7, 2.3, 2.575, 2.6, 3.0)
CLASSES = ("chirp", "noise", "tone")
OPTIONS = IngestOptions(num_frames=256, clips_per_shard=5, num_workers=0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors, weights and real clips."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder}, where golden vectors, weights and real clips lie")
    return folder


def _sound(label: str, time_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(time_s.size)
    if label == "noise":
        return 0.1 * noise
    start_hz = rng.uniform(200, 1500)
    sweep_hz_per_s = rng.uniform(200, 600) if label == "chirp" else 0.0
    return 0.4 * np.sin(2 * np.pi * (start_hz + sweep_hz_per_s * time_s / 2) * time_s) + 0.003 * noise


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """12 clips of 3 classes, 0.3 to 3 s at 8 to 48 kHz, some in stereo."""
    root = tmp_path_factory.mktemp("corpus") / "tiny"
    rng = np.random.default_rng(7)
    for number in range(12):
        label, rate_hz = CLASSES[number % 3], RATES_HZ[number % len(RATES_HZ)]
        time_s = np.arange(round(DURATIONS_S[number % len(DURATIONS_S)] * rate_hz)) / rate_hz
        channels = [_sound(label, time_s, rng) for _ in range(1 + number % 2)]
        (root / label).mkdir(parents=True, exist_ok=True)
        soundfile.write(root / label / f"c{number:02d}.wav", np.stack(channels, 1), rate_hz, subtype="PCM_16")
    return folder_manifest(root)


@pytest.fixture(scope="session")
def store_root(corpus: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of the corpus: 256 frames, shards of 5, 5 and 2 clips."""
    root = tmp_path_factory.mktemp("store") / "tiny"
    ingest(corpus, root, OPTIONS)
    return root
