"""What the hosts of rg_lru's Triton kernels share: arguments, the gate products in front, reasons to refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.architectures import SCRATCH, no_products, over_shared
from griffin_kernels.contract import Case, Cost
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import chunks as split
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import rows, state
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru._triton_lru import Parameters, Shape, Steps
from griffin_kernels.ops.rg_lru.cost import cost
from griffin_kernels.ops.rg_lru.op import GATES, Call, blockwise, is_fresh


class Branch(NamedTuple):
    """What a recurrent block asks for: states times gelu(y), y [B,T,D], as ``out``, and states themselves if with_h."""

    y: Tensor
    with_h: bool


def arguments(
    call: Any,
    outputs: dict[str, Any],
    config: Any,
    branch: Branch | None,
    products: tuple[Tensor, ...] | None = None,
    of_gates: Parameters | None = None,
) -> dict[str, Any]:
    """Arguments of every kernel here; allocates what they write.

    products: x W_i and x W_r if given. of_gates: the gates' parameters where they are not the call's.
    """
    args = scanning(call, outputs, config, branch, products, of_gates)
    batch, _, width = call.x.shape
    count = rows_of(batch, call.cu_seqlens)
    h_last = host.empty(outputs, "h_last", call.x, count, width, dtype=torch.float32)
    return args | {"h0": state(call.h0), "h_last": h_last}


def scanning(
    call: Any,
    outputs: dict[str, Any],
    config: Any,
    branch: Branch | None,
    products: tuple[Tensor, ...] | None = None,
    of_gates: Parameters | None = None,
) -> dict[str, Any]:
    """As ``arguments``, without states."""
    x = call.x
    batch, time, width = x.shape
    other, with_h = branch or (None, True)
    written: dict[str, Tensor | None] = {"y": None, "out": None}
    for name, wanted in (("out", branch is not None), ("y", with_h)):
        if wanted:
            written[name] = host.empty(outputs, name, x, batch, time, width, dtype=x.dtype)
    return {
        "steps": Steps(rows(x), rows(other), rows(call.segment_pos), *map(rows, products or (None, None)), **written),
        "parameters": of_gates or parameters(call, weights=products is None),
        "T": time,
        "shape": shape_of(call, config),
    }


def shape_of(call: Any, config: Any) -> Shape:
    """What a kernel knows when it is compiled, but for its tiles."""
    of_config = (getattr(config, name, None) for name in ("fast", "chunk"))
    return Shape(*map(constant, (call.x.shape[2], is_fresh(call.h0, call.segment_pos), *of_config)))


def parameters(call: Any, weights: bool) -> Parameters:
    """The gates' parameters. weights: whether the kernel reads the gates' weights."""
    read = (getattr(call, name).contiguous() if weights or "weight" not in name else None for name in GATES)
    return Parameters(*read)


def products(call: Call) -> tuple[tuple[Tensor, Tensor], list[launch.TorchStep]]:
    """(x W_i and x W_r as contiguous [B,T,D] in the data's dtype, the steps that compute them)."""
    x, blocks = call.x, call.input_gate_bias.shape[0]
    z_i, z_r = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))

    def step(name: str, weight: Tensor, out: Tensor) -> launch.TorchStep:
        # a matrix product can write rows that lie D apart, so nothing is transposed in memory
        return launch.TorchStep(name, lambda: torch.bmm(blockwise(x, blocks), weight, out=blockwise(out, blocks)))

    return (z_i, z_r), [
        step("block-diagonal product z_i", call.input_gate_weight, z_i),
        step("block-diagonal product z_r", call.recurrence_gate_weight, z_r),
    ]


def by_rows(kernel: Any, args: dict[str, Any], config: Any, load_bits: int, programs: int, **constexprs: Any) -> Launch:
    """A launch whose programs own ``block_d`` channels and visit ``block_t`` rows at a time."""
    shape = args["shape"]._replace(block_t=constant(config.block_t), block_n=constant(config.block_d))
    return Launch(
        kernel=kernel,
        grid=(programs * triton.cdiv(shape.width.value, config.block_d),),
        args=args | {"shape": shape},
        constexprs=constexprs,
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=load_bits),
    )


