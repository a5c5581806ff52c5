"""A student's view of whole clips."""

import pytest
import torch

from training.inference import infer, pooled_features, probabilities
from training.inputs import Normalisation
from training.model.networks import Student
from training.model.patches import patchify

NORMALISATION = Normalisation(mean=-4.0, std=3.0)


def test_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    torch.testing.assert_close(probabilities(logits, one_label=True), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(probabilities(logits, one_label=False), torch.tensor([[0.5, 0.75]]))


@pytest.mark.parametrize("num_windows", [1, 2, 4])
def test_every_window_is_seen_as_a_clip_of_its_own(student: Student, num_windows: int) -> None:
    fbank = torch.randn(3, 256 * num_windows, 128, generator=torch.Generator().manual_seed(0)).half()
    found = infer(student, fbank, NORMALISATION)
    assert found.tokens.shape == (3, num_windows, 128, 16)
    scores = []
    for window in range(num_windows):
        part = (fbank[:, 256 * window : 256 * (window + 1)].float() + 4) / 3
        patches = patchify(part, student.grid)
        with torch.no_grad():
            output, tokens = student(patches), student.aft(patches)
        torch.testing.assert_close(found.logits[:, window], output.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.pooled[:, window], output.pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.tokens[:, window], tokens, rtol=1e-4, atol=1e-5)
        scores.append(output.logits)
    softmax = torch.stack([logits.softmax(1) for logits in scores]).mean(0)
    sigmoid = torch.stack([logits.sigmoid() for logits in scores]).mean(0)
    torch.testing.assert_close(found.probabilities(one_label=True), softmax, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.probabilities(one_label=False), sigmoid, rtol=1e-4, atol=1e-5)
    assert not found.logits.requires_grad
    pooled = pooled_features(student.aft, student.grid, fbank, NORMALISATION)
    torch.testing.assert_close(pooled, found.pooled.mean(1), rtol=1e-4, atol=1e-5)
