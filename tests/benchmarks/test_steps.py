"""Decode steps on the CPU, by the public functions, against the compositions that they replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import griffin_kernels
from griffin_kernels import RGLRUWeights, catalog, device, dispatch
from griffin_kernels.contract import Inputs, Variant
from griffin_kernels.ops.recurrent_block_step.cost import make_case
from tests.benchmarks._compare import race, show

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

REPEATS, ROUNDS = 5, 21
"""Calls that are timed together, and how often."""
OP = "recurrent_block_step"
GATES = ("a_param", "input_gate_weight", "input_gate_bias", "recurrence_gate_weight", "recurrence_gate_bias")


def repeated(call: Callable[[], object]) -> Callable[[], None]:
    def many() -> None:
        for _ in range(REPEATS):
            call()

    return many


def public(given: Inputs) -> Callable[[], object]:
    weights = RGLRUWeights(**{name: given[name] for name in GATES})
    first: tuple[Any, ...] = tuple(given[name] for name in ("x", "y", "conv_weight", "conv_bias"))
    states = given["conv_state"], given["h"]
    return lambda: griffin_kernels.recurrent_block_step(*first, weights, *states, positions=given["positions"])


def variant(name: str, given: Inputs) -> Callable[[], object]:
    found = catalog.variant(f"{OP}/{name}")
    config = found.config()
    return lambda: found.on(given, config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(("width", "blocks"), [(2560, 10), (1024, 16)])
def test_recurrent_block_step_against_the_eager_composition(width, blocks, batch, dtype):
    """Faster than the composition, tuned or not. Beside it: the two gate products alone, and a read of the weights."""
    case = make_case(batch, width, blocks, 4, dtype, data=("positions",))
    given = catalog.op(OP).make_inputs(case, torch.device("cpu"), 0)
    given["positions"] += 7  # in the middle of a document
    weights = given["input_gate_weight"], given["recurrence_gate_weight"]
    left = given["x"].view(batch, blocks, -1).transpose(0, 1)
    choice = dispatch.select(OP, case, device.cpu())
    calls = {
        f"public, {choice.variant.name} ({choice.origin})": public(given),
        "eager.unfused": variant("eager.unfused", given),
        "numba.fused": variant("numba.fused", given),
        "two gate products": lambda: [torch.bmm(left, weight) for weight in weights],
        "a read of the weights": lambda: [weight.sum() for weight in weights],
    }
    rows = race({name: repeated(call) for name, call in calls.items()}, rounds=ROUNDS)
    show(f"{OP} {case.key}, {REPEATS} calls", rows)
    assert rows["eager.unfused"].ratio > 1.0


CASES = [
    (op, case)
    for op in ("temporal_conv1d_step", "rg_lru_step")
    for case in catalog.op(op).cases_tagged("bench")
    if case.where == "cpu"
]


@pytest.mark.parametrize(("op", "case"), CASES, ids=lambda value: getattr(value, "key", value))
def test_native_steps_against_their_eager_forms(op, case):
    """Each op alone, float32, at the batches of a decode step."""
    given = catalog.op(op).make_inputs(case, torch.device("cpu"), 0)

    def call(found: Variant) -> Callable[[], None]:
        config = found.config()
        return repeated(lambda: found.on(given, config))

    able = [v for v in catalog.variants(op).values() if v.reject(case, device.cpu(), v.config()) is None]
    able.sort(key=lambda v: v.backend != "numba")  # the native one is the yardstick
    rows = race({v.name: call(v) for v in able}, rounds=ROUNDS)
    show(f"{op} {case.key}, {REPEATS} calls", rows)
    assert all(rows[v.name].ratio > 1.0 for v in able if v.baseline)
