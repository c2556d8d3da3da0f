"""rg_lru on the CPU against its gate products alone, the published code of transformers, and the other variants."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import griffin_kernels
from griffin_kernels import RGLRUWeights, catalog, device
from griffin_kernels.contract import Case, Inputs
from griffin_kernels.ops.rg_lru.cost import make_case
from tests.benchmarks._compare import race, show

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
OPS = pytest.mark.parametrize("op_name", ["rg_lru", "rg_lru_bwd"])
TIME, WIDTH, BLOCKS = 2048, 2560, 10
PRODUCTS_TARGET = 1.35
"""Times of the two gate products alone, as fast as PyTorch does them; float32, B=1, T=2048, D=2560, 10 blocks."""
GRADIENT_TARGET = 1.35
"""The same for the gradient and the six products that it needs."""
PUBLISHED_TARGET = 3.0
"""Times that transformers' RecurrentGemmaRglru takes of ours: forward, and forward and backward by its autograd."""


def forward_inputs(case: Case) -> Inputs:
    return catalog.op("rg_lru").make_inputs(case, torch.device("cpu"), 0)


def backward_inputs(case: Case) -> Inputs:
    """As the op's own, with the output by a variant: the reference over time is slow."""
    inputs = forward_inputs(case)
    variant = catalog.variant("rg_lru/eager.unfused")
    y, _ = variant.on(inputs, variant.config())
    optional = {name: inputs.pop(name) for name in ("h0", "segment_pos", "cu_seqlens")}
    return {"dy": torch.randn_like(y), "dh_last": None, **inputs, "y": y, **optional}


