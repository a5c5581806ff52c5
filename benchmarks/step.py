"""The training step on a store of noise: clips/s, share of the measured matrix peak, data wait, memory; and beside the
bare passes over the same tokens. On CUDA with and without torch.compile."""

import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import matrix_peak_flops_per_s, medians_s, parser, peak_memory_bytes, report, synchronize
from noisestore import make_noise_store
from stepprofile import profile_step

from featurestore.loader import Loader
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from training.augment import Augmentation
from training.config import RunConfig, Stage, load_config
from training.flops import StepFlops, distill_flops, distill_memory, multissl_flops, multissl_memory
from training.hostbatch import host_batches
from training.inputs import Normalisation, prepare
from training.masks import inter_mask, intra_mask
from training.prior import saliency
from training.steptrial import Trial, TrialSizes, uses_autocast

NUM_CLASSES, TEACHER_DIM = 50, 768
GOAL_OVER_BARE, GOAL_OVER_LABELS, GOAL_OF_PEAK = 1.15, 1.03, 0.5
STAGES: tuple[Stage, ...] = ("multissl", "distill")


def stage_flops(stage: Stage, config: RunConfig, batch_size: int) -> StepFlops:
    if stage == "multissl":
        return multissl_flops(config.model, config.multissl, batch_size)
    return distill_flops(config.model, config.distill, batch_size, NUM_CLASSES, TEACHER_DIM)


def estimated_bytes(stage: Stage, config: RunConfig, batch_size: int, device: torch.device) -> int:
    autocast = uses_autocast(config, device)
    if stage == "multissl":
        return multissl_memory(config.model, config.multissl, batch_size, autocast=autocast).total
    return distill_memory(config.model, batch_size, NUM_CLASSES, TEACHER_DIM, autocast=autocast).total


