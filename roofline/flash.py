"""Attention as serving engines run it: FlashAttention, at the share of the matrix rate that was published for it.

A composition that moves every score through memory is what nobody serves; a Transformer is not predicted with it unless
that is asked for. Needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Attention = Literal["flash", "composed"]
"""How global attention runs: FlashAttention, or PyTorch's kernels one by one with the scores in memory."""

ATTENTIONS: tuple[Attention, ...] = ("flash", "composed")

ATTENDING = frozenset({"local_attention", "local_attention_step", "local_attention_bwd"})
"""Ops that FlashAttention can run."""

LAUNCHES: Mapping[str, int] = MappingProxyType({"local_attention_step": 2, "local_attention_bwd": 3})
"""Kernels of a call; one of others. Decoding: keys are split over the device, then partial results combined
(Flash-Decoding). Gradient: the products of out and its gradient, the gradients, the conversion of that of q."""

BACKWARD = 63 / 73
"""Rate of the gradient over that of the forward pass: 63 and 73% of an A100's peak at best (arXiv 2307.08691, 4.1)."""


@dataclass(frozen=True)
class FlashAttention:
    """A published measurement. share: of the rate that large matrix products reach on the same device."""

    name: str
    share: float
    source: str

    def runs(self, op: str) -> tuple[float, int]:
        """(share of the rate of large products, kernels) of a call of an op of ATTENDING."""
        return self.share * (BACKWARD if op.endswith("_bwd") else 1.0), LAUNCHES.get(op, 1)

    def sentence(self) -> str:
        """What is assumed, in words."""
        return f"attention runs as {self.name}, at {self.share:.0%} of large products' rate ({self.source})"


_AMPERE = 0.615 * 312 / 271

PUBLISHED: Mapping[str, FlashAttention] = MappingProxyType(
    {
        "sm_80": FlashAttention("FlashAttention-2", _AMPERE, "50-73% of an A100's peak, arXiv 2307.08691"),
        "sm_90": FlashAttention(
            "FlashAttention-3", 616 / 795, "616 TFLOP/s on an H100, causal, arXiv 2407.08608, fig. 5"
        ),
        "sm_100": FlashAttention(
            "FlashAttention-4", 1605 / 1745, "up to 1,605 TFLOP/s on a B200, together.ai/blog/flashattention-4"
        ),
    }
)
"""By architecture. Rates of large products: 271, 795 and 1,745 TFLOP/s, as in the datasheets of these three."""

ASSUMED = FlashAttention("FlashAttention-2", _AMPERE, "assumed as on an A100")


def flash_attention(arch: str) -> FlashAttention:
    """What is known, or else assumed, on a GPU of an architecture."""
    return PUBLISHED.get(arch, ASSUMED)