def callers(case: Case, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Every variant that accepts the case, the one that is run where nothing is tuned first."""
    variants = [v for v in catalog.variants(case.op).values() if v.reject(case, device.cpu(), v.config()) is None]
    variants.sort(key=lambda v: -v.rank(case, device.cpu()))
    return {v.name: lambda v=v: v.on(inputs, v.config()) for v in variants}  # type: ignore[misc]


def products(x: Tensor, first: Tensor, second: Tensor) -> dict[str, Callable[[], object]]:
    """Both gates' products of x [1,T,D] by [H,n,n] in every layout that PyTorch takes, into memory touched before."""
    blocks, n, _ = first.shape
    views = {"x in place": x.view(-1, blocks, n).transpose(0, 1)}  # [H, T, n]
    views["x by blocks"] = views["x in place"].contiguous()
    both = torch.cat([first, second], dim=2)
    apart, joined = (torch.empty(blocks, x.shape[1], width, dtype=x.dtype) for width in (n, 2 * n))
    other = torch.empty_like(apart)
    calls: dict[str, Callable[[], object]] = {}
    for name, view in views.items():
        calls[f"bmm twice, {name}"] = lambda view=view: (  # type: ignore[misc]
            torch.bmm(view, first, out=apart),
            torch.bmm(view, second, out=other),
        )
        calls[f"bmm of both, {name}"] = lambda view=view: torch.bmm(view, both, out=joined)  # type: ignore[misc]
        calls[f"mm by block, {name}"] = lambda view=view: [  # type: ignore[misc]
            torch.mm(view[h], both[h], out=joined[h]) for h in range(blocks)
        ]
    return calls


@DTYPES
def test_forward_against_its_gate_products(dtype):
    case = make_case(1, TIME, WIDTH, BLOCKS, dtype)
    inputs = forward_inputs(case)
    yardsticks = products(inputs["x"], inputs["input_gate_weight"], inputs["recurrence_gate_weight"])
    calls = callers(case, inputs)
    rows = race(yardsticks | {"numba.fused": calls["numba.fused"]}, rounds=21)
    show(f"rg_lru {case.key}", rows)
    fastest = min(rows[name].median_ms for name in yardsticks)
    print(f"  numba.fused takes {rows['numba.fused'].median_ms / fastest:.2f} times the fastest products")
    if dtype == "float32":
        assert rows["numba.fused"].median_ms <= PRODUCTS_TARGET * fastest


@DTYPES
def test_backward_against_its_six_products(dtype):
    case = make_case(1, TIME, WIDTH, BLOCKS, dtype, op="rg_lru_bwd")
    inputs = backward_inputs(case)
    first, second = inputs["input_gate_weight"], inputs["recurrence_gate_weight"]
    thrice = {
        name: lambda call=call: [call() for _ in range(3)] and None
        for name, call in products(inputs["x"], first, second).items()
    }
    rows = race(thrice | {"numba.fused": callers(case, inputs)["numba.fused"]}, rounds=9)
    show(f"rg_lru_bwd {case.key}", rows)
    fastest = min(rows[name].median_ms for name in thrice)
    print(f"  numba.fused takes {rows['numba.fused'].median_ms / fastest:.2f} times the fastest products, thrice")
    if dtype == "float32":
        assert rows["numba.fused"].median_ms <= GRADIENT_TARGET * fastest


def published() -> Any:
    """transformers' module at the size of RecurrentGemma-2B, its parameters as the package's cases draw them."""
    transformers: Any = pytest.importorskip("transformers")
    theirs: Any = importlib.import_module("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    sizes = {"hidden_size": WIDTH, "lru_width": WIDTH, "num_attention_heads": BLOCKS, "head_dim": WIDTH // BLOCKS}
    few = {"num_hidden_layers": 3, "vocab_size": 10, "intermediate_size": 8}
    return theirs.RecurrentGemmaRglru(transformers.RecurrentGemmaConfig(**sizes, **few))


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward_and_backward"])
def test_against_transformers(training):
    module = published()
    inputs = forward_inputs(make_case(1, TIME, WIDTH, BLOCKS))
    weights = RGLRUWeights(
        module.recurrent_param,
        module.input_gate_weight,
        module.recurrent_gate_weight,
        module.input_gate_bias,
        module.recurrent_gate_bias,
    )
    names = RGLRUWeights._fields
    with torch.no_grad():
        for name, parameter in zip(names, weights, strict=True):
            parameter.copy_(inputs[name])
    positions = torch.arange(TIME)[None]
    x, upstream = inputs["x"], torch.randn(1, TIME, WIDTH)

    def run(layer: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        if not training:
            with torch.no_grad():
                return (layer(x),)
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        return y, *torch.autograd.grad(y, [leaf, *weights], upstream)

    def theirs(x: Tensor) -> Tensor:
        module.recurrent_states = None
        result: Tensor = module(x, positions)
        return result

    def ours(x: Tensor) -> Tensor:
        return griffin_kernels.rg_lru(x, weights, segment_pos=positions)[0]

    for mine, other in zip(run(ours), run(theirs), strict=True):
        # transformers computes 1 - a^2 by subtraction, and a is near 1 in many channels
        assert (mine - other).norm() <= 1e-3 * other.norm()
    calls = {"rg_lru": lambda: run(ours), "transformers": lambda: run(theirs)}
    # its autograd keeps a gradient of the whole sequence for every step: some twenty seconds a round
    rows = race(calls, rounds=3 if training else 9, warmup=0 if training else 1)
    show(f"B1-T{TIME}-D{WIDTH}-H{BLOCKS}-float32, {'forward and backward' if training else 'forward'}", rows)
    assert rows["transformers"].ratio >= PUBLISHED_TARGET


@OPS
@DTYPES
def test_against_the_other_variants(op_name, dtype):
    case = make_case(1, TIME, WIDTH, BLOCKS, dtype, op=op_name)
    inputs = forward_inputs(case) if op_name == "rg_lru" else backward_inputs(case)
    calls = callers(case, inputs)
    rows = race(calls, rounds=5, warmup=1)
    show(f"{op_name} {case.key}", rows)
    assert next(iter(calls)) == "numba.fused"
    assert all(row.ratio >= 1.0 for row in rows.values())


@pytest.mark.parametrize("batch", [1, 16])
def test_one_decoded_token(batch):
    case = make_case(batch, 1, WIDTH, BLOCKS, flags=("segmented",), data=("h0",))
    rows = race(callers(case, forward_inputs(case)), rounds=21)
    show(f"rg_lru {case.key}", rows)
    assert rows["numba.fused"].median_ms <= rows["eager.unfused"].median_ms