class Bench:
    """One configuration, batch size and device, and the figures and lines found so far."""

    def __init__(self, config: RunConfig, batch_size: int, device: torch.device, repeats: int) -> None:
        self.config, self.batch_size, self.device, self.repeats = config, batch_size, device, repeats
        self.sizes = TrialSizes(batch_size, NUM_CLASSES, TEACHER_DIM)
        self.dtype = torch.bfloat16 if uses_autocast(config, device) else torch.float32
        self.figures: dict[str, Any] = {}
        self.lines: list[str] = []

    def guarded(self, name: str, what: Callable[[], None]) -> None:
        """Runs a part, and says so where the device's memory is too small for it."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            what()
        except torch.OutOfMemoryError:
            self.lines.append(f"{name}: OUT OF MEMORY")
            self.figures[name] = "out of memory"

    def real_steps(self, name: str, stage: Stage, config: RunConfig, store: Store, profiled: bool) -> None:
        """Reading, preparing and stepping, as in training."""
        trial = Trial(stage, config, self.sizes, self.device)
        teacher = TeacherCache(store, "random") if stage == "distill" else None
        batches = host_batches(Loader(store, store.rows(), self.batch_size, teacher=teacher).batches(), self.device)
        augmentation = Augmentation(config.multissl.augment, 0, stage)
        normalisation = Normalisation(store.snapshot.mean, store.snapshot.std)
        waited_s = 0.0

        def step() -> None:
            nonlocal waited_s
            started = time.perf_counter()
            batch = next(batches)
            waited_s += time.perf_counter() - started
            trial.inputs = prepare(batch, config.model.grid, normalisation, self.device, augmentation)
            trial.step()

        # The first ones compile, choose kernels and fill caches.
        warm_up, steps_a_run = (5, 10) if self.device.type == "cuda" else (1, 1)
        for _ in range(warm_up):
            step()
        seconds, waited_s = list[float](), 0.0
        for _ in range(max(3, self.repeats // 3)):
            synchronize(self.device)
            started = time.perf_counter()
            for _ in range(steps_a_run):
                step()
            synchronize(self.device)
            seconds.append((time.perf_counter() - started) / steps_a_run)
        self._tell(name, stage, config, median(seconds), waited_s / (sum(seconds) * steps_a_run))
        if profiled:
            found = profile_step(step, self.device)
            self.lines += [f"profile of {name}:", *found.lines()]
            self.figures[name]["profile"] = {"by_kind_ms": found.by_kind_ms, "top": found.top, "syncs": found.syncs}

    def _tell(self, name: str, stage: Stage, config: RunConfig, step_s: float, wait_share: float) -> None:
        flops = stage_flops(stage, config, self.batch_size)
        peak_bytes, estimate = (
            peak_memory_bytes(self.device),
            estimated_bytes(stage, config, self.batch_size, self.device),
        )
        # Right after the steps, since a shared machine is not always as fast.
        peak = matrix_peak_flops_per_s(self.device, self.dtype)
        share = flops.model / step_s / peak
        self.figures[name] = {
            "step_s": step_s,
            "clips_per_s": self.batch_size / step_s,
            "model_flops": flops.model,
            "hardware_flops": flops.hardware,
            "matrix_peak_flops_per_s": peak,
            "share_of_peak": share,
            "data_wait_share": wait_share,
            "peak_bytes": peak_bytes,
            "estimated_bytes": estimate,
        }
        self.lines.append(
            f"{name}: {step_s * 1e3:.1f} ms a step, {self.batch_size / step_s:.4g} clips/s, {flops.model / 1e12:.3g} "
            f"TFLOP a step, {flops.model / step_s / 1e12:.3g} TFLOP/s, {share:.1%} of the "
            f"{peak / 1e12:.3g} measured for products in {self.dtype} (goal on CUDA: {GOAL_OF_PEAK:.0%}), "
            f"{wait_share:.1%} waiting for data, "
            f"{peak_bytes / 1e9:.3g} GB at most ({estimate / 1e9:.3g} by the estimate)"
        )

    def beside_bare(self) -> None:
        """The Multi-SSL step, and what it consists of, beside the transformers' passes over the same tokens."""
        self.config = self.config.model_copy(update={"compile": "off"})
        trial, around = (Trial("multissl", self.config, self.sizes, self.device) for _ in range(2))
        aft, mae = trial.network.get_submodule("aft.transformer"), trial.network.get_submodule("mae.transformer")
        for transformer in ("aft.transformer", "mae.transformer"):
            around.network.set_submodule(transformer, torch.nn.Identity())
        grid = self.config.model.grid
        taught, alone = (
            Trial("distill", self.config, TrialSizes(self.batch_size, NUM_CLASSES, dim), self.device)
            for dim in (TEACHER_DIM, None)
        )
        num_visible = grid.num_patches - round(self.config.multissl.mask_ratio * grid.num_patches)
        draw = torch.Generator(self.device).manual_seed(0)

        def bare() -> None:
            """Forward and backward of the same transformers over the same numbers of tokens, and nothing else."""
            sizes = (self.config.model.width, self.config.model.mae_width)
            tokens = torch.randn(3 * self.batch_size, grid.num_patches, sizes[0], device=self.device)
            visible = torch.randn(self.batch_size, num_visible, sizes[1], device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=trial.autocast):
                loss = aft(tokens).float().square().mean() + mae(visible).float().mean()
            trial.backward(loss)

        def masks() -> None:
            prior = saliency(trial.inputs.gradient_magnitude)
            intra_mask(self.batch_size, grid, self.config.multissl.intra_max_share, draw)
            inter_mask(prior, self.config.multissl.mask_ratio, self.config.multissl.sampling, draw)

        candidates: dict[str, Callable[[], None]] = {
            "bare passes": bare,
            "multissl, forward and backward": lambda: trial.backward(trial.forward()),
            "all but the transformers": lambda: around.backward(around.forward()),
            "masks and prior": masks,
            "clipping and AdamW": trial.update,
            "distill, forward and backward": lambda: taught.backward(taught.forward()),
            "without a teacher": lambda: alone.backward(alone.forward()),
        }
        waiting = {name: self._waiting(candidate) for name, candidate in candidates.items()}
        self._tell_parts(medians_s(waiting, max(3, self.repeats // 3)))

    def _waiting(self, candidate: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            candidate()
            synchronize(self.device)

        return run

    def _tell_parts(self, seconds: dict[str, float]) -> None:
        passes, step = seconds["bare passes"], seconds["multissl, forward and backward"]
        over_bare = step / passes
        over_labels = seconds["distill, forward and backward"] / seconds["without a teacher"]
        self.figures |= {"seconds": seconds, "over_bare": over_bare, "over_labels": over_labels}
        self.lines += [
            f"Multi-SSL, losses and gradients: {step * 1e3:.1f} ms, bare passes {passes * 1e3:.1f} ms: "
            f"{over_bare:.3f} x (goal: {GOAL_OVER_BARE})",
            *(
                f"  {name}: {seconds[name] * 1e3:.1f} ms, {seconds[name] / passes:.1%} of the bare passes"
                for name in ("all but the transformers", "masks and prior", "clipping and AdamW")
            ),
            f"distillation, losses and gradients: {over_labels:.3f} x those without a teacher "
            f"(goal: {GOAL_OVER_LABELS})",
        ]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--preset", default="tiny")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--set", dest="changes", action="append", default=[], help="change a key of the configuration")
    options.add_argument("--profile", action="store_true", help="kernels, their kinds, and what makes the host wait")
    options.add_argument("--skip-bare", action="store_true", help="without the comparison with the bare passes")
    arguments = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(arguments.preset, arguments.changes)
    bench = Bench(config, arguments.batch_size, device, arguments.repeats)
    bench.lines.insert(
        0, f"{arguments.preset}, batches of {arguments.batch_size}, {device.type}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        store = make_noise_store(Path(folder) / "store", max(512, 2 * arguments.batch_size), NUM_CLASSES, TEACHER_DIM)
        for compiled in ("off", "on") if device.type == "cuda" else ("off",):
            changed = config.model_copy(update={"compile": compiled})
            for stage in STAGES:
                name = f"{stage}, {'compiled' if compiled == 'on' else 'eager'}"
                bench.guarded(name, partial(bench.real_steps, name, stage, changed, store, arguments.profile))
    if not arguments.skip_bare:
        bench.guarded("beside the bare passes", bench.beside_bare)
    report("step", bench.lines, bench.figures, arguments.out)


if __name__ == "__main__":
    main()
