"""Calls the compiled kernels of _numba.py and _numba_backward.py: work items, scratch, addresses, threads.

x may have any strides of batch and time; a tensor whose channels are not contiguous is copied first.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import ordinary
from griffin_kernels.ops import _native, _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.recurrent_block.op import Call as BlockCall
from griffin_kernels.ops.recurrent_block_bwd.op import Call as BlockBackwardCall
from griffin_kernels.ops.rg_lru import _numba, _numba_backward, _numba_tiles
from griffin_kernels.ops.rg_lru.op import DECAY, Call, is_fresh
from griffin_kernels.ops.rg_lru_bwd.op import Call as BackwardCall

_STREAMED = 16 * 2**20
"""Bytes of output from which it is written past the caches: little of it would be left there for a reader."""
_LINE = 64
_FEW = 24
"""Rows up to which weights are used where they are: packing them would cost more than it saves."""
_ITEMS = 16
"""Items that a backward is cut into, at least, if there are as many gate blocks and batch rows."""
_WORK = 64
"""Multiply-adds that cost as much as an element of a plain scan: what ``_threads`` counts in."""


def rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, with contiguous channels."""
    if (tensor.stride(-1) != 1 and tensor.shape[-1] != 1) or tensor.is_neg():
        return tensor.resolve_neg().contiguous()
    return tensor


def collapsible(tensor: Tensor, group: int) -> Tensor:
    """As ``rows``; where groups hold several batch rows, steps of a group are equally far apart."""
    tensor = rows(tensor)
    batch, time, _ = tensor.shape
    if group > 1 and batch > 1 and tensor.stride(0) != time * tensor.stride(1):
        return tensor.contiguous()
    return tensor


def plain(tensor: Tensor) -> Tensor:
    """Contiguous."""
    return tensor.resolve_neg().contiguous()


def floats(tensor: Tensor) -> Tensor:
    """Contiguous float32."""
    return plain(tensor.float())


def rate_of(a_param: Tensor) -> Tensor:
    """float64 [D]: log a = rate r."""
    return -DECAY * torch.nn.functional.softplus(a_param.double())


def reset_of(segment_pos: Tensor | None) -> Tensor | None:
    """bool [B,T] contiguous, or None."""
    return None if segment_pos is None else (segment_pos == 0).contiguous()


