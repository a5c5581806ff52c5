"""Augmentation: what is drawn depends on the clip alone, and what is done to it is checked by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurestore.batches import Batch, BatchViews
from featurestore.views import FLOOR
from manifests.geometry import PatchGrid
from training.augment import Augmentation, gain, mask_bands, mix, mix_power, roll
from training.config import AugmentConfig, LabelAugmentConfig
from training.draws import clip_uniforms
from training.inputs import Normalisation, prepare

CPU = torch.device("cpu")
GRID = PatchGrid(num_frames=256)
PLAIN = Normalisation(0.0, 1.0)
ALL = LabelAugmentConfig(gain_db=6, mixup_share=0.5, time_mask_frames=100, freq_mask_bins=40)


def make_batch(num_clips: int = 12, num_labelled: int | None = None) -> Batch:
    rng = np.random.default_rng(0)
    labels = np.eye(num_clips, 4, dtype=np.float32) + np.eye(num_clips, 4, k=-4, dtype=np.float32)
    labels[8:] = np.eye(4, dtype=np.float32)[: num_clips - 8]
    if num_labelled is not None:
        labels[num_labelled:] = 0
    return Batch(
        rows=np.arange(num_clips),
        keys=[f"clip{number}" for number in range(num_clips)],
        fbank=rng.normal(-6, 3, (num_clips, 512, 128)).astype(np.float16),
        hog=rng.random((num_clips, 32, 8), np.float32),
        labels=labels,
        teacher=rng.random((num_clips, 5), np.float32),
        teacher_logits=rng.random((num_clips, 3), np.float32),
        visits=np.zeros(num_clips, np.int64),
    )


def part(batch: Batch, clips: slice) -> Batch:
    """A part of a batch, as another process would have it."""
    names = ("rows", "fbank", "hog", "labels", "teacher", "teacher_logits", "visits")
    return replace(batch, keys=batch.keys[clips], **{name: getattr(batch, name)[clips] for name in names})


def test_draws_are_of_seed_purpose_key_and_visit_alone() -> None:
    keys, visits = [f"k{n}" for n in range(50)], np.arange(50) % 3
    whole = clip_uniforms(keys, visits, 1, "roll", 4)
    np.testing.assert_array_equal(clip_uniforms(keys[7:9], visits[7:9], 1, "roll", 4), whole[7:9])
    np.testing.assert_array_equal(clip_uniforms(keys, visits, 1, "roll", 2), whole[:, :2])
    for other in (
        clip_uniforms(keys, visits + 1, 1, "roll", 4),
        clip_uniforms(keys, visits, 2, "roll", 4),
        clip_uniforms(keys, visits, 1, "gain", 4),
    ):
        assert (other != whole).all()


def test_draws_are_uniform_and_independent() -> None:
    numbers = clip_uniforms([str(n) for n in range(4000)], np.zeros(4000, np.int64), 0, "test", 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in numbers.T])
    assert np.abs(counts - 400).max() < 5 * math.sqrt(400 * 0.9)
    correlation = np.corrcoef(numbers.T)
    assert np.abs(correlation - np.eye(3)).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("clips", [slice(0, 5), slice(5, 12)])
def test_a_part_of_a_batch_is_augmented_alike(clips: slice) -> None:
    """All but mixup, whose partners come from the batch at hand."""
    alone = replace_config(mixup_share=0.0)
    whole = prepare(make_batch(), GRID, PLAIN, CPU, Augmentation(alone, 3, "iter1/distill"))
    some = prepare(part(make_batch(), clips), GRID, PLAIN, CPU, Augmentation(alone, 3, "iter1/distill"))
    assert torch.equal(some.fbank, whole.fbank[clips])
    assert torch.equal(some.gradient_magnitude, whole.gradient_magnitude[clips])


def replace_config(**changes: float) -> LabelAugmentConfig:
    return ALL.model_copy(update=changes)


def test_the_same_visit_is_augmented_the_same_and_another_is_not() -> None:
    batch = make_batch()
    one, again = (prepare(batch, GRID, PLAIN, CPU, Augmentation(ALL, 3, "s")) for _ in range(2))
    assert torch.equal(one.fbank, again.fbank)
    later = prepare(replace(batch, visits=np.ones(12, np.int64)), GRID, PLAIN, CPU, Augmentation(ALL, 3, "s"))
    assert not torch.equal(one.fbank, later.fbank)


def test_one_switch_leaves_the_others_draws() -> None:
    batch = make_batch()
    rolled = Augmentation(AugmentConfig(), 0, "s").draw(batch, CPU)
    more = Augmentation(ALL, 0, "s").draw(batch, CPU)
    assert rolled.starts is not None
    assert more.starts is not None
    assert torch.equal(rolled.starts, more.starts)
    assert rolled.gain_db is None
    less = Augmentation(replace_config(time_mask_frames=0, roll=False), 0, "s").draw(batch, CPU)
    assert less.starts is None
    assert less.time_mask is None
    assert less.gain_db is not None
    assert more.gain_db is not None
    assert torch.equal(less.gain_db, more.gain_db)


def test_gain_by_hand() -> None:
    fbank = torch.tensor([[[0.0, FLOOR, FLOOR + 1.0]]])
    assert gain(fbank, torch.tensor([10.0]))[0, 0].tolist() == pytest.approx(
        [math.log(10), FLOOR, FLOOR + 1 + math.log(10)]
    )
    assert gain(fbank, torch.tensor([-10.0]))[0, 0].tolist() == pytest.approx([-math.log(10), FLOOR, FLOOR])


def test_mixed_power_is_that_of_the_mixed_waveforms() -> None:
    """Two tones in different bands keep their own power, times the weights' squares; noises add up in the mean."""
    torch.manual_seed(0)
    one, other = torch.randn(2, 400_000)
    power = torch.log(torch.stack([one.square().mean(), other.square().mean()]))[:, None, None]
    mixed = mix_power(power, torch.tensor([1, 0]), torch.tensor([0.3, 1.0]))
    assert mixed[0].item() == pytest.approx(float(torch.log((0.3 * one + 0.7 * other).square().mean())), abs=0.02)
    assert mixed[1].item() == power[1].item()


