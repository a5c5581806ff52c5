"""What Multi-SSL restores of clips that it never trained on: both masked views beside the truth."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from featurestore.loader import sequential_batches
from featurestore.pages.features import sample_rows
from featurestore.store import Store
from manifests.errors import InputError
from manifests.geometry import PatchGrid
from training import losses
from training.checkpoint import About, load_checkpoint
from training.config import MultiSSLConfig
from training.inputs import Inputs, prepare
from training.masks import inter_mask, intra_mask
from training.model.networks import MultiSSLNetwork
from training.model.patches import patchify, unpatchify
from training.prior import saliency
from training.report.read import RecordedRun
from training.runfolder import STORE_FILE, recorded_store
from training.seeds import generator_for
from training.splits import choose_split

_HIDDEN_RGB = (120, 134, 150)
_WEBP_QUALITY, _WEBP_METHOD = 70, 4
# As in a store's report: louder and softer than all but these shares of a clip's values are black and white.
_SOFTEST_SHARE, _LOUDEST_SHARE = 0.02, 0.998


@dataclass(frozen=True, slots=True)
class View:
    """One masked view of B clips: hidden (B, T, F) bool; restored (B, T, F), normalised; loss (B,), equation (2).

    `mean_loss` (B,): the same loss of a network that says 0, the store's mean, everywhere.
    """

    hidden: Tensor
    restored: Tensor
    loss: Tensor
    mean_loss: Tensor


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a data: URL, what it is, and a figure to stand beside it."""

    url: str
    title: str
    figure: str = ""


@dataclass(frozen=True, slots=True)
class ClipPictures:
    """The pictures of one clip."""

    key: str
    labels: list[str]
    pictures: list[Picture]


@dataclass(frozen=True, slots=True)
class Reconstructions:
    """Of one run's last Multi-SSL checkpoint; `about` says which, in words."""

    about: str
    clips: list[ClipPictures]


def reconstruct(run: RecordedRun, num_clips: int, seed: int) -> Reconstructions:
    """Restores held-out clips that the seed chooses; its masks are the same each time.

    Raises InputError saying why it can't: no checkpoint, no store, another store, a run of another version.
    """
    found = run.last_checkpoint("multissl")
    if found is None:
        raise InputError("this run has no Multi-SSL checkpoint that can be read")
    path, about = found
    if run.settings is None:
        raise InputError("this run's configuration is not one that this version understands")
    config = run.settings.multissl
    if not config.restore:
        raise InputError("this run was trained without restoration (multissl.restore = false)")
    store = _open_store(run, path, about)
    rows = sample_rows(choose_split(store, about.data, about.seed, for_training=False).held_out, num_clips, seed)
    network = MultiSSLNetwork(about.model, torch.Generator())
    network.load_state_dict(load_checkpoint(path).network)
    (batch,) = sequential_batches(store, rows, len(rows))
    inputs = prepare(batch, about.model.grid, about.normalisation, torch.device("cpu"), None)
    prior, views = restore_views(network.eval(), inputs, config, generator_for(seed, "report", "masks"))
    names = about.vocabulary.names
    clips = [
        ClipPictures(
            key,
            [names[place] for place in np.flatnonzero(batch.labels[clip]).tolist()],
            _pictures_of(clip, inputs.fbank, prior, views, about.model.grid),
        )
        for clip, key in enumerate(batch.keys)
    ]
    return Reconstructions(f"{path.parent.relative_to(run.folder)}, step {about.step:,} of {about.num_steps:,}", clips)


def _open_store(run: RecordedRun, checkpoint: Path, about: About) -> Store:
    """The store that the run was trained on, in the snapshot of then."""
    if "store" not in run.store:
        raise InputError(f"its {STORE_FILE} doesn't say which store it was trained on")
    address = recorded_store(checkpoint)
    if address is None:
        raise InputError(f"the store that it was trained on is not there any more ({run.store['store']})")
    for snapshot in Store(address).file.snapshots:
        if snapshot.fingerprint == about.store_fingerprint:
            return Store(address, snapshot.number)
    raise InputError(f"{address} is not the store any more that it was trained on: its fingerprint is another one")


