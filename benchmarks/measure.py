"""Times things side by side in one run, and keeps the figures with date, command, commit and hardware."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]


def medians_s(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate, taken in turns so that a noisy moment hits all of them.

    In its turn a candidate runs twice and the second run counts: the first finds the other's data in the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        candidate()
    for _ in range(repeats):
        for name, candidate in candidates.items():
            candidate()
            started = time.perf_counter()
            candidate()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s of the best of several products of large square matrices: what a step's FLOP/s are a share of."""
    size, repeats = (8192, 30) if device.type == "cuda" else (1536, 6)
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        torch.mm(one, other)
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * size**3 / best_s


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was allocated on a CUDA device since the last reset, else the process's most resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def report(name: str, lines: list[str], figures: dict[str, Any], out: Path | None) -> None:
    """Prints the lines, and writes them with the figures to `out`."""
    print("\n".join(lines))
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_named, sys.argv[1:])]),
        "commit": _git("rev-parse", "HEAD") + (" with changes" if _git("status", "--porcelain") else ""),
        "hardware": _hardware(),
        "torch": torch.__version__,
        "figures": figures,
        "lines": lines,
    }
    out.write_text(json.dumps(about, indent=1) + "\n")


def _named(argument: str) -> str:
    """A path from the repository's root, since others have theirs elsewhere."""
    return os.path.relpath(argument, ROOT) if argument.startswith("/") else argument


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--repeats", type=int, default=15, help="runs of each candidate; medians are reported")
    made.add_argument("--out", type=Path, default=None, help="a JSON file for the figures")
    return made


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _hardware() -> str:
    info = Path("/proc/cpuinfo")
    model = platform.processor()
    if info.exists():
        model = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), "")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {torch.get_num_threads()} threads{gpu}"
