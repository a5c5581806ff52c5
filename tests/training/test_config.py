"""Presets, their changes, and mistakes that name the key."""

from pathlib import Path

import pytest
import torch

from manifests.errors import InputError
from training.config import PRESETS, RunConfig, differences, load_config
from training.model.aft import AudioFeatureTransformer
from training.model.mae import MaskedEncoder


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load(preset: str) -> None:
    config = load_config(preset)
    assert config.source
    assert (config.multissl.alpha, config.multissl.beta, config.distill.gamma) == (1.0, 1.0, 1.0)
    assert (config.multissl.mask_ratio, config.multissl.temperature) == (0.75, 0.1)
    assert config.distill.probability_weight == 0.0
    for optimiser in (config.multissl.optimiser, config.distill.optimiser):
        assert (optimiser.betas, optimiser.weight_decay) == ((0.9, 0.95), 0.05)
        assert (optimiser.warmup_share, optimiser.lr_factor_per_iteration) == (0.05, 0.8)


def test_the_base_preset_is_the_papers() -> None:
    config = load_config("base")
    model = config.model
    assert (model.depth, model.width, model.num_heads, model.grid.num_patches) == (12, 768, 12, 512)
    assert (model.grid.num_time, model.grid.num_freq, model.grid.patch_dim) == (64, 8, 256)
    for optimiser, epochs in ((config.multissl.optimiser, 30), (config.distill.optimiser, 10)):
        assert (optimiser.epochs, optimiser.batch_size, optimiser.peak_lr) == (epochs, 256, 1.5e-4)
    with torch.device("meta"):
        aft = AudioFeatureTransformer(model)
        mae = MaskedEncoder(model.grid, model.mae_width, model.mae_depth, model.mae_num_heads, out_width=model.width)
    num_parameters = sum(weight.numel() for part in (aft, mae) for weight in part.parameters())
    assert num_parameters == pytest.approx(92e6, rel=0.02)
    # By hand: a block has 12 D^2 weights, 9 D biases and 4 D of norms; the perceptrons 768-1536-768 twice.
    width = 768
    blocks = 12 * (12 * width**2 + 13 * width) + 2 * width
    perceptrons = 2 * (2 * width * 2 * width + 3 * width)
    embedding = 256 * width + width + 512 * width
    assert sum(weight.numel() for weight in aft.parameters()) == blocks + perceptrons + embedding


def test_changes_are_toml_or_else_text() -> None:
    config = load_config(
        "tiny",
        ["multissl.mask_ratio=0.5", "distill.teacher=efficientat", "distill.augment.roll=false", "seed=3"],
    )
    assert (config.multissl.mask_ratio, config.distill.teacher, config.distill.augment.roll) == (
        0.5,
        "efficientat",
        False,
    )
    assert config.seed == 3
    assert load_config("tiny", ['distill.teacher="a=b"']).distill.teacher == "a=b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("multissl.mask_ration=0.5", r"multissl\.mask_ration: Extra inputs are not permitted"),
        ("tempo=1", r"tempo: Extra inputs"),
        ("seed=many", r"seed: Input should be a valid integer.*'many'"),
        ("seed=-1", r"seed: Input should be greater than or equal to 0"),
        ("multissl.mask_ratio=1.0", r"multissl\.mask_ratio: Input should be less than 1"),
        ("multissl.sampling=random", r"multissl\.sampling: Input should be 'hog', 'inverted' or 'uniform'"),
        ("model.num_frames=300", r"model\.num_frames: Input should be 256, 512 or 1024"),
        ("model.width=100", r"model: .*a width of 100 must be a multiple of its 3 heads and of 4"),
        ("multissl.optimiser.epochs=inf", r"multissl\.optimiser\.epochs: Input should be a finite number"),
        ("distill.optimiser.peak_lr=nan", r"distill\.optimiser\.peak_lr: Input should be"),
        ("distill.optimiser.betas=[0.9, 1.0]", r"distill\.optimiser\.betas\.1: Input should be less than 1"),
        ("multissl=3", r"multissl: Input should be a valid dictionary"),
        ("seed.x=3", r"--set 'seed.x=3': seed is a value and has no keys"),
        ("seed", r"--set 'seed' is not of the form key=value"),
        ("=3", r"--set '=3' is not of the form key=value"),
        ("", r"--set '' is not of the form key=value"),
        ("seed=", r"seed: Input should be a valid integer"),
    ],
)
def test_a_wrong_change_is_named(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config("tiny", ["seed=1", change])


@pytest.mark.parametrize("off", [("intra", "inter"), ("restore", "feature_mse", "feature_kl", "contrast")])
def test_something_must_be_learned(off: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="set epochs = 0 to skip"):
        load_config("tiny", [f"multissl.{name}=false" for name in off])
    assert load_config("tiny", [f"multissl.{name}=false" for name in off[1:]])
    assert load_config("tiny", [*(f"multissl.{name}=false" for name in off), "multissl.optimiser.epochs=0"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["multissl.optimiser.epochs=0", "distill.optimiser.epochs=0"], "are both 0: nothing is trained"),
        (["distill.teacher=none", "distill.probability_weight=0.5"], r"needs a distill\.teacher"),
        (["distill.teacher=none", "distill.classify=false"], r"needs distill\.teacher, the name of a cache"),
        (["distill.teacher=own", "distill.classify=false"], r"first iteration of teacher own"),
        (["distill.teacher=x", "distill.classify=false", "distill.gamma=0"], r"leave nothing to learn"),
        (
            ["multissl.alpha=0", "multissl.feature_kl=false", "multissl.contrast=false"],
            "all losses are off, or weigh 0",
        ),
        (["multissl.beta=0", "multissl.alpha=0", "multissl.contrast=false"], "all losses are off, or weigh 0"),
    ],
)
def test_keys_that_do_not_go_together(changes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config("tiny", changes)


def test_a_preset_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no preset 'huge'; there are base, demo, .*, tiny, or give a \.toml file"):
        load_config("huge")
    with pytest.raises(InputError, match=r"absent\.toml can't be read as TOML"):
        load_config(str(tmp_path / "absent.toml"))
    for content in (b"[model\n", b"\xff\xfe", b"a = 1\na = 2\n"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.toml can't be read as TOML"):
            load_config(str(tmp_path / "bad.toml"))
    (tmp_path / "bad.toml").write_text("source = 'here'\n")
    with pytest.raises(InputError, match=r"bad\.toml: model: Field required"):
        load_config(str(tmp_path / "bad.toml"))


def test_a_configuration_survives_its_file() -> None:
    config = load_config("small", ["data.eval_split=test", "multissl.optimiser.epochs=0.5"])
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_differences_name_dotted_keys_and_both_values() -> None:
    one = load_config("tiny", ["seed=1", "multissl.optimiser.epochs=2"])
    other = load_config("tiny", ["seed=1", "multissl.optimiser.epochs=4", "data.eval_split=test"])
    assert differences(one, one) == []
    assert sorted(differences(one, other)) == [
        'data.eval_split (null and "test")',
        "multissl.optimiser.epochs (2.0 and 4.0)",
    ]
