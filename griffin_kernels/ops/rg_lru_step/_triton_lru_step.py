"""The kernels of the one-token RG-LRU, alone or between a convolution and a gelu, and their launches; states in place.

A program computes some output channels of one gate block for some batch rows. It reads all n inputs of the block, after
the convolution where there is one (taps > 0). Only a program that owns the whole block moves what the convolution
keeps: others would read it half moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.architectures import WITHOUT_PRODUCTS
from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host, tensors
from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.elementwise import gelu
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.rg_lru._triton_lru import Parameters, gates_of, load_gates
from griffin_kernels.ops.rg_lru_step.op import Call
from griffin_kernels.ops.temporal_conv1d_step import _triton_conv_step as conv_step

WIDEST = 256
"""Channels of a gate block that a program can hold."""


class StepShape(NamedTuple):
    """Compile-time sizes: D channels, n of a gate block, K taps, or 0; outputs, inputs and batch rows of a program's
    tiles; tiles of both weights in flight.
    """

    width: Any
    n: Any
    taps: Any
    block_n: Any
    block_k: Any
    block_b: Any
    stages: Any


@triton.jit
def own_columns(shape):
    """(gate block, its output channels [block_n]) of the program."""
    PARTS: tl.constexpr = (shape.n + shape.block_n - 1) // shape.block_n
    return tl.program_id(0) // PARTS, (tl.program_id(0) % PARTS) * shape.block_n + tl.arange(0, shape.block_n)


@triton.jit
def load_weights(parameters, block, k, column, N: tl.constexpr, FILLED: tl.constexpr):
    """Both gates' weights [inputs, outputs] of a gate block, zeros outside it. FILLED: nothing is outside."""
    corner = tl.cast(block, tl.int64) * (N * N)
    w_i = parameters.weight_i + corner + (k[:, None] * N + column[None, :])
    w_r = parameters.weight_r + corner + (k[:, None] * N + column[None, :])
    if FILLED:
        tiles = (tl.load(w_i), tl.load(w_r))
    else:
        mask = (k < N)[:, None] & (column < N)[None, :]
        tiles = (tl.load(w_i, mask=mask, other=0.0), tl.load(w_r, mask=mask, other=0.0))
    return tiles


@triton.jit
def enter(x, conv, tokens, channel, there, shape):
    """What the gates see of channels by rows, float32: x or its convolution. channel: any shape that broadcasts.

    there: channels that exist.
    """
    current = conv_step.newest(x, tokens, channel, there)
    if shape.taps == 0:
        u = current.to(tl.float32)
    else:
        u = conv_step.convolve(current, conv, tokens, channel, there, shape.width, shape.taps, tl.float32)
    return u


@triton.jit
def finish(z_i, z_r, x, y, conv, parameters, h, out, tokens, first, column, shape):
    """From the products, channels by rows in float32, to the states and the output.

    Where no other program reads what the convolution keeps of these channels, it moves. first: channel of the block.
    """
    channel, there = first + column, column < shape.n
    inside = there & tokens.works
    u = enter(x, conv, tokens, channel, there, shape)
    if shape.taps > 1 and shape.n <= shape.block_n:
        conv_step.keep(conv_step.newest(x, tokens, channel, there), conv, tokens, channel, there, shape.taps)
    i, _, a, _, m = gates_of(z_i, z_r, load_gates(parameters, tensors.Channels(channel, there, None)), False)
    goes_on = inside
    if tokens.position is not None:
        m = tl.where(tokens.position == 0, 1.0, m)
        goes_on = inside & (tokens.position != 0)
    state = h.at + (tokens.slot * h.row + channel * h.channel)
    new = a * tl.load(state, mask=goes_on, other=0.0) + m * i * u
    tl.debug_barrier()  # a layout may have several threads read an element, and none may read it after the store
    into = h.at + (tokens.target * h.row + channel * h.channel)
    tl.store(into, new, mask=there & tokens.keeps)
    if y is not None:
        branch = tl.load(y.at + (tokens.row * y.row + channel * y.channel), mask=inside, other=0.0)
        new *= gelu(branch.to(tl.float32), False)
    new = tl.where(tokens.works, new, 0.0)
    place = out.at + (tokens.row * out.row + channel * out.channel)
    tl.store(place, new.to(place.dtype.element_ty), mask=there & tokens.exists)


