"""Every loss against a case by hand and a slow loop."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import losses


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return rand(*shape, seed=seed).requires_grad_()


class TestRestoration:
    def test_by_hand(self) -> None:
        prediction = torch.tensor([[[1.0, 1.0], [0.0, 2.0]]])
        # Errors 1 and 2; weights 1 and 3 become .5 and 1.5, of which the mean over two patches is 1.
        weight = torch.tensor([[1.0, 3.0]])
        assert losses.restoration(prediction, torch.zeros(1, 2, 2), weight).item() == pytest.approx(
            (0.5 * 1 + 1.5 * 2) / 2
        )
        counted = torch.tensor([[False, True]])
        assert losses.restoration(prediction, torch.zeros(1, 2, 2), weight, counted).item() == pytest.approx(2.0)

    @pytest.mark.parametrize("some", [False, True])
    def test_slow_loop(self, some: bool) -> None:
        prediction, target = rand(3, 7, 5), rand(3, 7, 5, seed=1)
        weight, chosen = rand(3, 7, seed=2).abs(), rand(3, 7, seed=3) > 0
        clips = []
        for clip in range(3):
            patches = [patch for patch in range(7) if chosen[clip, patch] or not some]
            mean_weight = sum(float(weight[clip, patch]) for patch in patches) / len(patches)
            errors = [
                float(weight[clip, patch]) / mean_weight * float(((prediction - target)[clip, patch] ** 2).mean())
                for patch in patches
            ]
            clips.append(sum(errors) / len(patches))
        found = losses.restoration(prediction, target, weight, chosen if some else None)
        assert found.item() == pytest.approx(np.mean(clips), rel=1e-5)

    def test_a_constant_weight_is_the_plain_mean_and_scale_does_not_count(self) -> None:
        prediction, target, weight = rand(2, 6, 4), rand(2, 6, 4, seed=1), rand(2, 6, seed=2).abs()
        plain = F.mse_loss(prediction, target)
        torch.testing.assert_close(losses.restoration(prediction, target, torch.full((2, 6), 0.3)), plain)
        found = losses.restoration(prediction, target, weight)
        torch.testing.assert_close(losses.restoration(prediction, target, 1e-6 * weight), found)
        assert abs(found - plain) > 1e-3

    def test_no_weight_at_all_is_0(self) -> None:
        prediction = leaf(2, 3, 4)
        loss = losses.restoration(prediction, rand(2, 3, 4, seed=1), torch.zeros(2, 3))
        loss.backward()
        assert loss == 0
        assert prediction.grad is not None
        assert prediction.grad.isfinite().all()


class TestFeatureMse:
    def test_values_and_gradient(self) -> None:
        features, raw = leaf(2, 3, 4), leaf(2, 3, 4, seed=1)
        loss = losses.feature_mse(features, raw)
        pairs = zip(features.flatten().tolist(), raw.flatten().tolist(), strict=True)
        slow = sum((a - b) ** 2 for a, b in pairs) / 24
        assert loss.item() == pytest.approx(slow, rel=1e-5)
        assert losses.feature_mse(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 5.0]]])).item() == 5.0
        loss.backward()
        assert raw.grad is None
        torch.testing.assert_close(features.grad, (features - raw).detach() / 12)


class TestFeatureKl:
    def test_by_hand(self) -> None:
        # softmax of (0, 0) is (1/2, 1/2); of (0, log 3) it is (1/4, 3/4).
        raw, features = torch.zeros(1, 1, 2), torch.tensor([[[0.0, math.log(3.0)]]])
        expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
        assert losses.feature_kl(features, raw).item() == pytest.approx(expected)

    def test_slow_loop_and_gradient(self) -> None:
        features, raw = leaf(2, 3, 5), leaf(2, 3, 5, seed=1)
        tokens = []
        for clip in range(2):
            for token in range(3):
                p, q = raw[clip, token].exp(), features[clip, token].exp()
                p, q = (p / p.sum()).tolist(), (q / q.sum()).tolist()
                tokens.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        loss = losses.feature_kl(features, raw)
        assert loss.item() == pytest.approx(np.mean(tokens), rel=1e-4)
        loss.backward()
        assert raw.grad is None
        torch.testing.assert_close(features.grad, (features.softmax(-1) - raw.softmax(-1)).detach() / 6)

    def test_not_negative_and_0_for_equal(self) -> None:
        for seed in range(20):
            assert losses.feature_kl(rand(2, 4, 8, seed=seed), rand(2, 4, 8, seed=99)) > 0
        features = 50 * rand(2, 4, 8)
        assert losses.feature_kl(features, features).item() == 0.0
        # A constant added to a token says nothing.
        assert losses.feature_kl(features, features + 3.0).item() == pytest.approx(0.0, abs=1e-5)
        assert losses.feature_kl(features.bfloat16(), features).dtype == torch.float32


class TestContrast:
    def test_by_hand(self) -> None:
        # Both clips are aligned and at right angles: logits 1 / tau and 0.
        pooled = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
        assert losses.contrast(pooled, pooled, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2.0)))
        # All the same: one of two, whatever tau.
        assert losses.contrast(torch.ones(2, 3), torch.ones(2, 3), 0.1).item() == pytest.approx(math.log(2.0))

    def test_slow_loop(self) -> None:
        pooled, raw = rand(5, 8), rand(5, 8, seed=1)
        clips = []
        for one in range(5):
            similarity = [
                float(pooled[one] @ raw[other] / (pooled[one].norm() * raw[other].norm())) / 0.1 for other in range(5)
            ]
            clips.append(-math.log(math.exp(similarity[one]) / sum(map(math.exp, similarity))))
        assert losses.contrast(pooled, raw, 0.1).item() == pytest.approx(np.mean(clips), rel=1e-4)

    def test_gradient_flows_to_both_sides(self) -> None:
        pooled, raw = leaf(4, 8), leaf(4, 8, seed=1)
        losses.contrast(pooled, raw, 0.1).backward()
        for side in (pooled, raw):
            assert side.grad is not None
            assert (side.grad.norm(dim=1) > 0).all()
            # The length of a feature doesn't count, so the gradient is at right angles to it.
            torch.testing.assert_close((side.grad * side).sum(1), torch.zeros(4), rtol=0, atol=1e-5)

    def test_alignment_is_small_and_confusion_large(self) -> None:
        features = torch.eye(8)
        assert losses.contrast(features, features, 0.1) < 1e-3
        assert losses.contrast(features, features.roll(1, 0), 0.1) > 9


class TestClassification:
    @pytest.mark.parametrize("one_label", [False, True])
    def test_against_torch(self, one_label: bool) -> None:
        logits, classes = rand(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
        labels = F.one_hot(classes, 4).float()
        if one_label:
            expected = F.cross_entropy(logits, classes)
        else:
            labels[0, 2] = labels[4, 0] = 1.0
            expected = F.binary_cross_entropy_with_logits(logits, labels)
        torch.testing.assert_close(losses.classification(logits, labels, one_label=one_label), expected)

    def test_by_hand(self) -> None:
        labels = torch.tensor([[1.0, 0.0]])
        assert losses.classification(torch.zeros(1, 2), labels, one_label=True).item() == pytest.approx(math.log(2))
        logits = torch.tensor([[math.log(3.0), 0.0]])
        expected = (-math.log(0.75) - math.log(0.5)) / 2
        assert losses.classification(logits, labels, one_label=False).item() == pytest.approx(expected)

    @pytest.mark.parametrize("one_label", [False, True])
    def test_clips_without_labels_do_not_count(self, one_label: bool) -> None:
        logits = leaf(3, 4)
        labels = torch.zeros(3, 4)
        labels[1, 2] = 1.0
        loss = losses.classification(logits, labels, one_label=one_label)
        torch.testing.assert_close(loss, losses.classification(logits[1:2], labels[1:2], one_label=one_label))
        loss.backward()
        assert logits.grad is not None
        assert (logits.grad[[0, 2]] == 0).all()
        assert losses.classification(logits, torch.zeros(3, 4), one_label=one_label) == 0

    def test_probabilities_as_labels(self) -> None:
        logits, target = rand(3, 4), rand(3, 4, seed=1).softmax(1)
        expected = F.cross_entropy(logits, target)
        torch.testing.assert_close(losses.classification(logits, target, one_label=True), expected)


def test_mixed_target() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.6, 0.4], [float("nan"), 0.5]])
    expected = torch.tensor([[0.75 + 0.25 * 0.6, 0.25 * 0.4], [0.0, 1.0]])
    torch.testing.assert_close(losses.mixed_target(labels, teacher, 0.25), expected)
    torch.testing.assert_close(losses.mixed_target(labels, teacher, 0.0), labels)
    torch.testing.assert_close(losses.mixed_target(labels, teacher, 1.0)[0], teacher[0])
    # A clip without a label has no part in the classification loss, whatever the teacher says of it.
    assert not losses.mixed_target(torch.zeros(1, 2), teacher[:1], 0.25).any()


class TestFeatureRegression:
    def test_by_hand(self) -> None:
        # Layer-normed, (1, 3) is (-1, 1) and (5, 1) is (1, -1): the error is 4.
        found = losses.feature_regression(torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 1.0]]))
        assert found.item() == pytest.approx(4.0, rel=1e-4)

    def test_slow_loop_without_missing_rows(self) -> None:
        student, teacher = leaf(5, 6), rand(5, 6, seed=1)
        teacher[1, 3], teacher[4] = float("nan"), float("nan")
        errors = []
        for clip in (0, 2, 3):
            s, t = student[clip].detach().numpy(), teacher[clip].numpy()
            s, t = ((v - v.mean()) / np.sqrt(v.var() + 1e-5) for v in (s, t))
            errors.append(((s - t) ** 2).mean())
        loss = losses.feature_regression(student, teacher)
        assert loss.item() == pytest.approx(np.mean(errors), rel=1e-4)
        loss.backward()
        assert student.grad is not None
        assert (student.grad[[1, 4]] == 0).all()
        assert (student.grad[[0, 2, 3]].norm(dim=1) > 0).all()

    def test_scale_and_shift_do_not_count(self) -> None:
        student, teacher = rand(4, 32), rand(4, 32, seed=1)
        found = losses.feature_regression(student, teacher)
        torch.testing.assert_close(
            losses.feature_regression(7 * student - 2, 0.3 * teacher + 5), found, rtol=1e-3, atol=1e-4
        )
        assert losses.feature_regression(student, 3 * student + 1).item() == pytest.approx(0.0, abs=1e-4)

    def test_all_rows_missing(self) -> None:
        student = leaf(3, 4)
        loss = losses.feature_regression(student, torch.full((3, 4), float("nan")))
        loss.backward()
        assert loss == 0
        assert student.grad is not None
        assert (student.grad == 0).all()
