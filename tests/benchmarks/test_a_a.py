"""Races of real kernels whose difference is known: none, or a twentieth less work.

``pytest tests/benchmarks/test_a_a.py -s``: two minutes. On a machine that others use as well, differences get
lost in the noise (and are then ties), but none may be made up.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from griffin_kernels import catalog, device
from roofline import stats
from roofline.ceilings import Ceilings
from tuning.decide import verdict
from tuning.measure import rounds, timing
from tuning.plan.budget import BUDGETS
from tuning.record.journal_records import Candidate, Finalist

RACES = 50
BUDGET = BUDGETS["default"]
HERE = device.cpu()


@numba.njit(cache=False, nogil=True)
def _spin(steps):
    state = np.uint64(1)
    for _ in range(steps):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
    return state


def spin(share, **inputs):
    """A chain of multiplications that nothing shortens, in registers: 2 ms."""
    return _spin(int(share * 1_200_000))


def stream(share, x, out):
    """A copy that reads and writes DRAM, 32 MiB in all, into memory that is there: no allocator's luck is in it."""
    length = int(share * len(x))
    return out[:length].copy_(x[:length])


KERNELS = {
    "registers": (spin, lambda: {}),
    "DRAM": (stream, lambda: {"x": torch.ones(2**22), "out": torch.ones(2**22)}),
}


def tuned(kernel, make, share, number):
    """The variant that wins a race of a kernel, the default, against ``share`` of its work."""
    op = catalog.op("linear_scan")
    case = op.cases_tagged("bench")[number % len(op.cases_tagged("bench"))]
    rotation = timing.copies(make(), HERE)
    field, samplers = [], []
    for name, part in (("whole", 1.0), ("part", share)):
        sample = timing.sampler(lambda given, kernel=kernel, part=part: kernel(part, **given), rotation, HERE)
        record = Candidate(
            key=name, op=op.name, variant=f"eager.{name}", case=case.plain(), config={}, baseline=False,
            is_default=name == "whole", status="ok", samples_s=[sample() for _ in range(5)],
        )  # fmt: skip
        field.append(Finalist(record, place=len(field)))
        samplers.append(sample)
    heat = rounds.run(op, case, field, samplers, BUDGET)
    ratio = stats.median([part / whole for whole, part in heat.rounds_s])
    return verdict.decide(op, field, heat, Ceilings("none known", ()), 2), len(heat.rounds_s), ratio


@pytest.mark.parametrize("share", [1.0, 0.95], ids=["equal", "a twentieth less"])
@pytest.mark.parametrize("name", list(KERNELS))
def test_fifty_races(name, share):
    kernel, make = KERNELS[name]
    floor = rounds.machine_noise(HERE)
    found = [tuned(kernel, make, share, number) for number in range(RACES)]
    declared = sum(result.winner_key == "part" for result, _, _ in found)
    floors = [result.entry.noise_floor for result, _, _ in found]
    usual = stats.median([count for _, count, _ in found])
    ratio = stats.median([ratio for _, _, ratio in found])
    print(
        f"\n{name}, {share:.0%} of the work: {ratio:.1%} of the time, replaced in {declared} of {RACES},"
        f" {usual:.0f} rounds, noise floors {min(floors):.1%} to {max(floors):.1%}, of the machine {floor.floor:.1%}"
    )
    assert declared <= 3 if share == 1.0 else declared >= 45
