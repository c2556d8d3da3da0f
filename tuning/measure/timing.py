"""Times calls on a device: cold caches or warm, one sample at a time so that calls can be interleaved.

Cold: inputs are taken in turn from several copies whose bytes exceed twice the last-level cache. The turn is that of
the copies, not of a sampler: kernels that alternate would otherwise find cached what the one before them had read.
Outputs go where the allocator puts them, as in use: often to memory that was written a call ago.

CPU: wall clock; calls under 100 us are taken several to a sample, because the clock and Python cost what they do.
GPU: events, after a sweep of the last-level cache that also hides what launching costs. It ends with reads: lines that
a write leaves are written back while the next kernel is timed. Calls whose kernels take less than 64 us are captured in
a CUDA graph of several, on different inputs and outputs, and divided.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Inputs
from griffin_kernels.device import Device
from roofline.probes import seconds_of

GRAPH_BELOW_S = 64e-6
"""Calls shorter than this are timed several to a graph."""

GRAPH_S = 512e-6
"""What a graph of several calls should take, as far as there are inputs."""

CAPTURE_BELOW_S = 1e-3
"""Calls shorter than this, launches included, are captured: what remains are their kernels."""

BATCH_S = 100e-6
"""What a sample should take on a CPU, at least."""

LONG_S = 10e-3
"""A CPU call that takes this long the first time is one to a sample: warming up is seldom more of it than that."""

MOST_CALLS = 32
"""Calls in one sample, at most."""

MOST_COPIES = {"cpu": 1024, "cuda": MOST_CALLS, "hip": MOST_CALLS}
"""A GPU's cache is swept before every sample, so it needs as many copies as a graph has calls and no more."""

LEAST_SWEEP_BYTES = {"cuda": 64 * 2**20, "hip": 512 * 2**20}
"""Bytes that leave nothing in a cache. AMD's Infinity Cache (256 MiB on MI300X, CDNA 3 white paper) is not in the
cache size that the driver reports, which is that of L2."""

Sampler = Callable[[], float]
"""One sample: seconds that one call took."""


class Rotation(list[Any]):
    """Copies of the same argument that all samplers take in one turn."""

    def __init__(self, copies: Sequence[Any]) -> None:
        super().__init__(copies)
        self._turn = itertools.cycle(copies)

    def take(self, count: int = 1) -> list[Any]:
        """The next ``count`` copies."""
        return list(itertools.islice(self._turn, count))


def bytes_of(inputs: Inputs) -> int:
    """Bytes of all tensors among the inputs."""
    return sum(v.numel() * v.element_size() for v in inputs.values() if isinstance(v, Tensor))


def cold_bytes(device: Device) -> int:
    """Bytes to touch so that nothing touched before is in a cache any more."""
    return max(2 * device.last_level_cache_bytes, LEAST_SWEEP_BYTES.get(device.kind, 0))