@triton.jit(do_not_specialize=["B", "P"])
def step_by_dot(x, y, conv, parameters, h, indices, out, B, P, shape):
    """x, y, out: [B,D]; h: [P,D]. Tiles are channels by rows: the matrix instructions' long side is the channels'.

    Grid: H * ceil(n / block_n), ceil(B / block_b).
    """
    block, column = own_columns(shape)
    first = block * shape.n
    tokens = conv_step.tokens_of(
        (tl.program_id(1) * shape.block_b + tl.arange(0, shape.block_b))[None, :], indices, B, P
    )
    z_i = tl.zeros((shape.block_n, shape.block_b), tl.float32)
    z_r = tl.zeros((shape.block_n, shape.block_b), tl.float32)
    FILLED: tl.constexpr = shape.n % shape.block_k == 0 and shape.n % shape.block_n == 0
    for start in tl.range(0, shape.n, shape.block_k, num_stages=shape.stages):
        k = start + tl.arange(0, shape.block_k)
        w_i, w_r = load_weights(parameters, block, k, column, shape.n, FILLED)
        u = enter(x, conv, tokens, first + k[:, None], k[:, None] < shape.n, shape).to(w_i.dtype)
        z_i = dot(tl.trans(w_i), u, z_i)
        z_r = dot(tl.trans(w_r), u, z_r)
    finish(z_i, z_r, x, y, conv, parameters, h, out, tokens, first, column[:, None], shape)


@triton.jit(do_not_specialize=["B", "P"])
def step_by_vector(x, y, conv, parameters, h, indices, out, B, P, shape):
    """As ``step_by_dot``, one batch row after the other; block_k >= n. Same grid."""
    block, column = own_columns(shape)
    first = block * shape.n
    k = tl.arange(0, shape.block_k)
    FILLED: tl.constexpr = shape.n == shape.block_k and shape.n % shape.block_n == 0
    w_i, w_r = load_weights(parameters, block, k, column, shape.n, FILLED)
    for r in tl.static_range(shape.block_b):
        tokens = conv_step.tokens_of(tl.program_id(1) * shape.block_b + r, indices, B, P)
        seen = enter(x, conv, tokens, first + k, k < shape.n, shape)[:, None]
        z_i = tl.sum(seen * w_i.to(tl.float32), 0)
        z_r = tl.sum(seen * w_r.to(tl.float32), 0)
        finish(z_i, z_r, x, y, conv, parameters, h, out, tokens, first, column, shape)


def columns(n: int, block_n: int) -> int:
    """Columns of a tile for gate blocks of n channels; a tile of a product has 16 at least."""
    return min(block_n, max(16, 1 << (n - 1).bit_length()))


