"""The learning rate."""

import math

import pytest

from training.schedule import iteration_peak, learning_rate, num_steps_of


def test_warm_up_and_cosine_by_hand() -> None:
    rates = [learning_rate(step, 100, 2.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[9] == 2.0
    assert rates[54] == pytest.approx(1.0)  # half of the 90 steps after the warm-up
    assert rates[24] == pytest.approx(1.0 + math.cos(math.pi / 6))
    assert rates[99] == pytest.approx(0.0, abs=1e-12)
    assert rates[9:] == sorted(rates[9:], reverse=True)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 19, 1000])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_it_stays_between_0_and_the_peak(num_steps: int, share: float) -> None:
    rates = [learning_rate(step, num_steps, 3e-4, share) for step in range(num_steps)]
    assert all(0 <= rate <= 3e-4 for rate in rates)
    assert max(rates) > 0 or (num_steps, share) == (1, 0.0)  # the last step has rate 0
    assert learning_rate(num_steps, num_steps, 3e-4, share) >= 0


def test_iterations_have_a_peak_factor() -> None:
    assert [iteration_peak(1.0, 0.8, k) for k in (1, 2, 3)] == pytest.approx([1.0, 0.8, 0.64])


def test_num_steps() -> None:
    assert num_steps_of(3, 400, 32) == 38  # 37.5
    assert num_steps_of(1, 15, 5) == 3
    assert num_steps_of(0.001, 15, 5) == 1
    assert num_steps_of(0, 15, 5) == 0
