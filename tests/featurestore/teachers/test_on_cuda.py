"""Teachers on a CUDA device that is not there: all that a model needs moves with it, and nothing waits for it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from featurestore.teachers.astteacher import load_ast, load_ast_fbank
from featurestore.teachers.base import WaveformInput
from featurestore.teachers.beats import load_beats
from featurestore.teachers.efficientat import load_efficientat
from tests.fakecuda import CUDA, fake_cuda, move


@pytest.mark.parametrize(
    ("load", "path"),
    [
        (load_beats, "golden/beats_tiny.pt"),
        (partial(load_ast, num_heads=4), "golden/ast_tiny.pth"),
        (partial(load_ast_fbank, num_heads=4), "golden/ast_tiny.pth"),
        (load_efficientat, "data/weights/mn04_as_mAP_432.pt"),
    ],
    ids=["beats", "ast", "ast-fbank", "efficientat"],
)
def test_embed(load: Callable[[Path], torch.nn.Module], path: str, shared: Path) -> None:
    teacher = load(shared / path)
    takes = teacher.input
    shape = (takes.sample_rate_hz * 10,) if isinstance(takes, WaveformInput) else (takes.fbank.num_frames, 128)
    with fake_cuda():
        move(teacher)
        said = teacher.embed(torch.zeros(2, *shape, device=CUDA))
    assert {part.device for part in (said.embedding, said.logits, said.tokens) if part is not None} == {CUDA}
