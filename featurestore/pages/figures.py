"""The paper's Figure 5 (HOG statistics over a hundred clips) and Figure 7 (spectrogram and HOG of several classes)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featurestore.pages.axes import khz_ticks, time_ticks
from featurestore.pages.features import read_features, sample_rows
from featurestore.pages.glyphs import hog_picture
from featurestore.pages.pictures import spectrogram_picture
from featurestore.selection import choose_rows
from featurestore.store import Store
from ingest.atomic import atomic_path
from manifests.errors import InputError
from manifests.geometry import FbankSpec

_DPI = 150
_BLUE, _ORANGE = "#2563c9", "#d9722e"


@dataclass(frozen=True, slots=True)
class FigureOptions:
    """num_clips is Figure 5's; Figure 7 shows `labels` (ids or names), or `num_classes` that the seed chooses."""

    num_clips: int = 100
    num_classes: int = 4
    labels: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class HogStatistics:
    """mean and std (T/16, F/16) of each patch's mean gradient magnitude over the clips."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    num_clips: int


def draw_figures(store: Store, out: Path, suffixes: tuple[str, ...], options: FigureOptions) -> list[Path]:
    """Writes figure5 and figure7 into the folder `out`, in a file of each suffix (.png, .svg, .pdf); returns them.

    Raises InputError for a store with too few clips or classes, or an unknown label.
    """
    statistics = hog_statistics(store, options.num_clips, options.seed)
    examples = choose_examples(store, options)
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "figure5": _draw_statistics(statistics, store.file.fbank),
        "figure7": _draw_examples(store, examples),
    }
    return [_write(figure, out / f"{name}{suffix}") for name, figure in figures.items() for suffix in suffixes]


def hog_statistics(store: Store, num_clips: int, seed: int) -> HogStatistics:
    """Statistics of the prior's x, equation (1), over clips that the seed chooses. Raises InputError for too few."""
    rows = store.rows()
    if len(rows) < num_clips:
        raise InputError(
            f"{store.location} has {len(rows)} clips, and figure 5 takes {num_clips}; take fewer with --num-clips"
        )
    total = total_sq = np.zeros(1)
    for row in sample_rows(rows, num_clips, seed).tolist():
        magnitude = read_features(store, row).gradient_magnitude.astype(np.float64)
        total, total_sq = total + magnitude, total_sq + np.square(magnitude)
    mean = total / num_clips
    return HogStatistics(mean, np.sqrt(np.maximum(total_sq / num_clips - np.square(mean), 0.0)), num_clips)


def choose_examples(store: Store, options: FigureOptions) -> list[tuple[str, int]]:
    """Names of classes, and a row of a clip of each, preferring clips that have no other label.

    Raises InputError for a class without clips, or fewer classes than asked for.
    """
    generator = np.random.default_rng(options.seed)
    labels = options.labels or _classes_with_clips(store, options.num_classes, generator)
    examples = []
    for label in labels:
        rows = choose_rows(store, labels=[label])
        rows = rows[store.ok[rows]]
        if not len(rows):
            raise InputError(f"{store.location} has no clip of {label!r}; name another class with --label")
        candidates = generator.permutation(rows)[:256]
        alone = candidates[store.labels(candidates).sum(1) == 1]
        names = {one.id: one.name for one in store.file.vocabulary.labels}
        examples.append((names.get(label, label), int((alone if len(alone) else candidates)[0])))
    return examples


def _classes_with_clips(store: Store, num_classes: int, generator: np.random.Generator) -> list[str]:
    """Ids of `num_classes` classes that clips in the store have."""
    lists = store.column("labels").combine_chunks().filter(store.ok)
    found = set(lists.flatten().unique().to_pylist())
    ids = [label for label in store.file.vocabulary.ids if label in found]
    if len(ids) < num_classes:
        raise InputError(
            f"{store.location} has clips of {len(ids)} classes, and figure 7 shows {num_classes}; take fewer with "
            "--num-classes"
        )
    return [ids[place] for place in np.sort(generator.choice(len(ids), num_classes, replace=False))]


def _draw_statistics(statistics: HogStatistics, spec: FbankSpec) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    maps = figure.subplot_mosaic([["mean", "mean"], ["std", "std"], ["time", "freq"]], height_ratios=[1, 1, 1.3])
    for name, values in (("mean", statistics.mean), ("std", statistics.std)):
        axes = maps[name]
        image = axes.imshow(values.T, origin="lower", aspect="auto", cmap="viridis", extent=(0, 1, 0, 1))
        _place_ticks(axes, spec)
        what = "Mean" if name == "mean" else "Standard deviation"
        axes.set_title(f"{what} of the gradient magnitude of each patch, {statistics.num_clips} clips", fontsize=10)
        figure.colorbar(image, ax=axes, pad=0.01)
    _draw_profile(maps["time"], statistics, over=1, ticks=time_ticks(spec), label="time, s")
    _draw_profile(maps["freq"], statistics, over=0, ticks=khz_ticks(spec), label="frequency, kHz")
    return figure


def _draw_profile(axes: Any, statistics: HogStatistics, over: int, ticks: list[tuple[float, str]], label: str) -> None:
    """The grid's mean over one of its axes, in a band of the standard deviations' mean."""
    mean, std = statistics.mean.mean(over), statistics.std.mean(over)
    places = (np.arange(len(mean)) + 0.5) / len(mean)
    axes.fill_between(places, mean - std, mean + std, color=_ORANGE, alpha=0.25, linewidth=0, label="± std over clips")
    axes.plot(places, mean, color=_BLUE, label="mean")
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel=label, ylabel="gradient magnitude")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _draw_examples(store: Store, examples: list[tuple[str, int]]) -> Figure:
    figure = Figure(figsize=(12, 1.7 * len(examples) + 0.4), layout="constrained")
    grid = figure.subplots(len(examples), 2, squeeze=False)
    for (name, row), (left, right) in zip(examples, grid, strict=True):
        features = read_features(store, row)
        left.imshow(spectrogram_picture(features.fbank), aspect="auto", cmap="magma", extent=(0, 1, 0, 1))
        right.imshow(hog_picture(features.hog), aspect="auto", cmap="gray", extent=(0, 1, 0, 1), vmin=0, vmax=1)
        for axes, what in ((left, "spectrogram"), (right, "HOG")):
            _place_ticks(axes, store.file.fbank)
            # Not parsed as mathematics: a name may hold a dollar sign.
            axes.set_title(f"{name}: {what}", fontsize=10, parse_math=False)
    return figure


def _place_ticks(axes: Any, spec: FbankSpec) -> None:
    seconds, khz = time_ticks(spec), khz_ticks(spec)
    axes.set_xticks([place for place, _ in seconds], [text for _, text in seconds])
    axes.set_yticks([place for place, _ in khz], [text for _, text in khz])
    axes.set_xlabel("s", fontsize=8, labelpad=1)
    axes.set_ylabel("kHz", fontsize=8)
    axes.tick_params(labelsize=8)


def _write(figure: Figure, path: Path) -> Path:
    # Without a date, so that the same store gives the same file.
    metadata = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=_DPI, metadata=metadata)
    return path