def run(
    kernel: Any,
    files: tuple[str, ...],
    dtype: torch.dtype,
    values: tuple[int, ...],
    items: int,
    work: int,
    floats_each: int,
) -> None:
    """Run a kernel made from ``files`` on ``values``, its FIELDS from ``items`` on, with scratch for every thread.

    work: multiply-adds of all items. floats_each: scratch of one thread.
    """
    threads = _threads.threads_for(items, work // _WORK)
    size = -(-4 * floats_each // 4096) * 4096
    scratch = memory.empty((threads * size // 4,), torch.float32)
    at = _numba.FIELDS.index("scratch")
    fields = array("q", (0, 0, *values))
    fields[at], fields[at + 1] = address("scratch", scratch, threads * size), size
    _threads.run(_native.compiled(kernel, dtype, files), fields.buffer_info()[0], threads)


class Around(NamedTuple):
    """What recurrent_block adds: convolution before, product with gelu(y) after.

    beside: [B,T,D] to fill, h or None; in the backward y's gradient.
    """

    call: BlockCall | BlockBackwardCall
    beside: Tensor | None

    def fields(self, group: int) -> tuple[tuple[int, ...], tuple[Tensor | None, ...]]:
        """Values of the fields from ``taps`` to those of the branch, and tensors to keep while they are used."""
        y, segment_pos, state = self.call.y, self.call.segment_pos, self.call.conv_state
        batch, time, width = y.shape
        taps = self.call.conv_weight.shape[0]
        sequences = 0 if state is None else state.shape[0]
        held = (
            floats(self.call.conv_weight),
            floats(self.call.conv_bias),
            None if state is None else floats(state),
            None if segment_pos is None else segment_pos.long().expand(batch, time).contiguous(),
            self.beside,
        )
        branch = collapsible(y, group)
        values = (
            taps,
            address("conv_weight", held[0], 4 * taps * width),
            address("conv_bias", held[1], 4 * width),
            address("conv_state", held[2], 4 * (sequences * (taps - 1) * width)),
            address("segment_pos", held[3], 8 * batch * time),
            address("h", held[4], y.nbytes),
            *strided("y", branch, y.nbytes),
        )
        return values, (*held, branch)

    def scratch(self, n: int, step: int) -> int:
        """Floats of scratch for the taps, and for the rows of x that a block of steps reads."""
        taps, chunks = self.call.conv_weight.shape[0], -(-n // _numba_tiles.CHUNK)
        return (taps + 1) * chunks * _numba_tiles.CHUNK + chunks * (step + taps - 1) * _numba_tiles.STRIDE


_NOTHING_AROUND = (0,) * (_numba.FIELDS.index("y") - _numba.FIELDS.index("taps"))


def forward(call: Call, config: Any, around: Around | None = None) -> tuple[Tensor, Tensor]:
    """rg_lru by blocks of ``block_t`` steps; an item has up to ``block_d`` channels of one gate block."""
    x, a_param, input_weight, input_bias, recurrence_weight, recurrence_bias, h0, segment_pos, cu_seqlens = call
    step, part = config.block_t, config.block_d
    batch, time, width = x.shape
    blocks, n = input_bias.shape
    sequences = rows_of(batch, cu_seqlens)
    out = memory.empty(x.shape, x.dtype)
    state = (
        torch.zeros((sequences, width), dtype=torch.float32, device="cpu")
        if h0 is None
        else floats(h0.to(torch.float32, copy=True))
    )
    if out.numel() == 0:
        return out, state
    v = _native.lanes()
    part = min(part, -(-n // v) * v)
    parts = -(-n // part)
    group = max(1, min(batch, step // time))  # batch rows
    groups = -(-batch // group)
    x = collapsible(x, group)
    weights = plain(input_weight), plain(recurrence_weight)
    rate = (rate_of(a_param) / math.log(2)).float()
    biases = floats(input_bias), floats(recurrence_bias)
    reset = reset_of(segment_pos)
    offsets = None if cu_seqlens is None else cu_seqlens.contiguous()
    packing = x.dtype != torch.float32 or n % v != 0 or group * time > _FEW
    row, piece = width * out.element_size(), part * out.element_size()
    aligned = row % _LINE == 0 and piece % _LINE == 0 and n % part == 0 and out.data_ptr() % _LINE == 0
    step = min(step, group * time)
    chunks = -(-n // _numba_tiles.CHUNK)
    scratch = (chunks + 1) * step * _numba_tiles.STRIDE + 2 * v * step + 4 * part + 2 * n * part
    extra, _held = (_NOTHING_AROUND, ()) if around is None else around.fields(group)
    if around is not None:
        scratch += step * _numba_tiles.STRIDE + around.scratch(n, step)
    # in the order of _numba.FIELDS, from the third on
    values = (
        groups * blocks * parts,
        blocks,
        parts,
        part,
        n,
        time,
        group * time,
        batch * time,
        step,
        packing,
        aligned and out.nbytes >= _STREAMED,
        address("cu_seqlens", offsets, 4 * (sequences + 1)),
        sequences,
        address("reset", reset, batch * time),
        is_fresh(h0, segment_pos),
        0,
        0,
        address("input_gate_bias", biases[0], 4 * width),
        address("recurrence_gate_bias", biases[1], 4 * width),
        address("decay", rate, 4 * width),
        address("state", state, 4 * sequences * width),
        address("input_gate_weight", weights[0], x.itemsize * width * n),
        address("recurrence_gate_weight", weights[1], x.itemsize * width * n),
        *strided("x", x, x.nbytes),
        address("output", out, x.nbytes),
        *extra,
        *(0,) * (len(_numba.FIELDS) - _numba.FIELDS.index("y")),
    )
    work = 2 * batch * time * width * n
    run(_numba.forward, _numba.FILES, x.dtype, values, groups * blocks * parts, work, scratch)
    return out, state


def backward(call: BackwardCall, config: Any, around: Around | None = None) -> tuple[Tensor | None, ...]:
    """rg_lru_bwd by blocks of ``block_t`` steps; an item is a gate block and some batch rows.

    With ``around`` dy and y are recurrent_block's dout and h, and the gradient of u = conv(x) is given in dx's place.
    """
    (
        dy,
        dh_last,
        x,
        a_param,
        input_weight,
        input_bias,
        recurrence_weight,
        recurrence_bias,
        y,
        h0,
        segment_pos,
        cu_seqlens,
    ) = call
    step = config.block_t
    batch, time, width = x.shape
    blocks, n = input_bias.shape
    sequences = rows_of(batch, cu_seqlens)
    v = _native.lanes()
    pitch = -(-n // (2 * v)) * 2 * v
    # never by the number of threads: sums are the same on every machine
    wanted = max(1, min(batch, _ITEMS // blocks))
    group = max(-(-batch // wanted), min(batch, step // max(time, 1)), 1)
    groups = -(-batch // group)
    dweights = [memory.empty((groups, blocks, n, pitch), torch.float32).zero_() for _ in range(2)]
    sums = (
        torch.empty((groups, 3, width), dtype=torch.float32, device="cpu")
        if x.numel()
        else torch.zeros((1, 3, width), dtype=torch.float32, device="cpu")
    )
    state = (
        torch.zeros((sequences, width), dtype=torch.float32, device="cpu")
        if dh_last is None
        else floats(dh_last.clone())
    )
    dx = memory.empty(x.shape, x.dtype)
    rate = rate_of(a_param)
    if x.numel():
        x, dy, y = collapsible(x, group), collapsible(dy, group), collapsible(y, group)
        weights = plain(input_weight), plain(recurrence_weight)
        biases = floats(input_bias), floats(recurrence_bias)
        rates = (rate / math.log(2)).float(), rate.float()
        before = None if h0 is None else floats(h0)
        reset = reset_of(segment_pos)
        offsets = None if cu_seqlens is None else cu_seqlens.contiguous()
        aligned = width * dx.element_size() % _LINE == 0 and n * dx.element_size() % _LINE == 0
        step = min(step, group * time)
        extra, _held = (_NOTHING_AROUND, ()) if around is None else around.fields(group)
        # in the order of _numba.FIELDS, from the third on
        values = (
            groups * blocks,
            blocks,
            1,
            n,
            n,
            time,
            group * time,
            batch * time,
            step,
            1,
            aligned and dx.data_ptr() % _LINE == 0 and dx.nbytes >= _STREAMED,
            address("cu_seqlens", offsets, 4 * (sequences + 1)),
            sequences,
            address("reset", reset, batch * time),
            is_fresh(h0, segment_pos),
            0,
            0,
            address("input_gate_bias", biases[0], 4 * width),
            address("recurrence_gate_bias", biases[1], 4 * width),
            address("decay", rates[0], 4 * width),
            address("state", state, 4 * sequences * width),
            address("input_gate_weight", weights[0], x.itemsize * width * n),
            address("recurrence_gate_weight", weights[1], x.itemsize * width * n),
            *strided("x", x, x.nbytes),
            address("dx", dx, x.nbytes),
            *extra,
            *strided("y", y, x.nbytes),
            *strided("dy", dy, x.nbytes),
            address("decay", rates[1], 4 * width),
            address("h0", before, 4 * sequences * width),
            pitch,
            address("dinput_gate_weight", dweights[0], 4 * groups * blocks * n * pitch),
            address("drecurrence_gate_weight", dweights[1], 4 * groups * blocks * n * pitch),
            address("sums", sums, 4 * groups * 3 * width),
        )
        padded, arrays = -(-n // v) * v, 4 * -(-n // _numba_tiles.CHUNK)
        scratch = arrays * step * _numba_tiles.STRIDE + 2 * v * step + 8 * padded + 2 * n * (padded + pitch)
        if around is not None:
            scratch += around.scratch(n, step)
        kernel = _numba_backward.backward if around is None else _numba_backward.block_backward
        work = 6 * batch * time * width * n
        run(kernel, _numba_backward.FILES, x.dtype, values, groups * blocks, work, scratch)
    through_r, through_z_i, through_z_r = sums.sum(0).unbind(0)
    da_param = (through_r * torch.sigmoid(a_param.float())).mul_(-DECAY).to(a_param.dtype)
    dweight_i, dweight_r = (
        ordinary((total[0] if groups == 1 else total.sum(0))[..., :n].to(x.dtype)) for total in dweights
    )
    dbias_i, dbias_r = (total.reshape(blocks, n).to(x.dtype, copy=True) for total in (through_z_i, through_z_r))
    return dx, da_param, dweight_i, dbias_i, dweight_r, dbias_r, None if h0 is None else state