@dataclass(frozen=True)
class Dot:
    """block_n: output channels of a program, all of a gate block that has fewer. block_k: inputs multiplied at a time,
    half as many where products are float32; ``num_stages`` of them in flight, or as many as fit. block_b: batch rows.
    """

    block_n: int = 64
    block_k: int = 64
    block_b: int = 16
    num_warps: int = 4
    num_stages: int = 4

    def launch(self, call: Call, *around: Any) -> Launch:
        """Gates by matrix instructions, then state and output; see ``described``."""
        n, arch = call.input_gate_bias.shape[1], launch.architecture(call.x)
        tensor_cores = call.x.element_size() == 2 and arch not in WITHOUT_PRODUCTS
        block_n = columns(n, self.block_n)
        # what is no operand of a matrix instruction is multiplied in float32, and takes the registers of that
        block_k = columns(n, max(16, self.block_k if tensor_cores else self.block_k // 2))
        tiles = (block_n, block_k, self.block_b, stages(self, block_n, arch))
        return described(step_by_dot, call, self, tiles, tensor_cores and block_n >= 64, *around)


@dataclass(frozen=True)
class Vector:
    """block_n: output channels of a program, all of a gate block that has fewer. rows: batch rows, one by one."""

    block_n: int = 32
    rows: int = 1
    num_warps: int = 4

    def launch(self, call: Call, *around: Any) -> Launch:
        """Likewise with gates by multiplying and adding."""
        n = call.input_gate_bias.shape[1]
        tiles = (columns(n, self.block_n), triton.next_power_of_2(n), self.rows, 1)
        return described(step_by_vector, call, self, tiles, False, *around)


DOT_AXES: dict[str, tuple[Any, ...]] = {
    "block_n": (32, 64, 128, 256),
    "block_k": (32, 64, 128),
    "block_b": (16, 32, 64),
    "num_warps": (4, 8),
    "num_stages": (2, 4),
}
VECTOR_AXES: dict[str, tuple[Any, ...]] = {"block_n": (16, 32, 64), "rows": (1, 2, 4, 8), "num_warps": (4, 8)}


def described(
    kernel: Any,
    call: Call,
    config: Dot | Vector,
    tiles: tuple[int, int, int, int],
    matrix: bool,
    outputs: dict[str, Any],
    output: str,
    branch: Tensor | None = None,
    conv: conv_step.Convolution | None = None,
) -> Launch:
    """A launch of either kernel: the state and ``output``, times gelu(branch) [B,D].

    tiles: as in ``StepShape``. conv: of x, before.
    """
    x, h = call.x, call.h
    batch, width = x.shape
    gate_blocks, n = call.input_gate_bias.shape
    parameters = Parameters(*[value.contiguous() for value in lru.gates_of(call)])
    outputs["h"] = h
    shape = StepShape(*map(constant, (width, n, 0 if conv is None else conv.weight.shape[0], *tiles)))
    tile = tiles[0] * tiles[1]
    size, start = x.element_size(), parameters.weight_i.storage_offset()
    # host.load_bits of contiguous weights, in less of a launch's time
    bits = 8 * size * math.gcd(16 // size, tile // (32 * config.num_warps), n, start)
    return Launch(
        kernel=kernel,
        grid=(gate_blocks * triton.cdiv(n, config.block_n), triton.cdiv(batch, tiles[2])),
        args={
            "x": tensors.state(x),
            "y": tensors.state(branch),
            "conv": conv,
            "parameters": parameters,
            "h": tensors.state(h),
            "indices": conv_step.indices_of(call),
            "out": conv_step.output(outputs, output, x),
            "B": batch,
            "P": h.shape[0],
            "shape": shape,
        },
        constexprs={},
        num_warps=config.num_warps,
        num_stages=tiles[3],
        tile=0 if kernel is step_by_dot else tile,
        claims=Claims(load_bits=bits, matrix=matrix),
    )


def unfit(case: Case, device: Device, block_n: int, usual: int) -> str | None:
    """Why no kernel of these runs, or not with such a block, if so. usual: the default's block."""
    if reason := host.not_here(device):
        return reason
    if case.dtype == "float64":
        return "gates and state are float32 here, float64 data wants more (eager.unfused takes it)"
    if case["n"] > WIDEST:
        return f"gate blocks of {case['n']} channels are wider than the {WIDEST} that a program holds"
    if block_n != usual and block_n > columns(case["n"], block_n):
        return f"block_n={block_n} is no different from less: gate blocks have {case['n']} channels"
    return None


def dot_unfit(case: Case, device: Device, config: Dot) -> str | None:
    """Likewise for gates by matrix instructions."""
    if reason := unfit(case, device, config.block_n, type(config)().block_n):
        return reason
    if config.block_b > 16 and config.block_b >= 2 * case["B"]:
        return f"block_b={config.block_b} is at least twice the {case['B']} rows: half of it does nothing"
    block_n = columns(case["n"], config.block_n)
    if block_n * config.block_b > 1024 * config.num_warps:
        return f"sums of {block_n} x {config.block_b} for both gates are too many for {config.num_warps} warps"
    fit = stages(config, block_n, device.arch)
    if config.num_stages != type(config)().num_stages and fit < config.num_stages:
        return f"num_stages={config.num_stages} is no different from less: {fit} fit on {device.arch}"
    return None


def stages(config: Dot, block_n: int, arch: str) -> int:
    """How many tiles of both weights are in flight: ``config.num_stages``, or as many as fit."""
    tile = 2 * block_n * config.block_k * 2  # bytes; float32 has half as many inputs
    if arch.startswith("gfx"):  # all but one in shared memory, of 64 KB
        most = 56 * 1024 // tile + 1
    elif arch in ("sm_90", "sm_100", "sm_103"):  # shared memory, of 227 KB
        most = 192 * 1024 // tile
    else:  # registers
        most = 96 * 4 * 32 * config.num_warps // tile
    return max(1, min(config.num_stages, most))


def vector_unfit(case: Case, device: Device, config: Vector) -> str | None:
    """Likewise for gates by multiplying and adding: a program holds both gates' columns in registers."""
    if reason := unfit(case, device, config.block_n, type(config)().block_n):
        return reason
    if case["B"] > 16:
        return f"a batch of {case['B']} wants matrix instructions"
    if config.rows >= 2 * case["B"]:
        return f"rows={config.rows} is at least twice the {case['B']} there are"
    held = 2 * triton.next_power_of_2(case["n"]) * columns(case["n"], config.block_n) * case.bytes_per_element()
    registers = held // (4 * (device.warp_size or 32) * config.num_warps)
    if registers > 128:
        return f"both gates' weights are {registers} registers a thread with {config.num_warps} warps, at most 128 fit"
    return None
