"""Iterations: Multi-SSL from the previous model, labels and distillation, evaluation; each kept once it is done."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from featurestore.teachercache import TeacherCache
from ingest.diskroom import disk_room
from ingest.layout import TEACHER_FOLDER
from ingest.sourcefile import file_sha256
from manifests.errors import InputError
from training.checkpoint import aft_weights, load_checkpoint
from training.config import Stage
from training.distributed import is_first, on_first
from training.evaluate import Evaluation
from training.heard import INITIALISED_FILE, heard_of
from training.loop import LAST, train_stage
from training.model.aft import AudioFeatureTransformer
from training.model.initialise import Initialised, initialise_aft
from training.ownteacher import build_own
from training.predictions import FILE_NAME, Origin, write_predictions
from training.run import NO_TEACHER, OWN_TEACHER, Run
from training.sources import open_teachers
from training.stages import (
    HeldOut,
    Weights,
    distill_plan,
    multissl_plan,
    new_multissl_network,
    new_student,
    stage_folder,
    stage_name,
)
from training.written import write_json, writing

EVAL_FILE = "eval.json"
RANDOM = "random"
# What stands in the place of figures where nothing is held out.
NOT_EVALUATED = {"nothing_held_out": True}
_FIGURES = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class IterationResult:
    """An iteration's checkpoint and figures; None where its distillation has no epochs, or nothing is held out."""

    iteration: int
    teacher: str | None
    checkpoint: Path | None
    evaluation: Evaluation | None


def run_iterations(run: Run, num_iterations: int) -> list[IterationResult]:
    """Does iterations 1..num_iterations; those that are done are read, an interrupted one goes on."""
    on_first(lambda: _check_caches(run, num_iterations))
    results = []
    previous = _Models(None, None)
    for iteration in range(1, num_iterations + 1):
        previous, result = _iterate(run, iteration, previous)
        results.append(result)
    return results


def _check_caches(run: Run, num_iterations: int) -> None:
    """Refuses now what the second iteration would refuse: stores that the own teacher's cache can't be written to."""
    distill, is_done = run.config.distill, (run.folder / f"iter{num_iterations}" / EVAL_FILE).exists()
    if distill.teacher == OWN_TEACHER and distill.optimiser.epochs > 0 and num_iterations > 1 and not is_done:
        for source in run.sources:
            folder = source.store.location.folder
            if folder is not None:
                disk_room(folder / TEACHER_FOLDER)


@dataclass(frozen=True)
class _Models:
    """The last Multi-SSL network and student, as state dicts, for the next iteration to start from."""

    multissl: Weights | None
    student: Weights | None


def _iterate(run: Run, iteration: int, previous: _Models) -> tuple[_Models, IterationResult]:
    """Does one iteration, or reads it where its evaluation is there, which is written last."""
    done = run.folder / f"iter{iteration}" / EVAL_FILE
    if done.exists():
        return _read_iteration(run, iteration, done)
    multissl = _multissl_stage(run, iteration, previous)
    if run.num_steps(run.config.distill.optimiser) == 0:
        return _Models(multissl, None), IterationResult(iteration, None, None, None)
    teacher_name = _teacher_name(run, iteration)
    caches = [] if teacher_name is None else open_teachers(run.sources, teacher_name)
    start = previous.student if multissl is None else multissl
    student, evaluation = _distill_stage(run, iteration, start, caches)
    content = {"teacher": teacher_name, **(NOT_EVALUATED if evaluation is None else evaluation.as_dict())}
    on_first(lambda: write_json(done, content))
    return _Models(multissl, student), IterationResult(
        iteration, teacher_name, last_checkpoint(run, iteration), evaluation
    )


def _read_iteration(run: Run, iteration: int, done: Path) -> tuple[_Models, IterationResult]:
    teacher_name, evaluation = read_evaluation(done)
    has_multissl = run.num_steps(run.config.multissl.optimiser) > 0
    multissl = _read_stage(run, iteration, "multissl") if has_multissl else None
    student = _read_stage(run, iteration, "distill")
    return _Models(multissl, student), IterationResult(
        iteration, teacher_name, last_checkpoint(run, iteration), evaluation
    )


