"""temporal_conv1d on the CPU against torch's conv1d and against element-wise kernels of as much traffic or more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, memory
from griffin_kernels.contract import Case
from griffin_kernels.ops.temporal_conv1d.cost import make_case
from tests.benchmarks._compare import race, show

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
OPS = pytest.mark.parametrize("op_name", ["temporal_conv1d", "temporal_conv1d_bwd"])
FORWARD_TARGET = 1.0
"""Times of torch.add into memory that was touched before: two streams in and one out, which is one more than the
forward's; float32, B=1, T=4096, D=2560. Medians."""
BACKWARD_TARGET = 1.6
"""The same for the gradient, which moves as many bytes. Fastest rounds: its sums are a second piece of threaded work,
and on a busy machine each waits for a time slice."""
BASELINE_TARGET = 4.0
"""Times that torch's conv1d takes of ours."""
DECODE_TARGET = 3.0
"""The same for one decoded token."""


def callers(case: Case) -> dict[str, Callable[[], object]]:
    """Our kernel first, then every other variant that accepts the case."""
    inputs = catalog.op(case.op).make_inputs(case, torch.device("cpu"), 0)
    variants = [v for v in catalog.variants(case.op).values() if v.reject(case, device.cpu(), v.config()) is None]
    variants.sort(key=lambda v: v.backend != "numba")
    return {v.name: lambda v=v: v.on(inputs, v.config()) for v in variants}  # type: ignore[misc]


def repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    return lambda: [call() for _ in range(times)] and None


@OPS
@DTYPES
def test_against_the_bandwidth_of_torch_add(op_name, dtype):
    case = make_case(1, 4096, 2560, 4, dtype, op=op_name)
    p, q = (torch.randn(1, 4096, 2560).to(case.torch_dtype) for _ in range(2))
    pooled = "torch.add into pooled memory"
    calls: dict[str, Callable[[], object]] = {
        "torch.add": lambda: torch.add(p, q),
        pooled: lambda: torch.add(p, q, out=memory.empty(p.shape, p.dtype)),
    }
    rows = race(calls | {"numba.direct": callers(case)["numba.direct"]})
    show(case.key, rows)
    if dtype == "float32":
        ours, yardstick = rows["numba.direct"], rows[pooled]
        if op_name == "temporal_conv1d":
            assert ours.median_ms <= FORWARD_TARGET * yardstick.median_ms
        else:
            assert ours.fastest_ms <= BACKWARD_TARGET * yardstick.fastest_ms


@OPS
@DTYPES
def test_against_grouped_conv1d(op_name, dtype):
    case = make_case(1, 2048, 2560, 4, dtype, op=op_name)
    rows = race(callers(case), rounds=7, warmup=1)
    show(f"{op_name} {case.key}", rows)
    if dtype == "float32":
        assert rows["eager.grouped"].ratio >= BASELINE_TARGET


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
@pytest.mark.parametrize("batch", [1, 16])
def test_one_decoded_token(batch):
    case = make_case(batch, 1, 2560, 4, data=("state",))
    inputs = catalog.op(case.op).make_inputs(case, torch.device("cpu"), 0)
    calls = callers(case) | {"public": lambda: griffin_kernels.temporal_conv1d(**inputs)}
    rows = race({name: repeated(call, 100) for name, call in calls.items()}, rounds=7, warmup=1)
    show(f"100 calls, {case.key}", rows)
    assert rows["eager.grouped"].ratio >= DECODE_TARGET


def test_documents():
    """Steps near a boundary are done one by one: documents of 64 tokens against one document."""
    calls = {}
    for flags in ((), ("segmented",)):
        case = make_case(1, 4096, 2560, 4, flags=flags)
        inputs = catalog.op(case.op).make_inputs(case, torch.device("cpu"), 0)
        if flags:
            inputs["segment_pos"] = (torch.arange(4096) % 64)[None]
        variant = catalog.variant("temporal_conv1d/numba.direct")
        calls["documents" if flags else "one"] = lambda v=variant, i=inputs: v.on(i, v.config())
    rows = race(calls)
    show("B1-T4096-D2560-K4-float32, documents of 64 tokens", rows)
    assert rows["documents"].fastest_ms <= 2.0 * rows["one"].fastest_ms
