"""What runs untuned is what the static model would choose: ranks state in a line what the model derives from code.

Only default configurations are compared, as these are what ``rank`` decides between; their machine code is recorded.
Where the best takes less than 10 us most of the time is that of starting it, of which the model tells nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest

from griffin_kernels import catalog, datasheet
from griffin_kernels.contract import BenchCase, Variant
from griffin_kernels.device import Device
from tuning.predict import time_model
from tuning.predict.launch_work import Work
from tuning.predict.target_space import EstimatedCode, described
from tuning.static.defaults import gpus
from tuning.static.describe import device_of
from tuning.static.targets import CHECKED

SHORT_S = 10e-6

ALL = os.environ.get("GRIFFIN_TEST_TARGETS") == "all"
TARGETS = CHECKED if ALL else ("sm_90", "gfx942")
LONGEST = 2**63 if ALL else 2048
"""Steps of the cases looked at."""
CLOSE = 1.17
"""Predicted time of the default over that of the best: what the model's own error hides, by `griffin roofline validate`
for nine of ten published kernels below 50 us."""


@functools.cache
def steps(key: str, case_key: str, arch: str) -> list[Work]:
    variant = catalog.variant(key)
    op = catalog.op(variant.op)
    case = next(case for case in op.cases_tagged("bench") if case.key == case_key)
    return described(variant, op, case, variant.config(), arch)


def able(case: BenchCase, device: Device) -> list[Variant]:
    return [
        variant
        for variant in catalog.variants(case.op).values()
        if variant.launches is not None and not variant.baseline
        if variant.reject(case, device, variant.config()) is None
    ]


def ratios(op: str, sku: str) -> Iterator[tuple[str, float]]:
    """(case, default and best; predicted time of the default over the best's) of every case on a GPU."""
    where, device = time_model.machine(sku), device_of(datasheet.datasheet(sku))
    code = EstimatedCode(where)
    for case in catalog.op(op).cases_tagged("bench"):
        looked_at = case.where != "cpu" and case.dims.get("T", 0) <= LONGEST
        variants = able(case, device) if looked_at else []
        if len(variants) < 2:
            continue
        seconds = {
            variant.name: time_model.predict(steps(variant.key, case.key, where.arch), code, where, case.dtype).seconds
            for variant in variants
        }
        default = max(variants, key=lambda variant: (variant.rank(case, device), variant.name)).name
        best = min(seconds, key=lambda name: seconds[name])
        if seconds[best] >= SHORT_S:
            yield f"{sku} {case.key} {default}, best {best}", seconds[default] / seconds[best]


@pytest.mark.parametrize("op", [op.name for op in catalog.ops().values()])
def test_the_default_is_the_static_models_choice(op):
    found = [pair for sku in gpus(TARGETS) for pair in ratios(op, sku)]
    far = [(what, ratio) for what, ratio in found if ratio > CLOSE]
    assert len(far) <= 0.06 * len(found), far
    assert max((ratio for _, ratio in far), default=1.0) < 1.5, far
