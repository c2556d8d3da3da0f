"""What the hosts of the Triton backward kernels share: launches, choice of tiles, reasons to refuse."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.architectures import SCRATCH, no_products, over_shared
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import Case, dtype_name
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.host import known_stride, row_stride
from griffin_kernels.ops.local_attention import _flash as forward
from griffin_kernels.ops.local_attention._flash import Tiles, padded
from griffin_kernels.ops.local_attention._triton_attention import Heads
from griffin_kernels.ops.local_attention_bwd import _triton_attention_bwd as kernels
from griffin_kernels.ops.local_attention_bwd._triton_attention_bwd import KeyGradients, Numbers
from griffin_kernels.ops.local_attention_bwd.op import Call

DELTA_ROWS = 16
"""Rows per program of the kernel that finds delta."""

JOINED = 1024
"""Elements per program of the kernel that sums parts."""


ROWS_AXES: dict[str, tuple[Any, ...]] = {"rows": (64, 128), "rows_streamed": (64, 32)}
"""Of the kernel that finds dq, which are few: most time goes to dk and dv."""


class Cut(NamedTuple):
    """resident: rows (for dq) or keys (for dk, dv) that a program keeps. streamed: keys or rows per iteration."""

    resident: int
    streamed: int
    num_warps: int
    num_stages: int

    def chosen(self, *fields: int) -> Cut:
        """Those fields that are not 0, in place of these."""
        return Cut(*(field or usual for field, usual in zip(fields, self, strict=True)))

    @property
    def of_queries(self) -> Tiles:
        return Tiles(*self)

    @property
    def of_keys(self) -> Tiles:
        return Tiles(self.streamed, self.resident, self.num_warps, self.num_stages)


WIDE_KEYS = Cut(64, 64, 8, 1)
"""Of head_dim 256 on sm_90: with loads ahead, ptxas has products of warp groups wait for each other (C7515)."""

SPILLED = {
    "sm_90": "16 to 24 bytes a thread, outside the loop; half the rows would spill nothing and take more instructions",
    "gfx942": "84 bytes a thread, where sums are looked over after the loop",
}
"""Of the kernel for dk and dv in its default cut at head_dim 256, by architecture: why that is accepted."""


def cuts(d: int, dtype: str, arch: str, config: Any) -> tuple[Cut, Cut]:
    """(of keys for dk and dv, of rows for dq): those fields of ``config`` that are not 0, in place of the default's."""
    keys, rows = default(d, dtype, arch)
    return (
        keys.chosen(config.resident, config.streamed, config.num_warps, config.num_stages),
        rows.chosen(config.rows, config.rows_streamed, config.rows_warps, config.rows_stages),
    )


def default(d: int, dtype: str, arch: str) -> tuple[Cut, Cut]:
    """What a Config of zeros means: the largest tiles that keep their sums in registers and fit shared memory."""
    if arch == "sm_90" and dtype != "float32" and padded(d) == 256:
        return WIDE_KEYS, Cut(128, 32, 8, 2)
    both = _default(d, dtype, arch)
    return both, both


def _default(d: int, dtype: str, arch: str) -> Cut:
    wide, amd = padded(d), arch.startswith("gfx")
    if dtype == "float32":
        if wide <= 128:
            return Cut(32, 32, 4 if amd else 8, 2)
        return Cut(16, 16, 4, 1) if amd else Cut(32, 16, 8, 2)
    if wide <= 128:
        if amd:
            return Cut(64, 32, 4, 2)
        return Cut(128 if arch == "sm_90" else 64, 64, 8, 2)
    return Cut(64, 32, 8, 2) if forward.roomy(arch) else Cut(32, 32, 4, 2)


