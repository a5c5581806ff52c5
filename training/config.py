"""The configuration of a run: one documented model per component, presets in TOML, unknown keys refused."""

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from manifests.errors import InputError
from manifests.geometry import PatchGrid

PRESETS = tuple(
    sorted(
        path.name.removesuffix(".toml")
        for path in (files("training") / "presets").iterdir()
        if path.name.endswith(".toml")
    )
)
Stage = Literal["multissl", "distill"]
Beta = Annotated[float, Field(ge=0, lt=1)]
Proportion = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """Sizes of the networks. The perceptrons are width - 2 width - width."""

    num_frames: Literal[256, 512, 1024]  # of the fbank that the model sees; at most the store's
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    mae_width: int = Field(gt=0)
    mae_depth: int = Field(gt=0)
    mae_num_heads: int = Field(gt=0)
    recompute: bool = False  # activations again in the backward pass: a third slower, and much less memory
    parameter_free_attention: bool = False  # SimAM on the patch grid in each block, for the preset `spfa`

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        for width, heads in ((self.width, self.num_heads), (self.mae_width, self.mae_num_heads)):
            if width % heads or width % 4:
                raise ValueError(f"a width of {width} must be a multiple of its {heads} heads and of 4")
        return self

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(num_frames=self.num_frames)


