"""Calls the compiled kernels of _lru_numba.py and _lru_numba_gradient.py: work items, scratch, addresses, threads.

x may have any strides of batch and time; a tensor whose channels are not contiguous is copied first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import ordinary
from griffin_kernels.ops import _native, _native_amx, _threads
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru import _lru_numba, _lru_numba_amx, _lru_numba_gradient, _lru_numba_tiles
from griffin_kernels.ops.rg_lru.op import DECAY, Call, is_fresh
from griffin_kernels.ops.rg_lru_bwd.op import Call as BackwardCall

if TYPE_CHECKING:
    from griffin_kernels.ops.recurrent_block.op import Call as BlockCall
    from griffin_kernels.ops.recurrent_block_bwd.op import Call as BlockBackwardCall

_FEW = 24
"""Rows up to which weights are used where they are: packing them would cost more than it saves."""
_ITEMS = 16
"""Items that a backward is cut into, at least, if there are as many gate blocks and batch rows."""
_WORK = 64
"""Multiply-adds that cost as much as an element of a plain scan: what ``_threads`` counts in."""

_FORWARD = native.Family(_lru_numba.Fields, _lru_numba.FILES)
_BACKWARD = native.Family(_lru_numba.Fields, _lru_numba_gradient.FILES)
_ALONE = _lru_numba.Surroundings(*[0] * len(_lru_numba.Surroundings._fields))
_FORWARD_ONLY = _lru_numba.Backward(*[0] * len(_lru_numba.Backward._fields))


def collapsible(tensor: Tensor, group: int) -> Tensor:
    """With contiguous channels; where groups hold several batch rows, steps of a group are equally far apart."""
    tensor = native.rows(tensor)
    batch, time, _ = tensor.shape
    if group > 1 and batch > 1 and tensor.stride(0) != time * tensor.stride(1):
        return tensor.contiguous()
    return tensor


def plain(tensor: Tensor) -> Tensor:
    """Contiguous, itself if it is: a call that copies nothing must not cost more than its kernel."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.resolve_neg().contiguous()


def floats(tensor: Tensor) -> Tensor:
    """Contiguous float32."""
    return plain(tensor.float())


def carry_of(call: Any, state: Tensor | None) -> Tensor:
    """float32 [B or N, D], to be overwritten: a copy of the state, or zeros."""
    if state is not None:
        return floats(state.to(torch.float32, copy=True))
    return torch.zeros((rows_of(call.x.shape[0], call.cu_seqlens), call.x.shape[2]), dtype=torch.float32, device="cpu")


def rate_of(a_param: Tensor, c: float = DECAY) -> Tensor:
    """float64 [D]: log a = -c softplus(a_param) r = rate r."""
    return -c * torch.nn.functional.softplus(a_param.double())


