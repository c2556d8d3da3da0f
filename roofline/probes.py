"""What is timed to find a device's ceilings: one small piece of work for each, on buffers of its own.

Every function gives probes whose buffers are made and touched. On a CPU a piece takes about a millisecond where it can:
shorter than the time that the operating system gives another process, so that many samples are undisturbed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.device import Device
from roofline.ceilings import CACHE_SHARE, Unit

BUFFER_BYTES = {"cpu": 256 * 2**20, "gpu": 2**30}
"""Size of a DRAM buffer, at least; it must be several times any last-level cache. On a GPU the microseconds in which
the first units begin and the last ones end are several percent of a read of 256 MiB, and a quarter of that of 1 GiB."""

MEMORY_SHARE = 8
"""Three DRAM buffers of a GPU have this part of its memory each, at most."""

WINDOW_BYTES = 16 * 2**20
"""What a CPU takes of each DRAM buffer in one sample; the windows go round, so the data has left the caches."""

MATMUL_SIZES = {
    "cpu": ((1024, 1024, 1024), (512, 2048, 2048)),
    "gpu": ((2048, 2048, 4096), (4096, 4096, 4096), (8192, 4096, 4096), (8192, 8192, 8192)),
}
"""Rows, inner dimension, columns; which is fastest differs between libraries, so the best counts."""

MATMUL_ROWS = (1, 4, 16, 64, 256, 1024)
WEIGHT = (4096, 1024)
"""Columns and inner dimension of the product with few rows, stored as a linear layer stores its weight: those of models
that decode on a CPU. One row takes a fifth longer per byte at an inner dimension of 768 than at 2048."""

WIDE_ROWS = (1, 16, 256)
WIDE_WEIGHT = (65536, 1024)
"""A weight that is several times any last-level cache on its own, as an output matrix over a vocabulary is. Libraries
walk such products another way: with 16 rows MKL takes a third longer for each weight than in a layer's."""

LAUNCHES = 200
"""Calls in one sample of the launch time."""

BUSY_S = 200e-6
"""How long a GPU is kept busy before a probe is timed, so that it waits when the probe has been launched."""

MOST_BUSY_S = 16 * BUSY_S
"""The same for a probe that takes longer to launch; what takes longer still is timed with its launches."""

BUSY_CYCLES = 200_000
"""How long the kernel that keeps a GPU busy runs while it is found out how long a cycle takes."""

GPU_STEPS = 256
"""Passes of a GPU kernel over its chain or block: a sample takes some hundred microseconds."""


@dataclass(frozen=True)
class Probe:
    """``amount`` of work, in the amount of ``unit``, is what one call of ``work`` does; for ``s`` it is a count.

    launched: what launching costs is part of what is measured, on a GPU too.
    """

    name: str
    unit: Unit
    amount: float
    work: Callable[[], object]
    source: str
    launched: bool = False

    def sample(self, device: Device) -> float:
        """One measurement in ``unit``."""
        timed = seconds_of if self.launched or device.kind == "cpu" else kernel_seconds_of
        with current(device):
            seconds = timed(self.work, device)
        return seconds / self.amount if self.unit == "s" else self.amount / seconds


