"""linear_scan on the CPU against element-wise kernels of the same traffic, and against the catalogue's baselines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, memory
from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.ops.linear_scan.cost import make_case
from griffin_kernels.ops.linear_scan.op import Call
from tests.benchmarks._compare import race, show
from tests.benchmarks._triad import triad

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
FORWARD_TARGET = 1.2
"""Times of torch.add, which moves as many bytes and allocates its output; float32, B=1, T=4096, D=2560."""
BACKWARD_TARGET = 1.4
"""Times of a triad that moves as many bytes."""
BASELINE_TARGET = 4.0
"""Times that every baseline takes of ours; float32."""
DISPATCH_TARGET_US = 15.0
"""Microseconds that a call of the public function may cost over the variant's own, without gradients."""


def caller(variant: Variant, inputs: Inputs, config: object = None) -> Callable[[], object]:
    config = variant.config() if config is None else config
    return lambda: variant.on(inputs, config)


def bench_inputs(case: Case) -> Inputs:
    """As the op's own, without its reference over time, which is slow."""
    generator = torch.Generator().manual_seed(0)
    shape = (case["B"], case["T"], case["D"])
    a = (torch.rand(shape, generator=generator) * 0.099 + 0.9).to(case.torch_dtype)
    x, h = (torch.randn(shape, generator=generator).to(case.torch_dtype) for _ in range(2))
    common = {"h0": None, "reset": None, "cu_seqlens": None, "reverse": False}
    if case.op == "linear_scan":
        return {"x": x, "a": a, **common}
    return {"dh": x, "dh_last": None, "a": a, "h": h, **common}


def accepted(case: Case, baseline: bool) -> dict[str, Variant]:
    """Variants of the case's op that run here: the baselines, or the native kernels."""
    return {
        v.name: v
        for v in catalog.variants(case.op).values()
        if (v.baseline if baseline else v.backend == "numba") and v.reject(case, device.cpu(), v.config()) is None
    }


@DTYPES
def test_forward_against_torch_add(dtype):
    case = make_case(1, 4096, 2560, dtype)
    inputs = bench_inputs(case)
    x, a = inputs["x"], inputs["a"]
    calls: dict[str, Callable[[], object]] = {
        "torch.add": lambda: torch.add(a, x),
        "torch.add into pooled memory": lambda: torch.add(a, x, out=memory.empty(x.shape, x.dtype)),
    }
    calls |= {name: caller(variant, inputs) for name, variant in accepted(case, baseline=False).items()}
    rows = race(calls)
    show(f"linear_scan {case.key}", rows)
    if dtype == "float32":
        assert rows["numba.sequential"].ratio <= FORWARD_TARGET


@DTYPES
def test_backward_against_triad(dtype):
    case = make_case(1, 4096, 2560, dtype, op="linear_scan_bwd")
    inputs = bench_inputs(case)
    streams = inputs["dh"], inputs["a"], inputs["h"]
    calls: dict[str, Callable[[], object]] = {
        "triad": lambda: triad(*streams),
        "triad into pooled memory": lambda: triad(*streams, empty=memory.empty),
    }
    calls |= {name: caller(variant, inputs) for name, variant in accepted(case, baseline=False).items()}
    rows = race(calls)
    show(f"linear_scan_bwd {case.key}", rows)
    if dtype == "float32":
        assert rows["numba.sequential"].ratio <= BACKWARD_TARGET


@pytest.mark.parametrize("op_name", ["linear_scan", "linear_scan_bwd"])
@DTYPES
def test_against_the_baselines(op_name, dtype):
    """What dispatch chooses (tuned, if this machine is) against everything a user would otherwise run."""
    case = make_case(1, 4096, 2560, dtype, op=op_name)
    inputs = bench_inputs(case)
    choice = dispatch.select(op_name, case, device.cpu())
    calls = {f"{choice.variant.name} ({choice.origin})": caller(choice.variant, inputs, choice.config)}
    baselines = accepted(case, baseline=True)
    rows = race(calls | {n: caller(v, inputs) for n, v in baselines.items()}, rounds=7, warmup=1)
    show(f"{op_name} {case.key}", rows)
    if dtype == "float32":
        assert all(rows[name].ratio >= BASELINE_TARGET for name in baselines)


@pytest.mark.parametrize("width", [64, 256])
def test_chunked_where_channels_are_few(width):
    case = make_case(1, 2**16, width)
    inputs = bench_inputs(case)
    native = accepted(case, baseline=False)
    sequential, chunked = native["numba.sequential"], native["numba.chunked"]
    calls = {"sequential": caller(sequential, inputs)}
    for chunk in (64, 256, 1024):
        calls[f"chunked {chunk}"] = caller(chunked, inputs, chunked.config(chunk=chunk))
    show(f"linear_scan {case.key}", race(calls))


def test_scans_between_torch_operations():
    """Alternating with torch must not cost more than both alone: they share one pool of threads."""
    # large enough for threads, small enough that malloc keeps the memory of the outputs
    inputs = bench_inputs(make_case(1, 128, 2560))
    scan = caller(catalog.variant("linear_scan/numba.sequential"), inputs)
    x, a = inputs["x"], inputs["a"]

    def repeat(*calls: Callable[[], object]) -> Callable[[], None]:
        return lambda: [call() for _ in range(50) for call in calls] and None

    rows = race(
        {"add": repeat(lambda: torch.add(a, x)), "scan": repeat(scan), "both": repeat(lambda: torch.add(a, x), scan)}
    )
    show("50 calls, B1-T128-D2560-float32", rows)
    # the fastest rounds: threads that wait for each other suffer most from whatever else runs
    assert rows["both"].fastest_ms <= 1.5 * (rows["add"].fastest_ms + rows["scan"].fastest_ms)


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_cost_of_dispatch():
    """The public function against the variant that it ends in, on a problem that takes no time."""
    case = make_case(1, 4, 64)
    inputs = bench_inputs(case)
    x, a = inputs["x"], inputs["a"]
    choice = dispatch.select("linear_scan", case, device.cpu())
    leaf = x.clone().requires_grad_()

    def thousand(call: Callable[[], object]) -> Callable[[], None]:
        return lambda: [call() for _ in range(1000)] and None

    rows = race(
        {
            "variant": thousand(caller(choice.variant, inputs, choice.config)),
            "public": thousand(lambda: griffin_kernels.linear_scan(x, a)),
            "public, recording a gradient": thousand(lambda: griffin_kernels.linear_scan(leaf, a)),
            "custom op": thousand(lambda: torch.ops.griffin_kernels.linear_scan(*Call(x, a))),
        }
    )
    show("1000 calls, B1-T4-D64: ms are us per call", rows)
    assert rows["public"].median_ms - rows["variant"].median_ms <= DISPATCH_TARGET_US