def steps_at_a_time(call: Any, config: Any, group: int) -> int:
    """Rows of a block: whole tiles where they are multiplied on the matrix unit."""
    steps: int = min(config.block_t, group * call.x.shape[1])
    unit = _lru_numba_amx.multiplies(call.x.dtype, call.input_gate_bias.shape[1])
    return -(-steps // _native_amx.BLOCK) * _native_amx.BLOCK if unit else steps


class Around(NamedTuple):
    """What recurrent_block adds: convolution before, product with gelu(y) after.

    beside: [B,T,D] to fill, h or None; in the backward y's gradient.
    """

    call: BlockCall | BlockBackwardCall
    beside: Tensor | None

    def fields(self, group: int) -> tuple[_lru_numba.Surroundings, tuple[Tensor | None, ...]]:
        """Its fields, and tensors to keep while they are used."""
        y, segment_pos, state = self.call.y, self.call.segment_pos, self.call.conv_state
        (batch, time, width), taps = y.shape, self.call.conv_weight.shape[0]
        weight, bias = floats(self.call.conv_weight), floats(self.call.conv_bias)
        kept = None if state is None else floats(state)
        positions = None if segment_pos is None else segment_pos.long().expand(batch, time).contiguous()
        branch, sequences = collapsible(y, group), 0 if state is None else state.shape[0]
        fields = _lru_numba.Surroundings(
            *strided("y", branch, y.nbytes),
            taps=taps,
            weight=address("conv_weight", weight, 4 * taps * width),
            bias=address("conv_bias", bias, 4 * width),
            state=address("conv_state", kept, 4 * (sequences * (taps - 1) * width)),
            positions=address("segment_pos", positions, 8 * batch * time),
            beside=address("h", self.beside, y.nbytes),
        )
        return fields, (weight, bias, kept, positions, branch)

    def scratch(self, n: int, step: int) -> int:
        """Floats of scratch for the taps, and for the rows of x that a block of steps reads."""
        taps, chunks = self.call.conv_weight.shape[0], -(-n // _lru_numba_tiles.CHUNK)
        return (taps + 1) * chunks * _lru_numba_tiles.CHUNK + chunks * (step + taps - 1) * _lru_numba_tiles.STRIDE


class Kept(NamedTuple):
    """Where states go: keep int64 [B, T], rows of states [P, D], float32 whose channels are contiguous."""

    keep: Tensor
    states: Tensor


def _run(
    kernel: Any,
    call: Any,
    around: Around | None,
    state: Tensor,
    out: Tensor,
    group: int,
    step: int,
    part: int,
    packing: bool,
    scratch: int,
    backward: _lru_numba.Backward | None = None,
    kept: Kept | None = None,
) -> None:
    """Run a kernel on groups of batch rows and parts of gate blocks; others as in ``_lru_numba.Fields``.

    scratch: floats of a thread, without those of what is around. backward: the fields that it alone has.
    """
    (batch, time, width), (blocks, n) = call.x.shape, call.input_gate_bias.shape
    parts, sequences = -(-n // part), state.shape[0]
    items = -(-batch // group) * blocks * parts
    x = collapsible(call.x, group)
    weights = plain(call.input_gate_weight), plain(call.recurrence_gate_weight)
    biases = floats(call.input_gate_bias), floats(call.recurrence_gate_bias)
    rate = (rate_of(call.a_param) / math.log(2)).float()
    reset = None if call.segment_pos is None else (call.segment_pos == 0).contiguous()
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    keep, pool = (None, None) if kept is None else (kept.keep.contiguous(), kept.states)
    block, _held = (_ALONE, ()) if around is None else around.fields(group)
    scratch += 0 if around is None else around.scratch(n, step)
    unit = 0
    if _lru_numba_amx.multiplies(x.dtype, n):
        unit = -(-4 * scratch // _native.CACHE_LINE) * _native.CACHE_LINE
        scratch = unit // 4 + _lru_numba_amx.room(n, step).bytes // 4
    threads = _threads.threads_for(items, (2 if backward is None else 6) * batch * time * width * n // _WORK)
    size = -(-4 * scratch // 4096) * 4096
    room = memory.empty((threads * size // 4,), torch.float32)
    family = _FORWARD if backward is None else _BACKWARD
    fields = family.fields(
        block=block,
        backward=backward or _FORWARD_ONLY,
        x=strided("x", x, x.nbytes),
        biases=tuple([address("gate biases", bias, 4 * width) for bias in biases]),
        weights=tuple([address("gate weights", weight, x.itemsize * width * n) for weight in weights]),
        pool=strided("states", pool, 0 if pool is None else 4 * pool.shape[0] * width),
        workers=0,
        items=items,
        blocks=blocks,
        parts=parts,
        part=part,
        n=n,
        time=time,
        group=group * time,
        rows=batch * time,
        step=step,
        packing=packing,
        stream=out.nbytes >= native.STREAMED and n % part == 0 and native.in_lines(part, out),
        offsets=address("cu_seqlens", offsets, 4 * (sequences + 1)),
        sequences=sequences,
        reset=address("reset", reset, batch * time),
        fresh=is_fresh(call.h0, call.segment_pos),
        scratch=address("scratch", room, threads * size),
        scratch_bytes=size,
        unit=unit,
        rate=address("decay", rate, 4 * width),
        state=address("state", state, 4 * sequences * width),
        keep=address("keep", keep, 8 * batch * time),
        out=address("output", out, x.nbytes),
    )
    family.run(x.dtype, None, fields, (kernel, threads))


def forward(call: Call, config: Any, around: Around | None = None, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
    """rg_lru by blocks of ``block_t`` steps; an item has up to ``block_d`` channels of one gate block."""
    x, n, v = call.x, call.input_gate_bias.shape[1], _native.lanes()
    out, state = memory.empty(x.shape, x.dtype), carry_of(call, call.h0)
    if out.numel() == 0:
        return out, state
    batch, time, _ = x.shape
    part = min(config.block_d, -(-n // v) * v)
    group = max(1, min(batch, config.block_t // time))
    step = steps_at_a_time(call, config, group)
    packing = x.dtype != torch.float32 or n % v != 0 or group * time > _FEW
    arrays = -(-n // _lru_numba_tiles.CHUNK) + (1 if around is None else 2)
    scratch = arrays * step * _lru_numba_tiles.STRIDE + 2 * v * step + 4 * part + 2 * n * part
    _run(_lru_numba.forward, call, around, state, out, group, step, part, packing, scratch, kept=kept)
    return out, state


def backward(call: BackwardCall, config: Any, around: Around | None = None) -> tuple[Tensor | None, ...]:
    """rg_lru_bwd by blocks of ``block_t`` steps; an item is a gate block and some batch rows.

    With ``around`` dy and y are recurrent_block's dout and h, and the gradient of u = conv(x) is given in dx's place.
    """
    x, v = call.x, _native.lanes()
    (batch, time, width), (blocks, n) = x.shape, call.input_gate_bias.shape
    pitch = -(-n // (2 * v)) * 2 * v
    # never by the number of threads: sums are the same on every machine
    wanted = max(1, min(batch, _ITEMS // blocks))
    group = max(-(-batch // wanted), min(batch, config.block_t // max(time, 1)), 1)
    groups = -(-batch // group)
    dweights = [memory.empty((groups, blocks, n, pitch), torch.float32).zero_() for _ in range(2)]
    dx, state = memory.empty(x.shape, x.dtype), carry_of(call, call.dh_last)
    sums = torch.zeros((groups, 3, width), dtype=torch.float32, device="cpu")
    if x.numel():
        dy, y, natural_rate = collapsible(call.dy, group), collapsible(call.y, group), rate_of(call.a_param).float()
        before = None if call.h0 is None else floats(call.h0)
        own = _lru_numba.Backward(
            *strided("y", y, x.nbytes),
            *strided("dy", dy, x.nbytes),
            dweight_i=address("dinput_gate_weight", dweights[0], 4 * groups * blocks * n * pitch),
            dweight_r=address("drecurrence_gate_weight", dweights[1], 4 * groups * blocks * n * pitch),
            pitch=pitch,
            rate=address("decay", natural_rate, 4 * width),
            before=address("h0", before, 4 * state.shape[0] * width),
            sums=address("sums", sums, 4 * groups * 3 * width),
        )
        step, padded = steps_at_a_time(call, config, group), -(-n // v) * v
        arrays = 4 * -(-n // _lru_numba_tiles.CHUNK)
        scratch = arrays * step * _lru_numba_tiles.STRIDE + 2 * v * step + 8 * padded + 2 * n * (padded + pitch)
        kernel = _lru_numba_gradient.backward if around is None else _lru_numba_gradient.block_backward
        _run(kernel, call, around, state, dx, group, step, n, True, scratch, own)
    through_r, through_z_i, through_z_r = sums.sum(0).unbind(0)
    a_param = call.a_param
    da_param = (through_r * torch.sigmoid(a_param.float())).mul_(-DECAY).to(a_param.dtype)
    dweight_i, dweight_r = (
        ordinary((total[0] if groups == 1 else total.sum(0))[..., :n].to(x.dtype)) for total in dweights
    )
    of_biases = (through_z_i, call.input_gate_bias), (through_z_r, call.recurrence_gate_bias)
    dbias_i, dbias_r = (total.reshape(blocks, n).to(bias.dtype, copy=True) for total, bias in of_biases)
    return dx, da_param, dweight_i, dbias_i, dweight_r, dbias_r, None if call.h0 is None else state
