"""The Multi-SSL step beside the bare passes over the same tokens; distillation beside the step without a teacher."""

import torch
from measure import medians_s, parser, report
from torch import Tensor

from training.config import load_config
from training.distill import Task, distill_losses
from training.inputs import Inputs
from training.model.networks import MultiSSLNetwork, Student
from training.multissl import multissl_losses

NUM_CLASSES, TEACHER_DIM = 50, 384


def backward(network: torch.nn.Module, loss: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if loss.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--preset", default="tiny")
    options.add_argument("--batch-size", type=int, default=16)
    arguments = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(arguments.preset)
    generator = torch.Generator(device).manual_seed(0)
    cpu_generator = torch.Generator().manual_seed(0)
    size, grid = arguments.batch_size, config.model.grid
    network = MultiSSLNetwork(config.model, cpu_generator).to(device)
    student = Student(config.model, NUM_CLASSES, TEACHER_DIM, cpu_generator).to(device)
    alone = Student(config.model, NUM_CLASSES, None, cpu_generator).to(device)
    fbank = torch.randn(size, grid.num_frames, grid.num_mel_bins, device=device)
    labels = torch.eye(NUM_CLASSES, device=device)[torch.arange(size) % NUM_CLASSES]
    magnitude = torch.rand(size, grid.num_patches, device=device)
    inputs = Inputs(fbank, magnitude, labels, torch.randn(size, TEACHER_DIM, device=device), None)
    num_visible = grid.num_patches - round(config.multissl.mask_ratio * grid.num_patches)

    def bare() -> None:
        """Forward and backward of the same transformers over the same numbers of tokens, and nothing else."""
        tokens = torch.randn(3 * size, grid.num_patches, config.model.width, device=device)
        visible = torch.randn(size, num_visible, config.model.mae_width, device=device)
        with autocast():
            loss = network.aft.encode(tokens).float().square().mean() + network.mae.transformer(visible).float().mean()
        backward(network, loss)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def multissl() -> None:
        with autocast():
            loss = multissl_losses(network, inputs, config.multissl, generator)["loss"]
        backward(network, loss)

    def distil(model: Student) -> None:
        with autocast():
            loss = distill_losses(model, inputs, config.distill, Task(one_label=True))["loss"]
        backward(model, loss)

    seconds = medians_s(
        {"bare": bare, "multissl": multissl, "labels": lambda: distil(alone), "distil": lambda: distil(student)},
        max(3, arguments.repeats // 3),
    )
    over_bare, over_labels = seconds["multissl"] / seconds["bare"], seconds["distil"] / seconds["labels"]
    rate = size / seconds["multissl"]
    lines = [
        f"Multi-SSL step, {arguments.preset}, batch {size}, {device.type}: {seconds['multissl'] * 1e3:.0f} ms, "
        f"bare passes {seconds['bare'] * 1e3:.0f} ms: {over_bare:.2f} x (goal: 1.15), {rate:.1f} clips/s",
        f"distillation step: {seconds['distil'] * 1e3:.0f} ms, without a teacher {seconds['labels'] * 1e3:.0f} ms: "
        f"{over_labels:.2f} x (goal: 1.03)",
    ]
    report("step", lines, {**seconds, "over_bare": over_bare, "over_labels": over_labels}, arguments.out)


if __name__ == "__main__":
    main()
