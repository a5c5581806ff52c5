"""GPUs by name: what their makers state."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A GPU: its dense 16-bit matrix peak in TFLOP/s, and its memory in GiB, as CUDA reports it."""

    peak_tflops_per_s: float
    memory_gib: float


# From NVIDIA's datasheets; where those state the rate with sparsity, half of it. bfloat16 with float32 sums, except
# V100 and T4, which have float16 alone.
DEVICES = {
    "b200": KnownDevice(2250, 178),  # DGX B200
    "h200": KnownDevice(989, 139),  # H200 SXM: 1979 with sparsity
    "h100": KnownDevice(989, 79),  # H100 SXM: 1979 with sparsity
    "h100-pcie": KnownDevice(756, 79),  # H100 PCIe: 1513 with sparsity
    "a100": KnownDevice(312, 79),  # A100 80GB
    "a100-40": KnownDevice(312, 39),  # A100 40GB
    "l40s": KnownDevice(362, 44),  # 733 with sparsity
    "a10": KnownDevice(125, 22),
    "l4": KnownDevice(121, 22),  # 242 with sparsity
    "v100": KnownDevice(125, 31),  # V100 SXM2 32GB
    "t4": KnownDevice(65, 14),
}
