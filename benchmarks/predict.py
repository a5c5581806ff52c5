"""Files tagged a second: decoded ahead and in batches, beside one file at a time by the same model in one process.

Needs a folder of short files and a model: `--model efficientat --checkpoint mn04_as_mAP_432.pt`, or one of ours.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import medians_s, parser, report

from training.audiofiles import find_audio
from training.audiopieces import pieces
from training.choosetagger import choose_tagger
from training.filewindows import Windows, windows_of
from training.hearing import HeardWindow, HearingOptions, hear_files
from training.tagger import Tagger


def one_at_a_time(files: list[Path], tagger: Tagger, windows: Windows) -> dict[int, float]:
    """Each file's highest probability; no helper, no batches."""
    found = {}
    for number, path in enumerate(files):
        cut = windows.cut(pieces(path, tagger.sample_rate_hz))
        said = [tagger.hear([tagger.prepare(waveform)]).probabilities for _, waveform in cut]
        found[number] = float(np.mean([one for one in said if one is not None], 0).max())
    return found


def together(files: list[Path], tagger: Tagger, windows: Windows, options: HearingOptions) -> dict[int, float]:
    """The same by :func:`training.hearing.hear_files`."""
    said: dict[int, list[np.ndarray]] = {}
    with hear_files(files, tagger, windows, options) as items:
        for item in items:
            if isinstance(item, HeardWindow) and item.probabilities is not None:
                said.setdefault(item.file, []).append(item.probabilities)
    return {number: float(np.mean(windows, 0).max()) for number, windows in said.items()}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("folder", help="a folder of short audio files")
    made.add_argument("--model", required=True, help="as of `training predict`")
    made.add_argument("--checkpoint", type=Path, default=None, help="as of `training predict`")
    made.add_argument("--files", type=int, default=64, help="how many of the folder's files")
    made.add_argument("--workers", type=int, default=2)
    made.add_argument("--batch-size", type=int, default=16)
    arguments = made.parse_args()
    tagger = choose_tagger(arguments.model, arguments.checkpoint, None, torch.device("cpu"), needs_labels=True)
    files, windows = find_audio([arguments.folder])[: arguments.files], windows_of(tagger, None)
    options = HearingOptions(arguments.workers, arguments.batch_size)
    both = {
        "ours": partial(together, files, tagger, windows, options),
        "one": partial(one_at_a_time, files, tagger, windows),
    }
    ours, one = both["ours"](), both["one"]()
    difference = max(abs(ours[number] - one[number]) for number in range(len(files)))
    if difference > 1e-4:
        raise SystemExit(f"they say different things: probabilities differ by {difference:.1e}")
    seconds = medians_s(both, arguments.repeats)
    rates = {name: len(files) / value for name, value in seconds.items()}
    line = (
        f"{arguments.model}, {len(files)} files, {arguments.workers} workers, batches of {arguments.batch_size}: "
        f"{rates['ours']:.1f} files/s, the start of the helpers included; one at a time {rates['one']:.1f}: "
        f"{rates['ours'] / rates['one']:.2f} x"
    )
    figures = {"seconds": seconds, "files_per_s": rates, "num_files": len(files), "max_difference": difference}
    report("predict", [line], figures, arguments.out)


if __name__ == "__main__":
    main()
