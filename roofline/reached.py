"""What kernels reach on a SKU: its own published figure, else what is assumed, with the reason. Needs no PyTorch.

A figure of the datasheet is of that very SKU. Where nobody published one, it is assumed from a device of the same
architecture, or from the median of all that are known. Every ``Attained`` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from griffin_kernels.datasheet import Datasheet

ACHIEVED_TENSOR = 0.78
"""Share of the matrix peak that large products in 16 bit reach where nobody published a figure for the device: the
median of A100 87 %, H100 80 %, B200 78 %, MI325X 60 %, MI300X 51 % (stas00/ml-engineering, 2026-08, dense bf16)."""

ACHIEVED_VECTOR = 0.80
"""The same for float32 products on vector units: the median of A100 PCIe 81 % and 90 %, H100 76 %, L4 29 %, T4 47 %
without the two boards that their power limit holds back (NeuSight, linear.csv)."""

ACHIEVED_DRAM = 0.87
"""Share of the memory peak that kernels reach where nobody published a figure: the median of the datasheets' own."""

CAPPED_BELOW = 0.6
"""A board whose float32 products reach less of their peak than this is held back by its power limit (L4, T4)."""

EVENT_OVERHEAD_US = 6.3
"""Fixed cost of a cold kernel seen by events where nobody published one: the median of A100 8.1, H100 6.3, RTX 3090
3.4."""


@dataclass(frozen=True)
class Attained:
    """A figure and where it comes from. published: for this very SKU. why: for people, a part of a sentence."""

    value: float
    published: bool
    why: str


LATENCY_NS: Mapping[str, tuple[float, str]] = {
    "sm_70": (314, "a V100 PCIe"),
    "sm_80": (391, "an A100 80 GB"),
    "sm_86": (320, "an A40"),
    "sm_89": (251, "an L40"),
    "sm_90": (348, "a GH200"),
    "gfx90a": (411, "an MI210"),
    "gfx942": (434, "an MI300X"),
}
"""Load from idle device memory, by architecture: RRZE-HPC gpu-benches, gpu-latency, cycles over the clock it reads."""

GRAPH_NODE_US: Mapping[str, tuple[float, str]] = {
    "sm_80": (1.34, "an A100 80 GB"),
    "sm_86": (1.09, "an A40"),
    "sm_89": (0.94, "an L40"),
    "sm_90": (1.26, "an H200"),
    "gfx90a": (2.05, "an MI210"),
}
"""Small kernels one after the other in a graph, by architecture: RRZE-HPC gpu-benches, gpu-small-kernels."""

STREAM_KERNEL_US: Mapping[str, tuple[float, str]] = {
    "sm_80": (2.62, "an A100 80 GB"),
    "sm_86": (2.05, "an A40"),
    "sm_89": (1.64, "an L40"),
    "sm_90": (2.43, "an H200"),
    "gfx90a": (2.05, "an MI210"),
}
"""The same on a stream."""

L2_BYTES_PER_CLOCK: Mapping[str, tuple[float, str]] = {
    "sm_80": (35.6, "an A100 80 GB"),
    "sm_86": (21.5, "an A40"),
    "sm_89": (14.7, "an L40"),
    "sm_90": (37.4, "an H100 PCIe and an H200"),
    "gfx90a": (28.7, "an MI210"),
    "gfx942": (25.7, "an MI300X"),
}
"""From L2 into one unit, by architecture: RRZE-HPC gpu-benches, gpu-l2-cache and, of A40 and MI300X, gpu-l2-stream."""

ELSEWHERE: Mapping[str, Mapping[str, tuple[float, str]]] = {
    "NVIDIA": {
        "dram_latency_ns": (320, "the median of five architectures of NVIDIA's"),
        "graph_node_us": (1.18, "the median of four architectures of NVIDIA's"),
        "stream_kernel_us": (2.24, "the median of four architectures of NVIDIA's"),
        "l2_bytes_per_clock": (28.6, "the median of four architectures of NVIDIA's"),
    },
    "AMD": {
        "dram_latency_ns": (434, "an MI300X"),
        "graph_node_us": (2.05, "an MI210"),
        "stream_kernel_us": (2.05, "an MI210"),
        "l2_bytes_per_clock": (25.7, "an MI300X"),
    },
}
"""What is assumed of an architecture that nobody measured, by vendor."""