@torch.inference_mode()
def restore_views(
    network: MultiSSLNetwork, inputs: Inputs, config: MultiSSLConfig, generator: torch.Generator
) -> tuple[Tensor, dict[str, View]]:
    """The prior S (B, L) and the views by name, made and judged as :func:`training.multissl.multissl_losses` does.

    The same generator draws the same masks there and here.
    """
    grid, aft = network.grid, network.aft
    target = patchify(inputs.fbank, grid)  # (B, L, 256)
    prior = saliency(inputs.gradient_magnitude)
    pixels = intra_mask(len(target), grid, config.intra_max_share, generator)
    mask = inter_mask(prior, config.mask_ratio, config.sampling, generator)
    weight = prior if config.hog_weight else torch.ones_like(prior)

    def judged(tokens: Tensor, hidden: Tensor, counted: Tensor | None) -> View:
        restored = network.restore(aft.encode(aft.place(tokens)))  # (B, L, 256)
        # What is in plain sight is not asked for, so that it is shown as it was given.
        shown = restored if counted is None else torch.where(counted[..., None], restored, target)
        return View(
            hidden,
            unpatchify(shown, grid),
            _loss_by_clip(restored, target, weight, counted),
            _loss_by_clip(torch.zeros_like(target), target, weight, counted),
        )

    views = {}
    if config.intra:
        tokens = aft.embedding(patchify(inputs.fbank.masked_fill(pixels, 0.0), grid))
        views["intra"] = judged(tokens, pixels, None)
    if config.inter:
        hidden = unpatchify(mask.masked[..., None].expand_as(target), grid)
        views["inter"] = judged(network.mae(target, mask.ids_keep), hidden, mask.masked)
    return prior, views


def _loss_by_clip(restored: Tensor, target: Tensor, weight: Tensor, counted: Tensor | None) -> Tensor:
    def alone(values: Tensor, clip: int) -> Tensor:
        return values[clip : clip + 1]

    return torch.stack(
        [
            losses.restoration(
                alone(restored, clip),
                alone(target, clip),
                alone(weight, clip),
                None if counted is None else alone(counted, clip),
            )
            for clip in range(len(target))
        ]
    )


def _pictures_of(clip: int, fbank: Tensor, prior: Tensor, views: dict[str, View], grid: PatchGrid) -> list[Picture]:
    """The truth, each view's input and restoration, all in the truth's colours; and the prior."""
    truth = fbank[clip].numpy()
    low, high = (float(edge) for edge in np.quantile(truth, (_SOFTEST_SHARE, _LOUDEST_SHARE)))

    def spectrogram(values: Tensor, hidden: Tensor | None = None) -> str:
        levels = ((values.numpy() - low) * (255.0 / max(high - low, 1e-3))).clip(0, 255).astype(np.uint8)
        colours = colormaps["magma"](levels, bytes=True)[..., :3]
        if hidden is not None:
            colours[hidden.numpy()] = _HIDDEN_RGB
        return _as_url(colours, "WEBP", quality=_WEBP_QUALITY, method=_WEBP_METHOD)

    patches = prior[clip].reshape(grid.num_time, grid.num_freq).numpy()
    pictures = [Picture(spectrogram(fbank[clip]), "truth")]
    for name, view in views.items():
        loss = f"loss {view.loss[clip]:.3f}; the mean everywhere: {view.mean_loss[clip]:.3f}"
        pictures += [
            Picture(
                spectrogram(fbank[clip], view.hidden[clip]),
                f"{name}-masked",
                f"{view.hidden[clip].float().mean():.1%} hidden",
            ),
            Picture(spectrogram(view.restored[clip]), f"{name}, restored", loss),
        ]
    colours = colormaps["viridis"](patches, bytes=True)[..., :3]
    return [*pictures, Picture(_as_url(colours, "PNG"), "prior S", "dark 0, bright 1")]


def _as_url(colours: NDArray[np.uint8], kind: str, **options: int) -> str:
    """(T, F, 3) as a picture with time to the right and frequency upwards."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours.transpose(1, 0, 2)[::-1])).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
