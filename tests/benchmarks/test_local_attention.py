"""local_attention on the CPU against what a user would otherwise run, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from griffin_kernels import catalog, device, dispatch
from griffin_kernels.contract import Case, Inputs, Variant, config_key
from griffin_kernels.ops import _native_amx
from griffin_kernels.ops.local_attention.cost import make_case
from tests.benchmarks._compare import Row, race, show

MASKED_TARGET = 2.0
"""Times of the best native variant that SDPA with a boolean window mask takes; float32, PUBLISHED."""
FLEX_TARGET = 1.0
"""Times of the best native variant that compiled flex_attention takes, likewise; of bfloat16 where both have AMX."""
BLOCKED_TARGET = 1.0
"""Times of the best native variant that the blocks of plain PyTorch take, forward and backward."""
PUBLISHED = (1, 4096, 10, 1, 256, 1024)

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def inputs_of(case: Case) -> Inputs:
    """As the op's own, without its reference over time, which is slow; the gradient's out and lse by our forward."""
    forward = make_case(*(case[n] for n in ("B", "T", "Hq", "Hkv", "d", "W")), case.dtype, case.flags, data=("lse",))
    op = catalog.op("local_attention")
    inputs = op.make_inputs(forward, torch.device("cpu"), 0)
    if case.op == op.name:
        return inputs | {"with_lse": False}
    variant = catalog.variant("local_attention/numba.blocked")
    out, lse = variant.on(inputs, variant.config())
    del inputs["with_lse"]
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return inputs | {"dout": dout, "out": out, "lse": lse, "dlse": None}


def caller(variant: Variant, inputs: Inputs, config: object) -> Callable[[], object]:
    return lambda: variant.on(inputs, config)


def against_all(case: Case, more: dict[str, Callable[[], object]] | None = None, rounds: int = 7) -> dict[str, Row]:
    """The best native variant, in the first row, against every other of the op, and as this machine is tuned."""
    inputs, here = inputs_of(case), device.cpu()
    accepted = [v for v in catalog.variants(case.op).values() if v.reject(case, here, v.config()) is None]
    accepted.sort(key=lambda variant: -variant.rank(case, here))
    calls = {variant.name: caller(variant, inputs, variant.config()) for variant in accepted}
    choice = dispatch.select(case.op, case, here)
    if choice.config != choice.variant.config():
        label = f"{choice.variant.name}, {config_key(choice.config)} ({choice.origin})"
        calls[label] = caller(choice.variant, inputs, choice.config)
    rows = race(calls | (more or {}), rounds=rounds, warmup=1)
    show(f"{case.op} {case.key}; dispatch takes {choice.variant.name} ({choice.origin})", rows)
    return rows


@DTYPES
def test_forward(dtype):
    case = make_case(*PUBLISHED, dtype)
    inputs = inputs_of(case)
    q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))

    def causal() -> object:
        """All keys before a query, whatever the window: not the same function, but what is there without a mask."""
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    rows = against_all(case, {"causal SDPA without the window": causal})
    if dtype == "float32":
        assert rows["eager.masked"].ratio >= MASKED_TARGET
    if dtype == "float32" or _native_amx.granted():
        assert rows["compiled.flex_attention"].ratio >= FLEX_TARGET
    if dtype == "float32":
        assert rows["eager.blocked"].ratio >= BLOCKED_TARGET


@DTYPES
def test_backward(dtype):
    """compiled.flex_attention has no gradient on a CPU."""
    rows = against_all(make_case(*PUBLISHED, dtype, op="local_attention_bwd"), rounds=5)
    if dtype == "float32":
        assert rows["eager.masked"].ratio >= MASKED_TARGET
        assert rows["eager.blocked"].ratio >= BLOCKED_TARGET


@pytest.mark.parametrize("sizes", [(1, 2048, 16, 1, 128, 1024), (2, 512, 8, 8, 64, 256), (1, 64, 10, 1, 256, 2048)])
def test_other_shapes(sizes):
    """Griffin 1.3B; a key head for every head; a short prompt."""
    for op in ("local_attention", "local_attention_bwd"):
        against_all(make_case(*sizes, op=op))


def test_documents():
    """Keys of other documents are not visited."""
    case = make_case(1, 4096, 10, 1, 256, 1024, flags=("segmented",))
    against_all(case, rounds=5)