def current(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU torch's current one: streams, events and Triton's launches are then its own."""
    return contextlib.nullcontext() if device.kind == "cpu" else torch.cuda.device(device.torch_device)


def seconds_of(work: Callable[[], object], device: Device) -> float:
    """Seconds that one call takes on a device: wall clock on a CPU, between events on a GPU.

    A GPU that has nothing else to do waits between the events until the call has launched its kernels.
    """
    if device.kind == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = _between_events(work)
    return float(begin.elapsed_time(end)) / 1e3


def kernel_seconds_of(work: Callable[[], object], device: Device) -> float:
    """Seconds that the kernels of one call take on a GPU, without their launches.

    The GPU is kept busy until all are launched, for longer where it was not long enough, up to ``MOST_BUSY_S``.
    """
    busy_s = BUSY_S
    while True:
        cuda: Any = torch.cuda
        cuda._sleep(round(busy_s / _cycle_s(device.torch_device)))
        begin, end = _between_events(work, wait=False)
        waited = begin.query()  # it had come to the first kernel before the last was launched
        end.synchronize()
        if not waited or busy_s >= MOST_BUSY_S:
            return float(begin.elapsed_time(end)) / 1e3
        busy_s *= 4


@functools.cache
def _cycle_s(where: torch.device) -> float:
    """Seconds of a cycle of the kernel that keeps a GPU busy: of its core's clock, or another (ATen/cuda/Sleep.cu)."""
    cuda: Any = torch.cuda
    spin = functools.partial(cuda._sleep, BUSY_CYCLES)
    spin()  # loads it
    begin, end = _between_events(spin)
    return float(begin.elapsed_time(end)) / 1e3 / BUSY_CYCLES


def _between_events(work: Callable[[], object], wait: bool = True) -> tuple[Any, Any]:
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    work()
    end.record()
    if wait:
        end.synchronize()
    return begin, end


def everything(device: Device) -> Iterator[Probe]:
    """The probes of all ceilings that the device can have."""
    for make in (dram, cache, matmul, matmul_rows, matmul_wide, vector, special, launch):
        yield from make(device)


def roofs(device: Device) -> Iterator[Probe]:
    """The probes of the ceilings that kernels are judged by."""
    for make in (dram, cache, matmul, vector, special):
        yield from make(device)


def of_roof(name: str, device: Device) -> list[Probe]:
    """The probes behind one entry of the table, such as ``dram_copy`` or ``matmul_bfloat16``."""
    makers = {"dram": dram, "cache": cache, "matmul": matmul, "vector": vector, "special": special}
    return [probe for probe in makers[name.partition("_")[0]](device) if probe.name == name]


def dram(device: Device) -> Iterator[Probe]:
    """Copy, triad and read of buffers many times the caches.

    Bytes are those that the program names: a CPU may read a line before it overwrites it, which is not counted.
    """
    size = window = buffer_bytes(device)
    if device.kind == "cpu":
        window = WINDOW_BYTES
    shape = (max(1, size // window), window // 4)
    out, left, right = _ones(shape, device)
    total = torch.zeros((), device=device.torch_device, dtype=torch.float32)

    # one turn for all: what a probe of its own turn reads, another may have left in the cache
    turn = itertools.cycle(range(shape[0]))

    def going_round(work: Callable[[int], object]) -> Callable[[], object]:
        return lambda: work(next(turn))

    size_text = f"windows of {window >> 20} MiB of {size >> 20} MiB" if shape[0] > 1 else f"buffers of {size >> 20} MiB"
    streams: dict[str, tuple[int, Callable[[int], object], str]] = {
        "dram_copy": (2, lambda i: out[i].copy_(left[i]), "out.copy_(a)"),
        "dram_triad": (3, lambda i: torch.add(left[i], right[i], alpha=0.5, out=out[i]), "torch.add(a, b, alpha=s)"),
        "dram_read": (1, lambda i: torch.sum(left[i], 0, out=total), "torch.sum(a)"),
    }
    for name, (count, work, text) in streams.items():
        yield Probe(name, "bytes_per_s", count * shape[1] * 4, going_round(work), f"{text}, {size_text}, float32")


def buffer_bytes(device: Device) -> int:
    """Bytes of a DRAM buffer; a whole number of float32."""
    least = 4 * device.last_level_cache_bytes
    if device.kind == "cpu":
        return max(BUFFER_BYTES["cpu"], least)
    return max(min(BUFFER_BYTES["gpu"], device.memory_bytes // MEMORY_SHARE), least) // 4 * 4


def cache(device: Device) -> Iterator[Probe]:
    """A triad on three buffers that together fit in a quarter of the last-level cache; L2 on a GPU."""
    count = device.last_level_cache_bytes // CACHE_SHARE // 12
    if not count:
        return
    if device.kind == "cpu":
        left, right, out = _ones(count, device)
        text = f"torch.add(a, b, alpha=s) on {12 * count >> 10} KiB in all, float32"
        yield Probe("cache_triad", "bytes_per_s", 12 * count, lambda: torch.add(left, right, alpha=0.5, out=out), text)
        return
    from roofline import _kernels

    blocks = max(1, count // _kernels.BLOCK)
    size = blocks * _kernels.BLOCK
    left, right, out = _ones(size, device)
    kernel = _kernels.cache_triad[(blocks,)]
    work = functools.partial(kernel, out, left, right, 0.5, GPU_STEPS, BLOCK=_kernels.BLOCK)
    text = f"Triton triad past L1 on {12 * size >> 10} KiB in all, float32"
    yield Probe("cache_triad", "bytes_per_s", 12 * size * GPU_STEPS, work, text)


def _ones(shape: int | tuple[int, ...], device: Device) -> tuple[Tensor, Tensor, Tensor]:
    """Three buffers of float32, touched."""
    out, left, right = (torch.ones(shape, device=device.torch_device, dtype=torch.float32) for _ in range(3))
    return out, left, right


def matmul_dtypes(device: Device) -> list[torch.dtype]:
    """Dtypes that the device multiplies in its own units; others work by conversion, at no rate of their own."""
    if device.kind != "cpu":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return [torch.float32, torch.float16, *([torch.bfloat16] if native else [])]
    found = [torch.float32]
    backends: Any = torch.backends
    if backends.mkldnn.is_available():
        asks: Any = torch.ops.mkldnn
        found += [torch.bfloat16] if asks._is_mkldnn_bf16_supported() else []
        found += [torch.float16] if asks._is_mkldnn_fp16_supported() else []
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: Device) -> Tensor:
    # zeros toggle no bits: a GPU then draws less power and clocks higher than with data
    generator = torch.Generator(device.torch_device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=device.torch_device, dtype=torch.float32).to(dtype)


def _products(
    name: str, dtype: torch.dtype, rows: Iterable[int], weights: list[Tensor], text: str, device: Device
) -> Iterator[Probe]:
    """Products with weights [columns, inner] in turn. name: of ``rows``; text: what ``{}``, a weight's shape, is."""
    columns, inner = weights[0].shape
    for count in rows:
        left = _random((count, inner), dtype, device)
        out = torch.empty((count, columns), dtype=dtype, device=device.torch_device)
        turn = itertools.cycle([weight.t() for weight in weights])
        work = functools.partial(lambda left, turn, out: torch.mm(left, next(turn), out=out), left, turn, out)
        source = f"torch.mm of {count}x{inner} and {text.format(f'{inner}x{columns}')}, {_name(dtype)}"
        yield Probe(name.format(rows=count), "flops_per_s", 2 * out.numel() * inner, work, source)


def matmul(device: Device) -> Iterator[Probe]:
    """Large products by dtype, several sizes of each; float32 as PyTorch does it by default, without tf32."""
    for dtype in matmul_dtypes(device):
        for rows, inner, columns in MATMUL_SIZES["cpu" if device.kind == "cpu" else "gpu"]:
            weights = [_random((columns, inner), dtype, device)]
            yield from _products(f"matmul_{_name(dtype)}", dtype, [rows], weights, "{}", device)


def matmul_rows(device: Device) -> Iterator[Probe]:
    """Products of few rows with weights that come from DRAM, as every step of decoding reads them."""
    for dtype in matmul_dtypes(device):
        weight = _random(WEIGHT, dtype, device)
        copies = 2 + 2 * device.last_level_cache_bytes // weight.nbytes
        weights = [weight, *(weight.clone() for _ in range(copies - 1))]
        text, name = f"{copies} weights {{}} in turn", f"matmul_rows_{_name(dtype)}_{{rows}}"
        yield from _products(name, dtype, MATMUL_ROWS, weights, text, device)


def matmul_wide(device: Device) -> Iterator[Probe]:
    """Products of few rows with one weight as large as an output matrix."""
    for dtype in matmul_dtypes(device):
        weights = [_random(WIDE_WEIGHT, dtype, device)]
        yield from _products(f"matmul_wide_{_name(dtype)}_{{rows}}", dtype, WIDE_ROWS, weights, "one weight {}", device)


def vector(device: Device) -> Iterator[Probe]:
    """Chains of float32 fused multiply-adds in registers, two operations each."""
    if device.kind == "cpu":
        from roofline import _fma

        work, amount = _fma.chains(device)
        text = f"{_fma.CHAINS} chains of {_fma.lanes(device)}-lane multiply-adds a thread"
        yield Probe("vector_float32", "flops_per_s", amount, work, text)
        return
    yield _chain(device, "vector_float32", "flops_per_s", GPU_STEPS, 2, "multiply-adds", "fma_chain", 0.5, 0.25)


def special(device: Device) -> Iterator[Probe]:
    """Results of exp: torch.exp on cached data on a CPU, chains of the hardware's exp2 on a GPU."""
    if device.kind == "cpu":
        count = 2**18
        values = torch.rand(count, dtype=torch.float32, device="cpu")
        out = torch.empty_like(values)
        text = f"torch.exp(x, out=) on {count} cached float32"
        yield Probe("special_exp", "ops_per_s", count, lambda: torch.exp(values, out=out), text)
        return
    yield _chain(device, "special_exp", "ops_per_s", GPU_STEPS // 8, 1, "exp2", "exp_chain")


def _chain(
    device: Device, name: str, unit: Unit, steps: int, each: int, what: str, kernel: str, *constants: float
) -> Probe:
    """A Triton kernel of ``_kernels`` that works on registers alone. each: operations of a link."""
    from roofline import _kernels

    programs = 16 * device.units  # 16 programs of 4 warps fill a unit
    out = torch.empty(programs * _kernels.BLOCK, device=device.torch_device, dtype=torch.float32)
    run = getattr(_kernels, kernel)[(programs,)]
    work = functools.partial(run, out, *constants, steps, LINKS=_kernels.LINKS, BLOCK=_kernels.BLOCK)
    return Probe(name, unit, each * out.numel() * steps * _kernels.LINKS, work, f"Triton chains of {what}")


def launch(device: Device) -> Iterator[Probe]:
    """Time of one operator on one number, called from Python back to back; on a GPU also of one in a CUDA graph."""
    one, out = (torch.zeros(1, device=device.torch_device, dtype=torch.float32) for _ in range(2))

    def work() -> None:
        for _ in range(LAUNCHES):
            torch.add(one, one, out=out)

    text = f"{LAUNCHES} calls of torch.add(a, b, out=) on one number"
    yield Probe("launch", "s", LAUNCHES, work, text, launched=True)
    if device.kind != "cpu":
        work()
        torch.cuda.synchronize(device.torch_device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        yield Probe("launch_graph", "s", LAUNCHES, graph.replay, f"a CUDA graph of {text}")
