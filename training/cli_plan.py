"""The command `training plan`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training.config import load_config
from training.gpus import DEVICES

if TYPE_CHECKING:
    from training.plan import Plan, StageMemory

GIGA, GIB, PETA = 1e9, 2**30, 1e15


def plan(
    clips: Annotated[float, typer.Option(help="How many clips to train on, like 1.9e6.")],
    iterations: Annotated[int, typer.Option("--iter", help="How many iterations.")],
    preset: Annotated[str, typer.Option(help="demo, tiny, small, base, or a .toml file.")] = "base",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key: --set model.recompute=true. May be repeated.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="none, own, or a cache's name: sets distill.teacher.")] = None,
    gpus: Annotated[int, typer.Option(help="How many of these devices share each batch.")] = 1,
    device_name: Annotated[str | None, typer.Option(help=f"A known device: {', '.join(DEVICES)}.")] = None,
    tflops_per_s: Annotated[
        float | None,
        typer.Option(
            help="The matrix peak of another device in the run's precision; with --mfu 1, a rate that it reaches."
        ),
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(help="The share of the peak that training reaches.", show_default="0.5")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few steps here. Default where no device or rate is given.")
    ] = False,
    device: Annotated[str, typer.Option(help="What to measure: auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a run will cost: steps, FLOPs, GPU-hours, memory and disk. Needs no store, and trains nothing.

    Example: training plan --clips 1.9e6 --iter 3 --device-name h200 --gpus 8 --teacher beats
    """
    from featurestore.device import choose_device
    from training.plan import check_sizes, make_plan
    from training.rates import RateWish, choose_rate
    from training.steptrial import uses_autocast

    shortened = [] if teacher is None else [f"distill.teacher={json.dumps(teacher)}"]
    config = load_config(preset, [*(changes or []), *shortened])
    check_sizes(config, clips, iterations, gpus)
    chosen = choose_device(device)
    rate = choose_rate(config, RateWish(tflops_per_s, device_name, mfu, measure), gpus, chosen)
    # A device that is only named is a GPU, where `auto` is bfloat16.
    autocast = uses_autocast(config, chosen) if rate.is_measured else config.precision != "float32"
    made = make_plan(config, int(clips), iterations, gpus, rate, autocast=autocast)
    if as_json:
        print(json.dumps(_as_json(made)))
    else:
        _print(made, preset)


def _as_json(made: "Plan") -> dict[str, Any]:
    from training.plan import PAPER_V100_HOURS

    return {
        **asdict(made),
        "gpu_hours": made.gpu_hours,
        "wall_hours": made.gpu_hours / made.num_gpus,
        "loader_clips_per_s_per_gpu": made.loader_clips_per_s,
        "fits": {memory.stage: made.fits(memory) for memory in made.memory},
        "paper_v100_hours_per_iteration": PAPER_V100_HOURS,
    }


def _print(made: "Plan", preset: str) -> None:
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"{preset} on {made.num_clips:,} clips, iterations: {made.num_iterations}, GPUs: {made.num_gpus}. "
        f"Rate: {made.rate.source}."
    )
    console.print(_hours_table(made))
    console.print(_memory_table(made))
    _print_rest(made, console)


def _hours_table(made: "Plan") -> Table:
    table = Table(
        "iteration", "stage", title="Compute (FLOPs from the shapes; hours = FLOPs / rate)", title_justify="left"
    )
    for heading in ("steps", "PFLOP", "GPU-hours", "hours", "clips/s a GPU"):
        table.add_column(heading, justify="right")
    for cost in made.stages:
        table.add_row(
            str(cost.iteration),
            cost.stage,
            f"{cost.num_steps:,}" if cost.num_steps else "forward",
            _number(cost.flops / PETA),
            f"{cost.gpu_hours:,.2f}",
            f"{cost.wall_hours:,.2f}",
            _number(cost.clips_per_s_per_gpu),
        )
    flops = sum(cost.flops for cost in made.stages)
    hours = (f"{made.gpu_hours:,.2f}", f"{made.gpu_hours / made.num_gpus:,.2f}")
    table.add_section()
    table.add_row("all", "", "", _number(flops / PETA), *hours, "")
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory_table(made: "Plan") -> Table:
    table = Table("GiB a GPU", title="Memory: activations are an estimate, without torch.compile", title_justify="left")
    for memory in made.memory:
        table.add_column(f"{memory.stage}, {memory.batch_size_per_gpu} clips", justify="right")
    for part in ("parameters", "gradients", "adamw", "activations", "total"):
        table.add_row(part, *(f"{getattr(memory.keeping, part) / GIB:,.2f}" for memory in made.memory))
    table.add_row("total, model.recompute", *(f"{memory.recomputing.total / GIB:,.2f}" for memory in made.memory))
    table.add_section()
    table.add_row("as configured", *(_verdict(made, memory) for memory in made.memory))
    return table


def _verdict(made: "Plan", memory: "StageMemory") -> str:
    from training.rates import FREE_SHARE

    available = made.rate.memory_bytes
    if available is None:
        return "memory not known"
    needed = (memory.recomputing if made.recompute else memory.keeping).total
    said = "DOES NOT FIT" if needed > available else "tight" if needed > FREE_SHARE * available else "fits"
    return f"{said} in {available / GIB:,.0f}"


def _print_rest(made: "Plan", console: Console) -> None:
    from training.plan import LOADER_CLIPS_PER_S, PAPER_V100_HOURS

    disk = made.disk
    console.print(
        f"Disk (estimate): shards {disk.shards / GIGA:,.1f} GB, caches of the teacher {made.teacher} "
        f"{disk.teacher_caches / GIGA:,.2f} GB, checkpoints {disk.checkpoints / GIGA:,.2f} GB."
    )
    share = made.loader_clips_per_s / LOADER_CLIPS_PER_S
    console.print(
        f"Loader: {made.loader_clips_per_s:,.0f} clips/s a GPU at most, {share:.1%} of the {LOADER_CLIPS_PER_S:,} that "
        "one process was measured to read."
    )
    if any(made.fits(memory) is False for memory in made.memory):
        console.print(
            "It does not fit: take more --gpus, --set model.recompute=true, or a smaller batch_size of the stage."
        )
    hours = made.gpu_hours / made.num_iterations
    console.print(
        f"An iteration: {hours:,.1f} GPU-hours on average. The paper's own figure is {PAPER_V100_HOURS} V100-hours on "
        "AudioSet-2M; for how many epochs it doesn't say."
    )
    console.print("Left out: evaluations, a given teacher's own passes, waiting for other GPUs or for data.")
