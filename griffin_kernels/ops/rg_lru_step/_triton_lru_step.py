"""The kernels of the one-token RG-LRU, alone or between a convolution and a gelu; both states in place.

A program computes some output channels of one gate block for some batch rows. It reads all n inputs of the block, after
the convolution where there is one (TAPS > 0). Only a program that owns the whole block moves what the convolution keeps
(ALONE): others would read it half moved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.elementwise import gelu
from griffin_kernels.ops._triton.tensors import Channels
from griffin_kernels.ops.rg_lru._triton_lru import gates_of, load_gates
from griffin_kernels.ops.temporal_conv1d_step._triton_conv_step import convolve, keep, newest, tokens_of


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
    current = newest(x, tokens, channel, there)
    if shape.taps == 0:
        u = current.to(tl.float32)
    else:
        u = convolve(current, conv, tokens, channel, there, shape.width, shape.taps, tl.float32)
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
        keep(newest(x, tokens, channel, there), conv, tokens, channel, there, shape.taps)
    i, _, a, _, m = gates_of(z_i, z_r, load_gates(parameters, Channels(channel, there, None)), False)
    goes_on = inside
    if tokens.position is not None:
        m = tl.where(tokens.position == 0, 1.0, m)
        goes_on = inside & (tokens.position != 0)
    state = h.at + (tokens.slot * h.row + channel * h.channel)
    new = a * tl.load(state, mask=goes_on, other=0.0) + m * i * u
    tl.debug_barrier()  # a layout may have several threads read an element, and none may read it after the store
    tl.store(state, new, mask=inside)
    if y is not None:
        branch = tl.load(y.at + (tokens.row * y.row + channel * y.channel), mask=inside, other=0.0)
        new *= gelu(branch.to(tl.float32), False)
    new = tl.where(tokens.works, new, 0.0)
    tl.store(out + (tokens.row * shape.width + channel), new.to(out.dtype.element_ty), mask=there & tokens.exists)


@triton.jit(do_not_specialize=["B", "P"])
def step_by_dot(x, y, conv, parameters, h, indices, out, B, P, shape):
    """x, y, out: [B,D]; h: [P,D]. Tiles are channels by rows: the matrix instructions' long side is the channels'.

    Grid: H * ceil(n / block_n), ceil(B / block_b).
    """
    block, column = own_columns(shape)
    first = block * shape.n
    tokens = tokens_of((tl.program_id(1) * shape.block_b + tl.arange(0, shape.block_b))[None, :], indices, B, P)
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
        tokens = tokens_of(tl.program_id(1) * shape.block_b + r, indices, B, P)
        seen = enter(x, conv, tokens, first + k, k < shape.n, shape)[:, None]
        z_i = tl.sum(seen * w_i.to(tl.float32), 0)
        z_r = tl.sum(seen * w_r.to(tl.float32), 0)
        finish(z_i, z_r, x, y, conv, parameters, h, out, tokens, first, column, shape)
