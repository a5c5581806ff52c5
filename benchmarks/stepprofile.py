"""Where a step's time goes on the device, by kind of kernel, and which operations make the host wait for it."""

import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from measure import synchronize
from torch.profiler import ProfilerActivity, profile

NUM_STEPS, NUM_TOP = 3, 25
# The first that matches names the kind; attention's kernels are built of the same products as the others.
KINDS = (
    ("attention", re.compile(r"flash|fmha|attention|attn|sdpa", re.I)),
    ("optimiser", re.compile(r"adam|multi_tensor|foreach|lpnorm", re.I)),
    ("copies", re.compile(r"memcpy|memset|aten::copy_|_to_copy|CatArray|direct_copy", re.I)),
    ("matmul", re.compile(r"gemm|cutlass|xmma|nvjet|cublas|splitk|aten::(addmm|mm|bmm|baddbmm)$", re.I)),
    ("softmax and norms", re.compile(r"softmax|norm|welford", re.I)),
    ("sorting and random numbers", re.compile(r"sort|radix|scan|distribution|rand|philox", re.I)),
)
OTHER = "elementwise and others"


@dataclass(frozen=True)
class Profile:
    """Milliseconds a step by kind and of the longest kernels, and host waits a step by place."""

    by_kind_ms: dict[str, float]
    top: list[dict[str, Any]]
    busy_ms: float
    syncs: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A text table."""
        shares = [
            f"  {kind:<28}{ms:10.2f} ms {ms / self.busy_ms:7.1%}"
            for kind, ms in sorted(self.by_kind_ms.items(), key=lambda item: -item[1])
        ]
        kernels = [f"  {one['ms']:9.3f} ms {one['calls']:8.1f} x  {one['name'][:110]}" for one in self.top]
        waits = [f"  {count:6.1f} x  {place}" for place, count in self.syncs.items()] or ["  none"]
        return [
            f"time on the device a step: {self.busy_ms:.2f} ms",
            *shares,
            "longest kernels (a step):",
            *kernels,
            "operations that make the host wait (a step):",
            *waits,
        ]


def profile_step(step: Callable[[], object], device: torch.device) -> Profile:
    """Profiles a few steps; the caller has warmed them up."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    with profile(activities=activities) as profiler:
        for _ in range(NUM_STEPS):
            step()
        synchronize(device)
    wanted = "CUDA" if on_cuda else "CPU"
    total_ms: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.key_averages():
        # Annotations, like the optimiser's, span kernels that are counted by themselves.
        if event.device_type.name != wanted or (on_cuda and event.is_user_annotation):
            continue
        us = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        total_ms[event.key] += us / 1000 / NUM_STEPS
        calls[event.key] += event.count
    by_kind: Counter[str] = Counter()
    for name, ms in total_ms.items():
        by_kind[kind_of(name)] += ms
    top = [{"name": name, "ms": ms, "calls": calls[name] / NUM_STEPS} for name, ms in total_ms.most_common(NUM_TOP)]
    return Profile(dict(by_kind), top, sum(total_ms.values()), _syncs(step) if on_cuda else {})


def kind_of(kernel: str) -> str:
    """The kind of a kernel or operator, by its name."""
    return next((kind for kind, pattern in KINDS if pattern.search(kernel)), OTHER)


def _syncs(step: Callable[[], object]) -> dict[str, float]:
    """Synchronising operations a step, by the line of Python that caused them."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(NUM_STEPS):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{one.filename}:{one.lineno}" for one in caught if "synchronizing CUDA operation" in str(one.message)
    )
    return {place: count / NUM_STEPS for place, count in places.most_common()}
