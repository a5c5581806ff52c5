"""The learning rate as a function of the step."""

import math


def learning_rate(step: int, num_steps: int, peak: float, warmup_share: float) -> float:
    """Linear from 0 over the warm-up, then half a cosine down to 0; `step` counts from 0."""
    num_warmup = warmup_share * num_steps
    if step + 1 <= num_warmup:
        return peak * (step + 1) / num_warmup
    progress = (step + 1 - num_warmup) / max(num_steps - num_warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def iteration_peak(peak: float, factor: float, iteration: int) -> float:
    """The peak of iteration k = 1, 2, ...: peak x factor^(k - 1)."""
    return float(peak * factor ** (iteration - 1))


def num_steps_of(epochs: float, num_clips: int, batch_size: int) -> int:
    """Steps that show `epochs` x `num_clips` clips, rounded; at least 1 unless epochs is 0."""
    return max(1, round(epochs * num_clips / batch_size)) if epochs > 0 else 0