_BY_ARCH = {
    "dram_latency_ns": LATENCY_NS,
    "graph_node_us": GRAPH_NODE_US,
    "stream_kernel_us": STREAM_KERNEL_US,
    "l2_bytes_per_clock": L2_BYTES_PER_CLOCK,
}


def _figure(sheet: Datasheet, field: str) -> Attained | None:
    """A field of the datasheet, else its architecture's, else its vendor's; None for a device that is no GPU."""
    own: float | None = getattr(sheet, field)
    if own is not None:
        return Attained(own, True, "published")
    found = _BY_ARCH[field].get(sheet.arch) or ELSEWHERE.get(sheet.vendor, {}).get(field)
    return None if found is None else Attained(found[0], False, f"assumed, as measured on {found[1]}")


def dram(sheet: Datasheet) -> Attained:
    """Share of the peak bandwidth that kernels which stream reach."""
    own = sheet.achieved_dram_gb_per_s
    if own is not None:
        return Attained(own / sheet.dram_gb_per_s, True, f"published: {own:,g} GB/s measured")
    return Attained(ACHIEVED_DRAM, False, "assumed, the median of the devices with published measurements")


def tensor(sheet: Datasheet, dtype: str) -> Attained | None:
    """Share of the peak in ``dtype`` (of ``Datasheet.tensor_flops_per_s``) that large products reach; None without one.

    In 16 bit the published figure of the other dtype stands in, since both have one peak; tf32 and fp8 take that share
    too, as assumed.
    """
    peak = sheet.tensor_flops_per_s(dtype)
    if peak is None:
        return None
    order = (dtype,) if dtype == "float32" else (dtype, "bfloat16", "float16")
    for name in order:
        own: float | None = getattr(sheet, f"achieved_{name}_tflops", None)
        of = sheet.tensor_flops_per_s(name)
        if own is None or of is None:
            continue
        same = name == dtype or of == peak
        told = f"{own:g} TFLOP/s measured in {name}"
        return Attained(own * 1e12 / of, same, f"published: {told}" if same else f"assumed, as {told}")
    if dtype == "float32":
        return Attained(ACHIEVED_VECTOR, False, "assumed, the median of three GPUs with published measurements")
    return Attained(ACHIEVED_TENSOR, False, "assumed, the median of five GPUs with published measurements")


def latency_s(sheet: Datasheet) -> Attained | None:
    """Seconds from the issue of a load from idle device memory to its use; None for what is no GPU."""
    return _seconds(_figure(sheet, "dram_latency_ns"), 1e-9)


def graph_node_s(sheet: Datasheet) -> Attained | None:
    """Seconds from one small kernel's start to the next's in a CUDA or HIP graph; None for what is no GPU."""
    return _seconds(_figure(sheet, "graph_node_us"), 1e-6)


def stream_kernel_s(sheet: Datasheet) -> Attained | None:
    """The same on a stream."""
    return _seconds(_figure(sheet, "stream_kernel_us"), 1e-6)


def event_overhead_s(sheet: Datasheet) -> Attained | None:
    """Fixed seconds of one cold kernel that events time; None for what is no GPU."""
    if sheet.event_overhead_us is not None:
        return Attained(sheet.event_overhead_us * 1e-6, True, "published")
    if sheet.vendor not in ELSEWHERE:
        return None
    return Attained(EVENT_OVERHEAD_US * 1e-6, False, "assumed, the median of three GPUs with published measurements")


def l2_bytes_per_clock(sheet: Datasheet) -> Attained | None:
    """Bytes from L2 into one unit in a clock; None for what is no GPU."""
    return _figure(sheet, "l2_bytes_per_clock")


def clock_share(sheet: Datasheet) -> Attained:
    """Share of the boost clock under load: 1, less on boards that their power limit holds back (CAPPED_BELOW)."""
    share = tensor(sheet, "float32")
    if share is None or not share.published or share.value >= CAPPED_BELOW:
        return Attained(1.0, False, "assumed, the boost clock")
    # boards that are not held back do not reach the whole peak either
    return Attained(share.value / ACHIEVED_VECTOR, True, f"held back by the power limit ({share.why})")


def _seconds(found: Attained | None, unit: float) -> Attained | None:
    return None if found is None else Attained(found.value * unit, found.published, found.why)
