"""What one temporal_conv1d costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.rg_lru.cost import FLAGS as DOCUMENTS
from griffin_kernels.ops.rg_lru.cost import index_bytes

MINOR_FLAGS = ("silu", "gelu", "residual")
"""Properties that hardly change which kernel is right."""

FLAGS = (*DOCUMENTS, *MINOR_FLAGS)
"""Properties of a call that look-up tells apart. A state is none: it costs K-1 rows."""


def cost(case: Case) -> Cost:
    """Read x, weights and state, write y and the new state; K multiply-adds per element, and the activation.

    A residual is read too, and added.
    """
    elements = case["B"] * case["T"] * case["D"]
    size, residual = case.bytes_per_element(), elements if "residual" in case.flags else 0
    return Cost(
        bytes_read=(elements + residual + weight_elements(case) + state_elements(case)) * size + index_bytes(case),
        bytes_written=(elements + case["N"] * (case["K"] - 1) * case["D"]) * size,
        vector_flops=2 * case["K"] * elements + activation_flops(case) * elements + residual,
        special_ops=elements if activation_flops(case) else 0,
    )


GELU_FLOPS, GELU_SPECIALS = 8, 1
"""Of gelu's tanh form: a cube 2, two scales and a sum 3, one sum and two products 3; the tanh."""


def activation_flops(case: Case) -> int:
    """Vector operations of the activation of one element, besides its special function: silu's product with that."""
    return 1 if "silu" in case.flags else GELU_FLOPS if "gelu" in case.flags else 0


def weight_elements(case: Case) -> int:
    """Of weight and bias."""
    return (case["K"] + 1) * case["D"]


def state_elements(case: Case) -> int:
    """Of the state that is passed in, which is what one decoded token mostly reads."""
    return case["N"] * (case["K"] - 1) * case["D"] if "state" in case.data else 0


def make_case(
    batch: int, time: int, width: int, taps: int = 4, dtype: str = "float32", flags: Sequence[str] = (), **facts: Any
) -> BenchCase:
    """A case from sizes. K, the taps, is 4 in every published model; N is the batch, or ``rows`` packed sequences."""
    facts.setdefault("op", "temporal_conv1d")
    sizes = {"B": batch, "T": time, "D": width, "K": taps, "N": facts.pop("rows", batch)}
    return BenchCase(sizes, dtype, tuple(flags), **facts)