def by_gates(kernel: Any, call: Any, args: dict[str, Any], config: Any, programs: int, **constexprs: Any) -> Launch:
    """A launch with the gate products inside, whose programs own ``block_n`` channels of a gate block."""
    x, (blocks, n) = call.x, call.input_gate_bias.shape
    block_t = tile_steps(n, x.element_size(), config, launch.architecture(x))
    sizes = {"n": n, "part": part(n), "block_n": config.block_n, "block_t": block_t, "stages": config.num_stages}
    shape = args["shape"]._replace(**{name: constant(size) for name, size in sizes.items()})
    # matrix instructions for 16-bit data that fills them; asynchronous copies of x where channels are neighbours
    bits = host.load_bits((x,), min(8, part(n) * block_t // (32 * config.num_warps)))
    matrix = x.element_size() == 2 and config.block_n >= 16 * config.num_warps
    return Launch(
        kernel=kernel,
        grid=(programs * blocks * triton.cdiv(n, config.block_n),),
        args=args | {"shape": shape},
        constexprs=constexprs,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        tile=block_t * config.block_n,
        claims=Claims(load_bits=bits, async_copies=config.num_stages > 1 and bits >= 32, matrix=matrix),
    )


def in_chunks(
    call: Any,
    given: Tensor | None,
    final: Tensor | None,
    args: dict[str, Any],
    phase: Callable[..., Launch],
    reverse: bool = False,
) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan.

    given, final: the states [N,D] that time, visited backwards if ``reverse``, starts from and ends with. phase: the
    launch that reduces, or that scans, by its arguments, its chunks of all batch entries, and REDUCE.
    """
    batch, time, width = call.x.shape
    marks, steps = split.marked(call.x, call.cu_seqlens, given, final, reverse)
    chunks = triton.cdiv(time, args["shape"].chunk.value) - 1
    args |= {"marks": marks, "product": None, "result": None, "chunks": chunks}
    if chunks:
        product, result = torch.empty((2, batch, chunks, width), dtype=torch.float32, device=call.x.device)
        args |= {"product": product, "result": result}
        reduce = phase(args=args, programs=batch * chunks, REDUCE=True)
        steps += [reduce, split.carry(product, result, given if marks is None else None)]
    return [*steps, phase(args=args, programs=batch * (chunks + 1), REDUCE=False)]


def unfit(case: Case, device: Device, config: Any) -> str | None:
    """Why no kernel of this op or its gradient runs, or not this fast, if so."""
    # block_t is 0 where the device decides
    if config.block_t and (chunk := getattr(config, "chunk", 0)) % config.block_t:
        return f"chunk={chunk} is not a multiple of block_t={config.block_t}"
    if reason := host.not_here(device):
        return reason
    if case.dtype == "float64":
        return "gates and state are float32 here, float64 data wants more (eager.unfused takes it)"
    if getattr(config, "fast", False) and case.dtype != "bfloat16":
        return f"fast gates are off by up to 2^-11, which only bfloat16's rounding hides, not {case.dtype}'s"
    return None


def unfit_rows(case: Case, device: Device, config: Any) -> str | None:
    """Why a kernel whose threads own channels cannot run, or would only waste them."""
    return unfit(case, device, config) or host.unfit(case, device, config.block_d, config.num_warps)


def traffic(
    case: Case, streams: int, chunk: int = 0, again: int = 0, ideal: Callable[[Case], Cost] = cost, least: int = 2
) -> int:
    """Bytes moved: ``streams`` data elements per element, the weights and indices once.

    chunk: steps of a chunk where time is split: ``again`` streams of all chunks but the last, and scratch rows.
    ideal: what the op costs at least, which moves ``least`` streams.
    """
    size, rows = case.bytes_per_element(), case["B"] * case["D"]
    before = triton.cdiv(case["T"], chunk) - 1 if chunk else 0
    elements = rows * (case["T"] * (streams - least) + before * chunk * again)
    total: int = ideal(case).bytes_total + elements * size + 6 * rows * before * 4
    return total


def part(n: int) -> int:
    """Channels of a partial product: the power of two from 16 on, as matrix units take them, that pads n least.

    Of several the largest, up to 64, beyond which addresses take registers; at most eight partial products.
    """
    return max(((-(-n // size) * -size, size) for size in (16, 32, 64) if n <= 8 * size), default=(0, 64))[1]


def padded(n: int) -> int:
    """Channels that the gate products sum over, zeros beyond n included."""
    return -(-n // part(n)) * part(n)


def shared_bytes(n: int, size: int, config: Any, block_t: int, arch: str, backward: bool = False) -> int:
    """Shared memory of a kernel with the products inside, at most: num_stages tiles of all inputs; on NVIDIA both
    gates' weights too, and forward of its own channels once more and of a branch.
    """
    amd = arch.startswith("gfx")
    own, weights = 3 if backward else 0 if amd else 2, 0 if amd else 2 * padded(n) * config.block_n
    total: int = size * (weights + config.num_stages * (padded(n) + own * config.block_n) * block_t) + SCRATCH
    return total


def tile_steps(n: int, size: int, config: Any, arch: str) -> int:
    """Steps of a tile: config's, or for 0 as many, up to 32, as fit the architecture. They spill on gfx90a."""
    wide = arch != "gfx90a" and over_shared(shared_bytes(n, size, config, 32, arch), arch) is None
    steps: int = config.block_t or (32 if wide else 16)
    return steps


def unfit_gates(case: Case, device: Device, config: Any, backward: bool = False) -> str | None:
    """Why a kernel with the gate products inside cannot run, if so."""
    if reason := unfit(case, device, config):
        return reason
    n, size = case["n"], case.bytes_per_element()
    if n < 4:
        return f"gate blocks of {n} channels use at most {n} of 16 rows of a matrix instruction"
    if n > 256:
        return f"both gates' weights for {n} input channels do not stay in shared memory; those for 256 do"
    # NVIDIA has no matrix instruction for them, AMD's leave too few registers for the forward's tile
    if case.dtype == "float32" and (device.kind == "cuda" or (device.kind == "hip" and not backward)):
        return (
            "float32 products inside would round to TF32 or spill registers; triton.fused_scan leaves them to a library"
        )
    if reason := no_products(device.arch, case.dtype):
        return reason
    if config.block_n > 64 and config.block_n >= 2 * n:
        return f"block_n={config.block_n} is at least twice the {n} channels of a gate block"
    block_t = tile_steps(n, size, config, device.arch)
    return over_shared(shared_bytes(n, size, config, block_t, device.arch, backward), device.arch)
