"""A plain ViT of timm's, trained by a plain loop on the same shards, beside `training finetune random`: accuracy over
folds and seeds, and the time of a step. Same width, depth, frames, batches, rate, schedule and epochs; no pretraining,
no teacher."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from measure import medians_s, parser, report
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

import featurestore
from featurestore.store import Store
from training.config import OptimiserConfig, RunConfig, load_config
from training.finetune import finetune
from training.steptrial import Trial, TrialSizes

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plain:
    """timm's ViT with an average over its patches, AdamW under a warm-up and a cosine, cross-entropy."""

    config: RunConfig
    num_classes: int

    @property
    def optimiser(self) -> OptimiserConfig:
        return self.config.distill.optimiser

    def network(self, seed: int) -> VisionTransformer:
        torch.manual_seed(seed)
        sizes = self.config.model
        return VisionTransformer(
            img_size=(sizes.num_frames, 128),
            in_chans=1,
            num_classes=self.num_classes,
            embed_dim=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            class_token=False,
            global_pool="avg",
        )

    def adamw(self, network: VisionTransformer) -> torch.optim.AdamW:
        chosen = self.optimiser
        return torch.optim.AdamW(network.parameters(), chosen.peak_lr, chosen.betas, weight_decay=chosen.weight_decay)

    def step(self, network: VisionTransformer, adamw: torch.optim.AdamW, fbank: Tensor, classes: Tensor) -> None:
        adamw.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(fbank[:, None, : self.config.model.num_frames]), classes))
        torch.nn.utils.clip_grad_norm_(network.parameters(), self.optimiser.max_gradient_norm)
        adamw.step()

    def accuracy(self, store: "featurestore.OpenStore", fold: int, seed: int) -> float:
        """Trains on the other folds, and is judged on this one."""
        part = store.hold_out(fold=fold)
        chosen = self.optimiser
        loader = store.loader(chosen.batch_size, rows=part.train, seed=seed)
        network = self.network(seed).train()
        adamw = self.adamw(network)
        num_epochs = int(chosen.epochs)
        num_steps = sum(map(loader.num_batches, range(num_epochs)))
        num_warm_up = max(1, round(chosen.warmup_share * num_steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            adamw,
            lambda step: (
                (step + 1) / num_warm_up
                if step < num_warm_up
                else 0.5 + 0.5 * math.cos(math.pi * (step - num_warm_up) / max(1, num_steps - num_warm_up))
            ),
        )
        for epoch in range(num_epochs):
            for batch in loader.tensors(epoch):
                self.step(network, adamw, batch.fbank, batch.classes())
                schedule.step()
        network.eval()
        right = 0
        with torch.no_grad():
            for batch in store.loader(20, rows=part.held_out, shuffle=False).tensors(0):
                windows = torch.split(batch.fbank[:, None], self.config.model.num_frames, dim=2)
                scores = torch.stack([network(window).softmax(1) for window in windows]).mean(0)
                right += int((scores.argmax(1) == batch.classes()).sum())
        return right / len(part.held_out)


def compare_steps(plain: Plain, repeats: int) -> dict[str, float]:
    """Median seconds of a step on the same batch, in turns."""
    batch_size = plain.optimiser.batch_size
    ours = Trial("distill", plain.config, TrialSizes(batch_size, plain.num_classes, None), CPU)
    network = plain.network(0).train()
    adamw = plain.adamw(network)
    fbank, classes = ours.inputs.fbank, ours.inputs.labels.argmax(1)
    return medians_s({"ours": ours.step, "plain": lambda: plain.step(network, adamw, fbank, classes)}, repeats)


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--store", required=True, help="a store with folds and one label a clip")
    arguments.add_argument("--folds", default="all")
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--preset", default="finetune-esc50")
    arguments.add_argument("--set", action="append", default=[], dest="changes")
    options = arguments.parse_args()
    config = load_config(options.preset, options.changes)
    store = featurestore.open(options.store)
    folds = store.folds if options.folds == "all" else [int(fold) for fold in options.folds.split(",")]
    plain = Plain(config, len(store.vocabulary.names))
    steps = compare_steps(plain, options.repeats)
    seeds = range(options.seeds)
    theirs = [plain.accuracy(store, fold, seed) for seed in seeds for fold in folds]
    with tempfile.TemporaryDirectory() as folder:
        found = finetune(
            config,
            [Store(options.store)],
            Path(folder) / "run",
            CPU,
            folds=",".join(map(str, folds)),
            num_seeds=len(seeds),
            keep="none",
        )
    ours = [one.accuracy or 0.0 for one in found.by_trial.values()]
    figures = {
        "step_s": steps,
        "accuracies": {"ours": ours, "plain": theirs},
        "config": config.model_dump(mode="json"),
    }
    lines = [
        f"step of {config.distill.optimiser.batch_size} clips: ours {1e3 * steps['ours']:.0f} ms, plain ViT "
        f"{1e3 * steps['plain']:.0f} ms: {steps['ours'] / steps['plain']:.2f} x",
        *(
            f"{name}: {fmean(values):.1%}, spread {_spread(values):.1%}"
            for name, values in (("ours", ours), ("plain", theirs))
        ),
    ]
    report("plain_vit", lines, figures, options.out)


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
