"""The earlier keys of every row and key head in parts, a program to each, joined by a second launch.

Part j leaves m_j = max s, t_j = sum exp(s - m_j) and o_j = sum exp(s - m_j) v; with m = max m_j

    out = sum_j exp(m_j - m) o_j / sum_j exp(m_j - m) t_j

For small batches of few tokens: one row and key head are one program of triton.single, which cannot keep a memory busy.
The last part takes the call's own keys too. Nothing is read on the host and no size depends on a value: safe in CUDA
graphs.

Bytes: the visible slots of the ring, and 8 T G / keys of a part per byte of it for the parts. Bound by memory
bandwidth, at batch 1 by the latency of two launches and a few dependent loads.
Source: the split over keys of Flash-Decoding (Dao et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.local_attention._flash import WARP_GROUPS, Parted
from griffin_kernels.ops.local_attention_extend import _triton_ring_tokens, triton_single
from griffin_kernels.ops.local_attention_extend.cost import cost

FEW_ROWS = 128
"""Tokens times heads of a key head from which on programs are many and products outweigh reading."""


@dataclass(frozen=True)
class Config(triton_single.Config, Parted):
    """parts: programs that share the earlier keys, fewer where there are not as many blocks. As in triton.single."""

    parts: int = 32


def rank(case: Case, device: Device) -> int:
    """The default where a tile of keys and values for each row and key head does not keep the memory busy."""
    few = case["T"] * (case["Hq"] // case["Hkv"]) <= FEW_ROWS
    tiles = case["B"] * case["Hkv"] * 256 * case["d"]  # 64 keys and values of 16 bits, half as many of 32
    # of mma.sync's products a program hides its own latency better than of the larger instructions
    busy = 1.35 if device.kind == "hip" or device.arch in WARP_GROUPS else 0.4
    return 40 if few and tiles < busy * host.bytes_in_flight(device) else 30


def traffic(case: Case, config: Config) -> int:
    """Besides the ideal: the float32 parts of out, written and read again."""
    parts = min(config.parts, -(-case["W"] // (config.block_n or 32)))
    return cost(case).bytes_total + 2 * 4 * parts * case["B"] * case["T"] * case["Hq"] * (case["d"] + 2)


VARIANT = Variant(
    op="local_attention_extend",
    name="triton.split",
    summary="the earlier keys in parts, tokens and heads of a key head as rows of a product, parts joined",
    config=Config,
    axes={"parts": (4, 8, 16, 32, 64), "block_n": (16, 32, 64), "num_warps": (4, 8), "num_stages": (2, 3)},
    reject=_triton_ring_tokens.unfit,
    rank=rank,
    launches=_triton_ring_tokens.launches,
    traffic=traffic,
)