def launches(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """What bounds the keys (see ``bounds``); delta; dk and dv, in sums of parts of the rows that see them; dq."""
    dout, q, k, v, out, lse = call.dout, call.q, call.k, call.v, call.out, call.lse
    arch, dtype, d = launch.architecture(q), dtype_name(q.dtype), q.shape[3]
    of_keys, of_rows = cuts(d, dtype, arch, config)
    parts = getattr(config, "parts", 1)
    sizes = forward.sizes_of(call, of_keys.of_keys, parts)
    rows, lanes, wide = q.shape[1] * sizes.G, q.shape[0] * sizes.HKV, sizes.BLOCK_D
    usual = wide == 256 and of_keys == default(d, dtype, arch)[0]
    args, before = forward.arguments(call)
    numbers = Numbers(*(torch.empty(lanes * rows, dtype=torch.float32, device=q.device) for _ in "dp"))
    dq, dk, dv = (host.empty(outputs, f"d{n}", x, *x.shape, dtype=x.dtype) for n, x in (("q", q), ("k", k), ("v", v)))
    grads = partial = KeyGradients(dk, dv)
    if parts > 1:
        partial = KeyGradients(*(torch.empty((parts, *k.shape), dtype=torch.float32, device=q.device) for _ in "kv"))
    given = {"dout": forward.heads(dout), "numbers": numbers}
    reached = {"dlse": None if call.dlse is None else _by_row(call.dlse)}
    delta = Launch(
        kernel=kernels.local_attention_bwd_delta,
        grid=(triton.cdiv(rows, DELTA_ROWS) * lanes,),
        args=given | {"out": forward.heads(out), "lse": _by_row(lse), "T": q.shape[1], "batches": q.shape[0]} | reached,
        constexprs={"SIZES": sizes._replace(BLOCK_M=DELTA_ROWS, BLOCK_N=0, PARTS=1)},
        num_warps=4,
        tile=DELTA_ROWS * wide,
        claims=Claims(load_bits=min(forward.load_bits((dout, out)), 4 * wide * dout.element_size())),
    )
    args |= given
    to_keys = forward.twice(
        kernel=kernels.local_attention_bwd_keys,
        tiles=of_keys.of_keys,
        sizes=sizes,
        programs=triton.cdiv(k.shape[1], of_keys.resident) * parts * lanes,
        rows=of_keys.resident,
        args=args | {"grads": partial},
        claims=forward.claims((q, dout), of_keys.of_keys, spills=SPILLED.get(arch, "") if usual else ""),
    )
    join = Launch(
        kernel=kernels.local_attention_bwd_join,
        grid=(triton.cdiv(k.numel(), JOINED),),
        args={"parts": partial, "grads": grads, "count": k.numel()},
        constexprs={"PARTS": parts, "BLOCK": JOINED},
        num_warps=4,
        tile=JOINED,
    )
    to_queries = forward.twice(
        kernel=kernels.local_attention_bwd_queries,
        tiles=of_rows.of_queries,
        sizes=forward.sizes_of(call, of_rows.of_queries),
        programs=triton.cdiv(rows, of_rows.resident) * lanes,
        rows=of_rows.resident,
        args=args | {"dq": dq},
        claims=forward.claims((k, v), of_rows.of_queries),
    )
    return [*before, delta, *to_keys, *([join] if parts > 1 else []), *to_queries]


def _by_row(numbers: Tensor) -> Heads:
    """The bundle of [B,H,T]."""
    return Heads(numbers, row_stride(numbers, 0), known_stride(numbers, 2), row_stride(numbers, 1), None)


def reject(case: Case, device: Device, config: Any) -> str | None:
    """Why no kernel of the backward pass runs this case with these tiles, if so."""
    if reason := forward.unfit(case, device) or no_products(device.arch, case.dtype):
        return reason
    reasons = (_too_large(cut, case, device) for cut in cuts(case["d"], case.dtype, device.arch, config))
    return next((reason for reason in reasons if reason), None)


def _too_large(cut: Cut, case: Case, device: Device) -> str | None:
    size = DTYPE_BYTES[case.dtype]
    width = padded(case["d"]) * size
    weights = cut.resident * cut.streamed * size
    if device.kind == "hip":
        # resident tiles only pass through; loads wait in registers for a buffer
        return over_shared(max(cut.resident, 2 * cut.streamed) * width + weights + SCRATCH, device.arch)
    tiles = forward.buffers(cut.of_keys, device)
    if device.arch in forward.TENSOR_MEMORY:
        tiles += 2  # operands on their way to tensor memory
    if cut.num_stages == 1:
        tiles += 2
    # probabilities and their gradients are operands too
    return over_shared((2 * cut.resident + tiles * cut.streamed) * width + 2 * weights + SCRATCH, device.arch)
