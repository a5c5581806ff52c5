"""The network as the loop wraps it: compiled blocks say the same, and whole states come and go in one process."""

import copy
import shutil
from pathlib import Path

import pytest
import torch

from manifests.errors import InputError
from training.config import DistillConfig, ModelConfig, OptimiserConfig
from training.distill import Task, distill_losses
from training.inputs import Inputs
from training.model.networks import Student
from training.optimiser import make_optimiser
from training.parallel import (
    LossModule,
    WholeNetwork,
    compile_blocks,
    compile_failures,
    distribute,
    load_optimiser_state,
    whole_optimiser_state,
)
from training.watch import norms_by_term

CPU = torch.device("cpu")
OPTIMISER = OptimiserConfig(epochs=1, batch_size=5, peak_lr=1e-2)


@pytest.fixture
def student(tiny: ModelConfig) -> Student:
    return Student(tiny, 3, 16, torch.Generator().manual_seed(0))


def module(student: Student) -> torch.nn.Module:
    config = DistillConfig(optimiser=OPTIMISER)
    return distribute(student, lambda inputs, _: distill_losses(student, inputs, config, Task(True)), "ddp", CPU)


# torch looks at it itself when it traces a block.
looked_at = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@looked_at
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")  # torch's own advice
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_blocks_say_the_same_and_may_be_looked_at(student: Student, inputs: Inputs) -> None:
    compiled = copy.deepcopy(student)
    compile_blocks(compiled)
    eager = module(student)(inputs, torch.Generator())
    fast = module(compiled)(inputs, torch.Generator())
    with torch.compiler.set_stance("force_eager"):
        norms = norms_by_term(module(compiled)(inputs, torch.Generator()), compiled)
    expected = norms_by_term(eager, student)
    assert norms.keys() == expected.keys() == {"gradient_norm/classify", "gradient_norm/regress"}
    for name, norm in expected.items():
        torch.testing.assert_close(norms[name], norm)
    eager["loss"].backward()
    fast["loss"].backward()
    assert compiled.state_dict().keys() == student.state_dict().keys()
    for (name, weight), other in zip(student.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, weight.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_one_process_is_not_wrapped_and_its_state_is_its_own(student: Student, inputs: Inputs) -> None:
    whole = WholeNetwork(student, "fsdp")
    wrapped = module(student)
    assert type(wrapped) is LossModule
    with whole.network(CPU) as network:
        assert network is student
    optimiser = make_optimiser(student, OPTIMISER, 1e-2, torch.device("cpu"))
    wrapped(inputs, torch.Generator())["loss"].backward()
    optimiser.step()
    state, moments = whole.state(), copy.deepcopy(whole_optimiser_state(optimiser))
    other = Student(student.aft.config, 3, 16, torch.Generator().manual_seed(1))
    WholeNetwork(other, "ddp").load(state)
    again = make_optimiser(other, OPTIMISER, 1e-2, torch.device("cpu"))
    load_optimiser_state(again, moments)
    for one in (student, other):
        one.zero_grad()
    for one, its in ((student, optimiser), (other, again)):
        module(one)(inputs, torch.Generator())["loss"].backward()
        its.step()
    for name, weight in student.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


@looked_at
def test_without_a_compiler(student: Student, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config

    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    compile_blocks(student)
    with (
        pytest.raises(InputError, match=r"^torch.compile can't compile the transformer here \(.*compiler.*\); .*=off$"),
        compile_failures(),
    ):
        module(student)(inputs, torch.Generator())
    with pytest.raises(RuntimeError, match="of its own"), compile_failures():
        raise RuntimeError("of its own")
