"""The A/A test of a machine: one kernel raced against itself, before anything is tuned."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch

from griffin_kernels.device import Device
from roofline import stats
from tuning.measure import conditions, timing
from tuning.record.journal_records import Noise

ROUNDS = 41
LEAST_ROUNDS = 7
SECONDS = 2.0
LEAST_BYTES = 16 * 2**20


def measure(device: Device, rounds: int = ROUNDS, seconds: float = SECONDS) -> Noise:
    """Race one memory-bound PyTorch kernel against itself: ``rounds`` rounds, fewer if ``seconds`` are over.

    The kernel adds two tensors into a third, each as large as the last-level cache, so that every call reads DRAM.
    """
    size = max(LEAST_BYTES, device.last_level_cache_bytes)
    left, right, out = (torch.ones(size // 4, device=device.torch_device, dtype=torch.float32) for _ in range(3))

    def add(_: None) -> None:
        torch.add(left, right, out=out)

    inputs = timing.Rotation([None])
    pair = [timing.sampler(add, inputs, device) for _ in range(2)]
    conditions.read(device)
    times = against_itself(pair, rounds, seconds)
    low, high, floor = stats.noise_floor(*times)
    return Noise(
        what=f"torch.add of float32 tensors of {size >> 20} MiB",
        seconds=stats.median(times[0]),
        rounds=len(times[0]),
        low=low,
        high=high,
        floor=floor,
        conditions=conditions.read(device),
    )


def against_itself(
    pair: list[timing.Sampler], rounds: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """Samples of two samplers in rounds of random order, at least ``LEAST_ROUNDS`` of them."""
    order = random.Random("A/A")
    times: tuple[list[float], list[float]] = [], []
    began = clock()
    while len(times[0]) < rounds and (len(times[0]) < LEAST_ROUNDS or clock() - began < seconds):
        for index in order.sample((0, 1), 2):
            times[index].append(pair[index]())
    return times