class OptimiserConfig(Section):
    """AdamW under a warm-up and a cosine; `peak_lr` is that of the first iteration."""

    epochs: float = Field(ge=0)
    batch_size: int = Field(gt=0)
    peak_lr: float = Field(gt=0)
    lr_factor_per_iteration: float = Field(default=0.8, gt=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    max_gradient_norm: float = Field(default=3.0, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # of the learning rate, from each block to the one below it


class AugmentConfig(Section):
    """What each clip undergoes in a step, on the device, drawn from (seed, stage, epoch, key)."""

    roll: bool = True  # circular start, by whole patches
    gain_db: float = Field(default=0.0, ge=0)  # louder or softer by up to so much


class LabelAugmentConfig(AugmentConfig):
    """Also what changes labels, or would be lost on a loss of restoration."""

    mixup_share: float = Field(default=0.0, ge=0, le=1)  # of the clips, each mixed with another one of its batch
    mixup_alpha: int = Field(default=10, gt=0)  # weights from Beta(alpha, alpha); 10 as in AST, 1: uniform
    time_mask_frames: int = Field(default=0, ge=0)  # SpecAugment: the widest band of frames that becomes 0
    freq_mask_bins: int = Field(default=0, ge=0)  # and of mel bins


class MultiSSLConfig(Section):
    """Equations (1)-(10). The switches are those of the paper's ablations (Tables 1, 2, 4, 5 and 6)."""

    optimiser: OptimiserConfig
    intra: bool = True  # the view with bands masked inside patches
    inter: bool = True  # the view with whole patches masked
    restore: bool = True  # (2), (3)
    feature_mse: bool = True  # (4), (5)
    feature_kl: bool = True  # (6), (7)
    contrast: bool = True  # (8), (9)
    hog_weight: bool = True  # S as the weight of restoration
    sampling: Literal["hog", "inverted", "uniform"] = "hog"  # what the inter mask prefers
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    intra_max_share: float = Field(default=0.5, gt=0, le=1)
    temperature: float = Field(default=0.1, gt=0)
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=1.0, ge=0)
    augment: AugmentConfig = AugmentConfig()
    proportions: tuple[Proportion, ...] | None = None  # of several stores in the batches; None: by their clips

    @property
    def compares(self) -> bool:
        """Whether a loss compares a view with the raw one, which has to be encoded then."""
        return self.feature_mse or self.feature_kl or self.contrast

    @model_validator(mode="after")
    def _something_to_learn(self) -> "MultiSSLConfig":
        if self.optimiser.epochs == 0:
            return self
        if not (self.intra or self.inter):
            raise ValueError("intra and inter are both off: there is no view to learn from; set epochs = 0 to skip")
        counts = (self.restore or self.feature_mse) and self.alpha > 0
        if not (counts or (self.feature_kl and self.beta > 0) or self.contrast):
            raise ValueError(
                "all losses are off, or weigh 0: there is nothing to learn; set epochs = 0 to skip the stage"
            )
        return self


class DistillConfig(Section):
    """Equations (11)-(13). `teacher`: none, own (the previous iteration's model), or the name of a cache."""

    optimiser: OptimiserConfig
    teacher: str = "own"
    classify: bool = True  # (11); without it the classifier is not trained
    gamma: float = Field(default=1.0, ge=0)  # weight of the feature regression
    probability_weight: float = Field(default=0.0, ge=0, le=1)  # share of the teacher's probabilities in the target
    # The student gets the very augmented view that the teacher got: "consistent teaching" of Beyer et al., "Knowledge
    # distillation: A good teacher is patient and consistent", CVPR 2022. Needs a cache built with --views.
    views: bool = False
    loss: Literal["auto", "bce", "ce"] = "auto"  # auto: ce where every clip has one label
    augment: LabelAugmentConfig = LabelAugmentConfig()
    balanced: bool = False  # clips of rare classes more often (PSLA, Gong et al. 2021)
    proportions: tuple[Proportion, ...] | None = None  # of several stores in the batches; None: by their clips


class DataConfig(Section):
    """What is trained on and what is held out; by default its eval split, its first fold, or a seeded fifth."""

    eval_split: str | None = None
    eval_fold: int | None = None
    # Of a store without an evaluation split and without folds; 0: nothing is held out, and nothing evaluated.
    holdout_share: float = Field(default=0.2, ge=0, lt=1)


class RunConfig(Section):
    """A run; `source` says where the preset's numbers come from."""

    source: str
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA
    parallel: Literal["ddp", "fsdp"] = "ddp"  # over several processes; fsdp divides the weights as well
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile of the transformer's blocks; auto: on CUDA
    initialise: str = "random"  # or a file (timm's ViT, AST, SSAST, a checkpoint of ours), or timm:NAME
    checkpoint_every_steps: int = Field(default=100, gt=0)
    model: ModelConfig
    multissl: MultiSSLConfig
    distill: DistillConfig
    data: DataConfig = DataConfig()

    @model_validator(mode="after")
    def _something_to_do(self) -> "RunConfig":
        if self.multissl.optimiser.epochs == 0 and self.distill.optimiser.epochs == 0:
            raise ValueError("multissl.optimiser.epochs and distill.optimiser.epochs are both 0: nothing is trained")
        if self.distill.teacher == "none" and self.distill.probability_weight > 0:
            raise ValueError("distill.probability_weight needs a distill.teacher")
        if self.distill.teacher in ("none", "own") and not self.distill.classify and self.distill.optimiser.epochs > 0:
            raise ValueError(
                "distill.classify=false needs distill.teacher, the name of a cache: without it, as in the first "
                "iteration of teacher own, there is nothing to learn"
            )
        if not self.distill.classify and self.distill.gamma == 0 and self.distill.optimiser.epochs > 0:
            raise ValueError("distill.classify=false and distill.gamma=0 leave nothing to learn; change one of them")
        if self.distill.views and self.distill.teacher in ("none", "own"):
            raise ValueError("distill.views needs distill.teacher, the name of a cache built with --views")
        return self

    def optimiser_of(self, stage: Stage) -> OptimiserConfig:
        """How a stage is optimised."""
        return self.multissl.optimiser if stage == "multissl" else self.distill.optimiser


def load_config(preset: str, changes: list[str] | None = None) -> RunConfig:
    """A preset by name, or a TOML file, with `changes` like "multissl.mask_ratio=0.5" applied.

    Raises InputError naming the key that is unknown or wrong.
    """
    content = _read_preset(preset)
    for change in changes or []:
        _apply(content, change)
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        # A rule about several keys names them itself, and its value would be all of them.
        value = "" if isinstance(first["input"], dict) else f" (value: {first['input']!r})"
        raise InputError(f"configuration of {preset}: {where}{': ' if where else ''}{first['msg']}{value}") from error


def _read_preset(preset: str) -> dict[str, Any]:
    try:
        if preset in PRESETS:
            return tomllib.loads((files("training") / "presets" / f"{preset}.toml").read_text())
        if not preset.endswith(".toml"):
            raise InputError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}, or give a .toml file")
        return tomllib.loads(Path(preset).read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{preset} can't be read as TOML: {error}") from error


def _apply(content: dict[str, Any], change: str) -> None:
    """Sets one dotted key; the value is TOML where it parses as such, else a string."""
    name, separator, text = change.partition("=")
    if not separator or not name:
        raise InputError(f"--set {change!r} is not of the form key=value, like multissl.mask_ratio=0.5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = name.strip().split(".")
    target = content
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise InputError(f"--set {change!r}: {section} is a value and has no keys")
    target[last] = value


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """The dotted keys in which two configurations differ, with both values."""
    flat_one, flat_other = (_flat(config.model_dump(mode="json")) for config in (one, other))
    return [
        f"{key} ({flat_one.get(key)} and {flat_other.get(key)})"
        for key in flat_one | flat_other
        if flat_one.get(key) != flat_other.get(key)
    ]


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
