"""File to shard on one core for 10 s clips, beside the floor (decode and resample), the usual script and lhotse.

lhotse is no dependency: it takes part where it is installed (`pip install lhotse`), in the formats that it reads there.
"""

import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
from measure import medians_s, parser, report
from skimage.feature import hog as skimage_hog

from ingest.decode import decode, open_audio
from ingest.featurise import looped
from ingest.layout import SHARD_FOLDER, Part, StoreFile
from ingest.shards import ShardTask, write_shard
from ingest.sources import SourceFile
from manifests.clips import Clip
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Vocabulary

NUM_CLIPS = 20
SPEC = FbankSpec()
CODECS = {"m4a": ("aac", 44_100), "webm": ("libopus", 48_000), "ogg": ("libopus", 48_000)}


def write_clip(path: Path, codec: str, rate_hz: int, seed: int) -> None:
    """10 s of stereo noise and tones."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(10 * rate_hz) / rate_hz
    sound = 0.1 * rng.normal(size=(2, time_s.size)) + 0.3 * np.sin(2 * np.pi * 440 * (1 + seed) * time_s)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="stereo")
        if not isinstance(stream, av.AudioStream):
            raise ValueError(f"{codec} is no codec of audio")
        frame = av.AudioFrame.from_ndarray(sound.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = rate_hz
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (part := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def floor(paths: list[Path]) -> None:
    for path in paths:
        with open_audio(path) as source:
            decode(source, SPEC.sample_rate_hz, 0.0, SPEC.num_samples / SPEC.sample_rate_hz)


def usual_script(paths: list[Path]) -> None:
    """Decode and resample, torchaudio's fbank, scikit-image's HOG; nothing is written."""
    for path in paths:
        with open_audio(path) as source:
            waveform = decode(source, SPEC.sample_rate_hz, 0.0, SPEC.num_samples / SPEC.sample_rate_hz)
        sound = torch.from_numpy(looped(waveform, SPEC.num_samples))
        features = kaldi.fbank(
            (sound - sound.mean())[None],
            htk_compat=True,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
        )
        skimage_hog(features.numpy(), 9, (16, 16), (1, 1))


def by_lhotse(paths: list[Path], folder: Path) -> None:
    """lhotse's steps of compute_and_store_features: read, resample, fbank, one .npy a clip; no HOG, and no sync.

    The mean over channels is taken here: its own downmix decodes a stereo file twice.
    """
    from lhotse import Fbank, FbankConfig, NumpyFilesWriter, Recording

    extractor = Fbank(
        FbankConfig(sampling_rate=SPEC.sample_rate_hz, num_filters=SPEC.num_mel_bins, window_type="hanning")
    )
    with NumpyFilesWriter(folder) as storage:
        for path in paths:
            samples = Recording.from_file(path).resample(SPEC.sample_rate_hz).load_audio().mean(0, keepdims=True)
            extractor.extract_from_samples_and_store(samples, storage, SPEC.sample_rate_hz, offset=0.0, channel=0)


def why_not_lhotse(path: Path) -> str | None:
    """Why lhotse can't take part with such a file, None where it can."""
    if find_spec("lhotse") is None:
        return "it is not installed (pip install lhotse)"
    from lhotse import Recording
    from lhotse.audio import AudioLoadingError

    try:
        Recording.from_file(path).load_audio()
    except AudioLoadingError:
        return f"it reads no {path.suffix} here; it may with torchcodec or the program ffmpeg"
    return None


def ours(paths: list[Path], folder: Path) -> None:
    """Everything: decode, resample, fbank, HOG, tar, hashes, sidecar, sync."""
    clips = tuple(Clip(path.stem, path.name) for path in paths)
    store = StoreFile(
        dataset=paths[0].suffix[1:],
        clips_per_shard=len(clips),
        seed=0,
        keep_audio=False,
        fbank=SPEC,
        hog=HogSpec(),
        vocabulary=Vocabulary(),
        versions={},
        parts=(Part(num_clips_asked=len(clips), manifest_sha256="", wanted_sha256=""),),
    )
    sources = tuple(SourceFile(str(folder), clip.source) for clip in clips)
    for old in (folder / SHARD_FOLDER).iterdir():  # whole samples would be copied
        old.unlink()
    for _ in write_shard(ShardTask(str(folder), store, 0, "", clips, sources)):
        pass


def measure_format(paths: list[Path], folder: Path, repeats: int) -> tuple[list[str], dict[str, float]]:
    """What to print of files of one format, and the candidates' ms a clip."""
    ending = paths[0].suffix[1:]
    candidates = {
        "floor": partial(floor, paths),
        "ours": partial(ours, paths, folder),
        "usual script": partial(usual_script, paths),
    }
    missing = why_not_lhotse(paths[0])
    if missing is None:
        candidates["lhotse"] = partial(by_lhotse, paths, folder / "lhotse")
    seconds = medians_s(candidates, repeats)
    each_ms = {key: value / NUM_CLIPS * 1e3 for key, value in seconds.items()}
    line = (
        f"{ending}, 10 s: ours {each_ms['ours']:.1f} ms a clip, decode + resample {each_ms['floor']:.1f} ms, "
        f"usual script {each_ms['usual script']:.1f} ms: {each_ms['ours'] / each_ms['floor']:.2f} x the floor "
        f"(goal: 1.3), {each_ms['usual script'] / each_ms['ours']:.2f} times as fast as the script"
    )
    if missing is not None:
        return [line, f"{ending}, lhotse left out: {missing}"], each_ms
    times = each_ms["lhotse"] / each_ms["ours"]
    peer = f"{ending}, lhotse without HOG: {each_ms['lhotse']:.1f} ms a clip, {times:.2f} times as long as ours with it"
    return [line, peer], each_ms


def main() -> None:
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / SHARD_FOLDER).mkdir()
        for ending, (codec, rate_hz) in CODECS.items():
            paths = [folder / f"clip{number}.{ending}" for number in range(NUM_CLIPS)]
            for number, path in enumerate(paths):
                write_clip(path, codec, rate_hz, number)
            told, figures[ending] = measure_format(paths, folder, max(3, arguments.repeats // 3))
            lines += told
    report("ingest", lines, figures, arguments.out)


if __name__ == "__main__":
    main()
