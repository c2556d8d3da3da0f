"""Times calls on a device: cold caches, medians of many, one sample at a time so that calls can be interleaved.

CPU: wall clock of one call, inputs taken in turn from several copies whose bytes exceed twice the last-level cache.
GPU: events around one call over rotating inputs; calls under 64 us are captured in a CUDA graph of several and divided,
because launching costs more than they do.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Inputs
from griffin_kernels.device import Device
from roofline.probes import seconds_of

GRAPH_BELOW_S = 64e-6
MOST_COPIES = 16

Sampler = Callable[[], float]
"""One sample: seconds that one call took."""


def bytes_of(inputs: Inputs) -> int:
    """Bytes of all tensors among the inputs."""
    return sum(v.numel() * v.element_size() for v in inputs.values() if isinstance(v, Tensor))


def copies(inputs: Inputs, device: Device) -> list[Inputs]:
    """The inputs and as many clones as it takes to exceed twice the last-level cache."""
    wanted = -(-2 * device.last_level_cache_bytes // max(1, bytes_of(inputs)))
    count = min(MOST_COPIES, max(1, wanted))
    return [inputs, *({k: clone(v) for k, v in inputs.items()} for _ in range(count - 1))]


def clone(value: Any) -> Any:
    """A copy of a tensor with the same strides; anything else as it is."""
    return value.clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else value


def sampler(run: Callable[..., Any], inputs: list[Inputs], device: Device) -> Sampler:
    """A function that times one call of ``run(**inputs)``, after a warm-up call."""
    if device.kind == "cpu":
        return _cpu_sampler(run, inputs, device)
    return _gpu_sampler(run, inputs, device)


def _cpu_sampler(run: Callable[..., Any], inputs: list[Inputs], device: Device) -> Sampler:
    turn = itertools.cycle(inputs)
    run(**next(turn))
    # partial: the inputs are picked, and the outputs given up, outside what is timed
    return lambda: seconds_of(functools.partial(run, **next(turn)), device)


def _gpu_sampler(run: Callable[..., Any], inputs: list[Inputs], device: Device) -> Sampler:
    turn = itertools.cycle(inputs)
    for given in inputs[:2]:
        run(**given)
    torch.cuda.synchronize()

    if min(seconds_of(lambda: run(**next(turn)), device) for _ in range(3)) >= GRAPH_BELOW_S:
        return lambda: seconds_of(lambda: run(**next(turn)), device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for given in inputs:
            run(**given)
    return lambda: seconds_of(graph.replay, device) / len(inputs)
