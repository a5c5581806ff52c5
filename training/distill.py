"""The distillation step: labels, and a teacher's cached embeddings (equations 11-13)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifests.errors import InputError
from manifests.vocabulary import Vocabulary
from training import losses
from training.augment import mix
from training.config import DistillConfig
from training.inference import probabilities
from training.inputs import Inputs
from training.model.networks import Student
from training.model.patches import patchify


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned from the labels: whether a clip has exactly one, and where the teacher's logits have them."""

    one_label: bool
    teacher_columns: Tensor | None = None  # (C,) int64: the teacher's logit of each of our labels


def distill_losses(network: Student, inputs: Inputs, config: DistillConfig, task: Task) -> dict[str, Tensor]:
    """The total "loss" = classify + gamma regress, equation (13), its terms by name, and the features' spread."""
    output = network(patchify(inputs.fbank, network.grid))
    watched = {"feature_spread": losses.batch_spread(output.pooled)}
    classify = losses.classification(output.logits, _targets(inputs, config, task), one_label=task.one_label)
    if output.regressed is None or inputs.teacher is None:
        return {"loss": classify, "classify": classify, **watched}
    regress = losses.feature_regression(output.regressed, inputs.teacher)
    loss = config.gamma * regress + (classify if config.classify else 0.0)
    # What is no part of the loss is watched alone, without a graph: DDP waits for the gradients of all with one.
    shown = classify if config.classify else classify.detach()
    return {"loss": loss, "classify": shown, "regress": regress, **watched}


def _targets(inputs: Inputs, config: DistillConfig, task: Task) -> Tensor:
    """The labels, mixed with the teacher's probabilities by weight where that is asked for, equation (11)."""
    if inputs.teacher_logits is None or task.teacher_columns is None:
        return inputs.labels
    said = probabilities(inputs.teacher_logits[:, task.teacher_columns], one_label=task.one_label)
    if inputs.mixup is not None:
        said = mix(said, *inputs.mixup)
    return losses.mixed_target(inputs.labels, said, config.probability_weight)


def teacher_columns(vocabulary: Vocabulary, teacher: Vocabulary | None) -> Tensor:
    """Where a teacher's logits have our labels, by label id. Raises InputError when it lacks one of them."""
    lacking = vocabulary.ids if teacher is None else [name for name in vocabulary.ids if name not in teacher.position]
    if teacher is None or lacking:
        raise InputError(
            f"distill.probability_weight needs a teacher that knows all {len(vocabulary)} labels by id; it lacks "
            f"{', '.join(lacking[:3])}{' ...' if len(lacking) > 3 else ''}; set it to 0 or choose another teacher"
        )
    return torch.tensor(teacher.indices(vocabulary.ids))
