"""What the options of the ops cost on the CPU, against element-wise kernels of the same traffic and against each other.

Each ratio is to the first call of its table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from griffin_kernels import catalog, device, dispatch
from griffin_kernels.contract import BenchCase, Case
from griffin_kernels.ops import _native_amx
from griffin_kernels.ops.complex_scan.cost import make_case as complex_case
from griffin_kernels.ops.linear_scan.cost import make_case as scan_case
from tests.benchmarks._compare import race, show

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

TRAFFIC_TARGET = 1.2
"""Times of an element-wise kernel that moves as many bytes; float32."""
MATRIX_UNIT_TARGET = 0.6
"""Times of float32 that bfloat16 takes where products run on a matrix unit."""
VERIFY_TARGET = 2.0
"""Times of one decode step that the verification of four tokens takes, one sequence."""


def caller(variant: str, case: BenchCase) -> Callable[[], object]:
    found, op = catalog.variant(f"{case.op}/{variant}"), catalog.op(case.op)
    call, config = op.call(**op.make_inputs(case, torch.device("cpu"), 0)), found.config()
    return lambda: found.run(call, config)


def test_gates_that_do_not_change():
    """They are read once, so that 8 bytes move for an element in float32 and not 12."""
    sizes = (1, 2048, 2560)
    x, row = torch.randn(*sizes), torch.randn(2560)
    rows = race(
        {
            "torch.add of a row": lambda: torch.add(x, row),
            "constant": caller("numba.sequential", scan_case(*sizes, flags=("constant",))),
            "constant, log": caller("numba.sequential", scan_case(*sizes, flags=("log", "constant"))),
            "every step": caller("numba.sequential", scan_case(*sizes)),
        }
    )
    show("linear_scan B1-T2048-D2560-float32", rows)
    assert rows["constant"].ratio <= TRAFFIC_TARGET


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("suffix", ["", "_bwd"])
def test_forms_of_gates(suffix, dtype):
    op, sizes = f"linear_scan{suffix}", (1, 2048, 2560)
    forms = [(), ("log",), ("convex",), ("log", "convex"), ("a_prod",)] + [("wide",)] * (dtype == "bfloat16")
    if suffix:
        forms.remove(("a_prod",))
    calls = {
        ", ".join(form) or "plain": caller("numba.sequential", scan_case(*sizes, dtype, form, op=op)) for form in forms
    }
    show(f"{op} B1-T2048-D2560-{dtype}", race(calls))


def test_complex_numbers():
    case, pairs = complex_case(1, 2048, 1280), [torch.randn(1, 2048, 1280, 2) for _ in range(2)]
    rows = race({"torch.add": lambda: torch.add(*pairs), "complex_scan": caller("numba.sequential", case)})
    show(f"complex_scan {case.key}", rows)
    assert rows["complex_scan"].ratio <= TRAFFIC_TARGET


@pytest.mark.parametrize("op", ["rg_lru", "rg_lru_bwd", "recurrent_block", "recurrent_block_bwd"])
def test_bfloat16_on_the_matrix_unit(op):
    cases = [
        case for case in catalog.op(op).cases_tagged("bench")
        if case.where == "cpu" and not case.flags and (case["B"], case["T"], case["H"]) == (1, 2048, 10)
    ]  # fmt: skip
    rows = race({case.dtype: caller("numba.fused", case) for case in cases}, rounds=11)
    show(f"{op} B1-T2048-D2560", rows)
    if _native_amx.granted():
        assert rows["bfloat16"].ratio <= MATRIX_UNIT_TARGET


PAIRS = {
    "rg_lru": ("B1-D2560-H10-n256-P8-{}~slots", "B1-T4-D2560-H10-n256-P8-{}~every_token"),
    "recurrent_block": ("B1-D2560-K4-H10-n256-P8-{}~slots", "B1-T4-D2560-K4-H10-n256-P8-{}~every_token"),
    "local_attention": ("B1-W2048-Hq10-Hkv1-d256-P2-{}~slots", "B1-T4-W2048-Hq10-Hkv1-d256-P2-{}~slots"),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PAIRS)
def test_four_tokens_verified_at_once(name, dtype):
    """Against one decode step of one sequence: weights and keys are read once in both. On what runs by default."""
    calls: dict[str, Callable[[], object]] = {}
    for op_name, key in zip((f"{name}_step", f"{name}_extend"), PAIRS[name], strict=True):
        op = catalog.op(op_name)
        case = Case.parse(op_name, key.format(dtype), tuple(op.cases[0].dims))
        call = op.call(**op.make_inputs(case, torch.device("cpu"), 0))
        choice = dispatch.select(op_name, op.case_of(call), device.cpu())

        run = functools.partial(choice.variant.run, call, choice.config)
        calls[f"{op_name} {choice.variant.name}"] = lambda run=run: [run() for _ in range(20)]  # type: ignore[misc]
    rows = list(race(calls).values())
    show(f"20 calls each, {PAIRS[name][1].format(dtype)}", {row.name: row for row in rows})
    assert rows[1].ratio <= VERIFY_TARGET
