"""Where an AFT starts from (Table 7): weights that were trained on images or sounds, made to fit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from manifests.errors import InputError
from training.checkpoint import Training
from training.config import ModelConfig
from training.model.aft import AudioFeatureTransformer
from training.model.pretrained import Pretrained, read_pretrained
from training.model.resample import resize_kernel, resize_positions

LAST_NORM = "transformer.norm."
BLOCKS, HEARD = "transformer.blocks.", "perceptron.contract.weight"
HIDDEN = ("perceptron.expand.weight", "perceptron.expand.bias", HEARD)
NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Initialised:
    """What an AFT took from where. `taken`, `resampled` and `kept` are names of the AFT, the others of the file."""

    source: str
    sha256: str
    kind: str
    num_blocks: int  # taken, of `num_blocks_there`
    num_blocks_there: int
    taken: tuple[str, ...]
    resampled: dict[str, str]  # from which size to which; rows (frequency) before columns (time)
    folded: tuple[str, ...]  # LayerScale's factors, now in the layer before
    ignored: tuple[str, ...]
    kept: tuple[str, ...]  # of the AFT, as they were initialised
    before: tuple[Training, ...] = ()  # what a checkpoint of ours was trained on

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "before": [training.model_dump(mode="json") for training in self.before]}

    def __str__(self) -> str:
        parts = [
            f"{self.source} ({self.kind}): {len(self.taken)} tensors, "
            f"{self.num_blocks} of its {self.num_blocks_there} blocks"
        ]
        fitted = tuple(f"{name} {change}" for name, change in self.resampled.items())
        parts += [f"made to fit: {_some(fitted)}"] if fitted else []
        parts += [f"{len(self.folded)} factors of LayerScale folded in"] if self.folded else []
        parts += [f"not used: {_some(self.ignored)}"] if self.ignored else []
        parts += [f"as initialised: {_some(self.kept)}"] if self.kept else []
        return "; ".join(parts)


def initialise_aft(aft: AudioFeatureTransformer, source: str) -> Initialised:
    """Gives the AFT the weights of `source`: a file, or timm:NAME; what these lack stays as it is.

    Patches are resized to 16 x 16 (:func:`resize_kernel`), colours summed, positions resampled to the AFT's grid,
    frequency for height and time for width. Of a deeper network the first blocks are taken, without its last norm,
    which belongs to what the blocks left out would say.

    Raises InputError where the file can't be read, has none of the known layouts, or doesn't fit.
    """
    found = read_pretrained(source)
    config = aft.config
    _refuse_misfits(found, config)
    wanted = aft.state_dict()
    embedding, resampled = _fit_embedding(found, config)
    perceptrons, widened = _widen_perceptrons(found.weights, wanted)
    cut = found.num_blocks > config.depth
    unwanted = {name for name in found.weights if name not in wanted or (cut and name.startswith(LAST_NORM))}
    weights = {name: part for name, part in found.weights.items() if name not in unwanted} | embedding | perceptrons
    found.file.check({name: wanted[name] for name in weights}, weights)
    for name, part in weights.items():
        if not torch.isfinite(part).all():
            raise found.file.error(f"is damaged, {name} made from it has values that are not finite")
    aft.load_state_dict(wanted | weights)
    return Initialised(
        source=source,
        sha256=found.file.sha256,
        kind=found.kind,
        num_blocks=config.depth,
        num_blocks_there=found.num_blocks,
        taken=tuple(weights),
        resampled=resampled | widened,
        folded=tuple(name for name, layer in found.folded.items() if f"{layer}.weight" in weights),
        ignored=found.ignored,
        kept=tuple(name for name in wanted if name not in weights),
        before=found.trainings,
    )


def _refuse_misfits(found: Pretrained, config: ModelConfig) -> None:
    width, where = len(found.kernel), f"{found.file.path} ({found.kind})"
    if width != config.width:
        raise InputError(
            f"{where} is {width} wide, and the model {config.width}: set model.width={width}, and model.num_heads to "
            "as many heads as it was trained with"
        )
    if found.num_blocks < config.depth:
        raise InputError(
            f"{where} has {found.num_blocks} blocks, and the model {config.depth}: set model.depth={found.num_blocks} "
            "or less"
        )
    if found.model and found.model.num_heads != config.num_heads:
        heads = found.model.num_heads
        raise InputError(f"{where} has {heads} heads, and the model {config.num_heads}: set model.num_heads={heads}")


def _fit_embedding(found: Pretrained, config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The patches' weights (D, 256) and the positions (L, D), and what was resampled for them."""
    grid = config.grid
    kernel, positions, resampled = found.kernel.sum(1, keepdim=True), found.positions, {}
    project, table = "embedding.project.weight", "embedding.positions"
    if (old := kernel.shape[2]) != grid.patch_size:
        kernel = resize_kernel(kernel, grid.patch_size)
        resampled[project] = f"{old}x{old} to {grid.patch_size}x{grid.patch_size}"
    rows, columns, _ = positions.shape
    if (rows, columns) != (grid.num_freq, grid.num_time):
        positions = resize_positions(positions, (grid.num_freq, grid.num_time))
        resampled[table] = f"{rows}x{columns} to {grid.num_freq}x{grid.num_time}"
    # A patch of the AFT is time by frequency, and its patches are numbered in that order.
    return {project: kernel.transpose(2, 3).flatten(1), table: positions.transpose(0, 1).flatten(0, 1)}, resampled


def _widen_perceptrons(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Blocks' perceptrons with a narrower hidden layer, made as wide as wanted without a change of what they say.

    The hidden units that they lack keep their weights, and are not heard at first.
    """
    layers = {name: part for name, part in found.items() if name.startswith(BLOCKS) and name.endswith(HIDDEN)}
    old = {name: part.T if name.endswith(HEARD) else part for name, part in layers.items()}  # hidden units first
    widths = {len(part) for part in old.values()}
    weights, widened = {}, {}
    for name in old.keys() & wanted.keys() if len(widths) == 1 else ():
        heard, part = name.endswith(HEARD), old[name]
        new = wanted[name].T if heard else wanted[name]
        if len(part) < len(new) and part.shape[1:] == new.shape[1:]:
            rest = new[len(part) :].to(part)
            whole = torch.cat([part, torch.zeros_like(rest) if heard else rest])
            weights[name] = whole.T if heard else whole
            widened[f"{BLOCKS}*.perceptron"] = f"{len(part)} to {len(new)} hidden units"
    return weights, widened


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NUM_SHOWN]) + (f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else "")