@given(st.integers(0, 10_000))
def test_mixup_mixes_inputs_labels_and_teacher_alike(seed: int) -> None:
    batch = make_batch(num_labelled=7)
    config = LabelAugmentConfig(roll=False, mixup_share=0.6)
    drawn = Augmentation(config, seed, "s").draw(batch, CPU)
    assert drawn.partner is not None
    assert drawn.weight is not None
    inputs = prepare(batch, GRID, PLAIN, CPU, Augmentation(config, seed, "s"))
    assert inputs.teacher is not None
    assert inputs.teacher_logits is not None
    assert batch.teacher_logits is not None
    assert inputs.mixup is not None
    # Logits are mixed as probabilities, in the loss.
    np.testing.assert_array_equal(inputs.teacher_logits, batch.teacher_logits)
    assert (inputs.mixup[0] == drawn.partner).all()
    assert (inputs.mixup[1] == drawn.weight).all()
    for clip, (partner, weight) in enumerate(zip(drawn.partner.tolist(), drawn.weight.tolist(), strict=True)):
        assert (clip < 7) == (partner < 7)
        assert (partner == clip) == (weight == 1)
        for found, own in (
            (inputs.labels, batch.labels),
            (inputs.teacher, batch.teacher),
        ):
            assert own is not None
            np.testing.assert_allclose(found[clip], weight * own[clip] + (1 - weight) * own[partner], atol=1e-6)
        power = [batch.fbank[which, 3, 5].astype(np.float64) for which in (clip, partner)]
        expected = math.log(weight**2 * math.exp(power[0]) + (1 - weight) ** 2 * math.exp(power[1]))
        assert float(inputs.fbank[clip, 3, 5]) == pytest.approx(max(expected, FLOOR), abs=1e-4)


def test_how_often_and_how_much_is_mixed() -> None:
    batch = make_batch(12)
    weights = []
    for visit in range(400):
        drawn = Augmentation(replace_config(mixup_alpha=10), 0, "s").draw(
            replace(batch, visits=np.full(12, visit)), CPU
        )
        assert drawn.weight is not None
        weights += drawn.weight.tolist()
    mixed = np.array([weight for weight in weights if weight < 1])
    assert len(mixed) / len(weights) == pytest.approx(0.5, abs=0.03)
    # Beta(10, 10): mean 1/2, variance 1 / (4 (2 x 10 + 1)).
    assert mixed.mean() == pytest.approx(0.5, abs=0.01)
    assert mixed.var() == pytest.approx(1 / 84, rel=0.1)


def test_a_missing_teacher_row_is_missing_in_the_mixture() -> None:
    values = torch.tensor([[1.0], [float("nan")]])
    mixed = mix(values, torch.tensor([1, 1]), torch.tensor([0.5, 1.0]))
    assert mixed.isnan().all()
    assert mix(values, torch.tensor([1, 1]), torch.ones(2))[0].item() == 1.0


def test_bands_are_masked_once_each_and_no_wider_than_asked() -> None:
    batch, config = make_batch(), LabelAugmentConfig(roll=False, time_mask_frames=100, freq_mask_bins=40)
    widths: list[tuple[int, int]] = []
    for visit in range(60):
        inputs = prepare(replace(batch, visits=np.full(12, visit)), GRID, PLAIN, CPU, Augmentation(config, 0, "s"))
        hidden = inputs.fbank == 0
        frames, bins = hidden.all(2), hidden.all(1)
        assert torch.equal(hidden, frames[:, :, None] | bins[:, None, :])
        for clip in range(12):
            for line in (frames[clip], bins[clip]):
                places = line.nonzero()[:, 0]
                assert len(places) == 0 or int(places[-1] - places[0]) + 1 == len(places)
            widths.append((int(frames[clip].sum()), int(bins[clip].sum())))
    found = np.array(widths)
    assert found.max(0).tolist() == [100, 40]
    assert found.min(0).tolist() == [0, 0]
    assert found.mean(0) == pytest.approx([50, 20], rel=0.1)


def test_a_band_wider_than_the_model_hides_everything_at_most() -> None:
    masked = mask_bands(torch.ones(1, 4, 4), torch.tensor([[0.99, 9.0]]), torch.tensor([[0.99, 1.0]]))
    assert masked.abs().sum() == 0
    assert mask_bands(torch.ones(1, 4, 4), None, torch.tensor([[0.99, 1.0]]))[0, 0].tolist() == [1, 1, 1, 0]


def test_roll_by_hand() -> None:
    values = torch.arange(10).reshape(2, 5)
    assert roll(values, torch.tensor([3, 0]), 4).tolist() == [[3, 4, 0, 1], [5, 6, 7, 8]]
    assert roll(values, torch.tensor([-1, 0]), 5).tolist() == [[4, 0, 1, 2, 3], [5, 6, 7, 8, 9]]


def test_a_teachers_view_is_mixed_but_neither_rolled_nor_made_louder() -> None:
    views = BatchViews(np.zeros(12, np.int64), np.zeros(12, np.float32))
    drawn = Augmentation(ALL, 0, "s").draw(replace(make_batch(), views=views), CPU)
    assert drawn.starts is None
    assert drawn.gain_db is None
    assert drawn.partner is not None