def copies(inputs: Inputs, device: Device, call: Callable[..., Any] = dict) -> Rotation:
    """``call`` of the inputs and of as many clones as exceed twice the last-level cache, or of ``MOST_COPIES``."""
    wanted = -(-cold_bytes(device) // max(1, bytes_of(inputs)))
    count = min(MOST_COPIES.get(device.kind, MOST_CALLS), max(1, wanted))
    # with the same strides
    clones = ({k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()} for _ in range(count - 1))
    return Rotation([call(**inputs), *(call(**each) for each in clones)])


def sampler(run: Callable[..., Any], inputs: Sequence[Any], device: Device) -> Sampler:
    """A function that times one call of ``run(inputs)`` with cold caches, after warm-up calls."""
    rotation = inputs if isinstance(inputs, Rotation) else Rotation(inputs)
    return _sampler(run, rotation.take, device, functools.partial(_sweep, device))


def warm_sampler(run: Callable[..., Any], inputs: Sequence[Any], device: Device) -> Sampler:
    """As ``sampler``, with the first inputs in every call. Caches are warm where its samples follow each other."""
    first = inputs[0]
    # a GPU hides launching by an untimed call
    return _sampler(run, lambda count: [first] * count, device, lambda: run(first))


Take = Callable[[int], list[Any]]
"""Gives as many inputs as it is asked for."""


def _cpu_sampler(run: Callable[..., Any], take: Take, device: Device) -> Sampler:
    outputs: list[Any] = []

    def sample(count: int) -> float:
        given = take(count)

        def calls() -> None:
            # kept, so that the outputs are given up outside what is timed
            for each in given:
                outputs.append(run(each))

        seconds = seconds_of(calls, device) / count
        outputs.clear()
        return seconds

    if sample(1) >= LONG_S:
        return functools.partial(sample, 1)
    second = sample(1)
    count = 1 if second >= BATCH_S else _calls(BATCH_S, min(second, sample(1)))
    return functools.partial(sample, count)


def _calls(wanted_s: float, call_s: float) -> int:
    """How many calls make up a sample of ``wanted_s``."""
    return min(MOST_CALLS, max(1, math.ceil(wanted_s / max(call_s, 1e-9))))


def _sampler(run: Callable[..., Any], take: Take, device: Device, before: Callable[[], object]) -> Sampler:
    """before: a GPU's work ahead of every sample."""
    if device.kind == "cpu":
        return _cpu_sampler(run, take, device)
    where = device.torch_device

    def timed(work: Callable[[], object], calls: int = 1) -> float:
        with torch.cuda.device(where):
            before()
            return seconds_of(work, device) / calls

    def eager() -> float:
        return timed(functools.partial(run, take(1)[0]))

    with torch.cuda.device(where):
        # what a capture must not see happens in these: compiling, loading, allocating work space
        stream: Any = torch.cuda.Stream  # torch has no types for it
        aside = stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for given in take(2):
                run(given)
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
    if min(eager() for _ in range(3)) >= CAPTURE_BELOW_S:
        return eager
    one = _capture(run, take(1), where)
    if one is None:
        return eager
    call_s = min(timed(*one) for _ in range(3))
    if call_s >= GRAPH_BELOW_S:
        return functools.partial(timed, *one)
    several = _capture(run, _different(take(_calls(GRAPH_S, call_s))), where)
    if several is None:
        return functools.partial(timed, *one)
    replay, count = several
    return functools.partial(timed, replay, count)


def _different(given: list[Any]) -> list[Any]:
    """Inputs up to the first that comes again; those of a warm sampler are all the same, and stay."""
    if all(each is given[0] for each in given):
        return given
    again = next((i for i, each in enumerate(given) if any(each is other for other in given[:i])), len(given))
    return given[:again]


def _capture(run: Callable[..., Any], given: list[Any], where: torch.device) -> tuple[Callable[[], object], int] | None:
    """(replay, calls) of a CUDA graph; None where the kernel asks the device something meanwhile, which a graph cannot.

    Such a kernel is timed with its launches and its wait: it cannot be had without. The outputs are kept until all are
    captured, or every call would write the same memory, of which a cache holds back what DRAM should have had. The
    inputs are held as long as the graph, which only knows addresses.
    """
    graph, outputs = torch.cuda.CUDAGraph(), []
    with torch.cuda.device(where):
        try:
            with torch.cuda.graph(graph):
                for each in given:
                    outputs.append(run(each))
        except RuntimeError as error:
            if "captur" not in str(error).lower():
                raise
            torch.cuda.synchronize()
            return None
    return lambda held=given: graph.replay(), len(given)


@functools.cache
def _sweepers(where: torch.device, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(buffer that is written, view that is read, place of its sum) of a sweep."""
    written, read = (torch.zeros(size // 4, dtype=torch.float32, device=where) for _ in range(2))
    return written, read, torch.zeros((), dtype=torch.float32, device=where)


def _sweep(device: Device) -> None:
    """Fill the last-level cache of a GPU with clean lines of a buffer that nothing else uses."""
    written, read, total = _sweepers(device.torch_device, cold_bytes(device))
    written.zero_()
    torch.sum(read, 0, out=total)