def read_evaluation(path: Path) -> tuple[str | None, Evaluation | None]:
    """A finished iteration's teacher and figures, None where nothing was held out.

    Raises InputError for a file that is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
        teacher_name = content.pop("teacher")
        if content == NOT_EVALUATED:
            return teacher_name, None
        # By name first: the adapter takes what it doesn't know for nothing.
        return teacher_name, _FIGURES.validate_python(asdict(Evaluation(**content)))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(
            f"{path} is damaged ({wrong['loc'][0]}: {wrong['msg']}); delete it to have the iteration evaluated again"
        ) from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to have the iteration evaluated again") from error


def _read_stage(run: Run, iteration: int, stage: Stage) -> Weights:
    """The network of a finished stage. Raises InputError when its last checkpoint is another's, or half-way."""
    path = last_checkpoint(run, iteration, stage)
    checkpoint = load_checkpoint(path)
    about = checkpoint.about
    if (about.stage, about.iteration, about.model, about.store_fingerprint, about.finished) != (
        stage,
        iteration,
        run.config.model,
        run.store.snapshot.fingerprint,
        True,
    ):
        raise InputError(
            f"{path} is of step {about.step} of {about.num_steps} of iter{about.iteration}/{about.stage}, or of "
            f"another model or store; expected the end of {stage_name(iteration, stage)}: put it back, or choose "
            "another --run folder"
        )
    return checkpoint.network


def last_checkpoint(run: Run, iteration: int, stage: Stage = "distill") -> Path:
    """Where the last checkpoint of a stage lies."""
    return stage_folder(run, iteration, stage) / LAST


def _multissl_stage(run: Run, iteration: int, previous: _Models) -> Weights | None:
    """Trains the Multi-SSL stage; None where it has no epochs."""
    if run.num_steps(run.config.multissl.optimiser) == 0:
        return None
    network = new_multissl_network(run, iteration)
    if iteration == 1 and not last_checkpoint(run, iteration, "multissl").exists():
        _initialise(run, network.aft)
    if previous.multissl is not None:
        network.load_state_dict(previous.multissl)
    if previous.student is not None:
        network.aft.load_state_dict(aft_weights(previous.student))
    return train_stage(multissl_plan(run, iteration, network), run.folder, run.machine).network


def _distill_stage(
    run: Run, iteration: int, start: Weights | None, caches: list[TeacherCache]
) -> tuple[Weights, Evaluation | None]:
    """Trains on labels and, with caches, on the teacher's embeddings; `start` holds the AFT to begin with."""
    student = new_student(run, iteration, caches)
    if start is not None:
        student.aft.load_state_dict(aft_weights(start))
    elif iteration == 1 and not last_checkpoint(run, iteration).exists():
        _initialise(run, student.aft)
    held_out = HeldOut(run) if run.can_evaluate else None
    plan = distill_plan(run, iteration, student, caches, held_out)
    network = train_stage(plan, run.folder, run.machine).network
    if held_out is None:
        return network, None
    if plan.evaluation is None:  # the stage was done already, and the iteration was not
        whole = new_student(run, iteration, caches).to(run.machine.device)
        whole.load_state_dict(network)
        plan.evaluation = on_first(lambda: held_out(whole))
    on_first(lambda: _keep_predictions(run, iteration, held_out))
    return network, plan.evaluation


def _keep_predictions(run: Run, iteration: int, held_out: HeldOut) -> None:
    if held_out.predictions is not None:
        path = last_checkpoint(run, iteration)
        origin = Origin(file_sha256(path), run.store.snapshot.fingerprint)
        predictions = path.parent.parent / FILE_NAME
        with writing(predictions):
            write_predictions(predictions, held_out.predictions, origin)


def _initialise(run: Run, aft: AudioFeatureTransformer) -> None:
    """Gives the first iteration's AFT the weights that the configuration names, and keeps what was taken from where.

    Not asked for once there is a checkpoint, whose weights replace them: the file may then be gone.
    """
    source = run.config.initialise
    if source == RANDOM:
        return
    done = initialise_aft(aft, source)
    on_first(lambda: _keep_initialised(run, done))
    if is_first():
        print(f"initialised from {done}")
        if heard := heard_of(done.before, run.store, run.split.held_out):
            print(f"beware: what it is initialised from was trained on clips of {run.split.name}: {heard}", flush=True)


def _keep_initialised(run: Run, done: Initialised) -> None:
    path = run.folder / INITIALISED_FILE
    if path.exists():
        try:
            known = json.loads(path.read_bytes())["sha256"]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); delete it to initialise from {done.source} anew") from error
        if known != done.sha256:
            raise InputError(
                f"{done.source} is another file than the one that {run.folder} was initialised from; put that back, or "
                "choose another folder with --run"
            )
    write_json(path, done.as_dict())


def _teacher_name(run: Run, iteration: int) -> str | None:
    """The cache to distil from; the own teacher's is made here, from the previous iteration's student."""
    wanted = run.config.distill.teacher
    if wanted == NO_TEACHER or (wanted == OWN_TEACHER and iteration == 1):
        return None
    if wanted != OWN_TEACHER:
        return wanted
    return build_own(run, last_checkpoint(run, iteration - 1))
