"""The functions of causal-conv1d, which Mamba's code calls, and the form with pools that vLLM made of them.

    import griffin_kernels.compat.causal_conv1d as causal_conv1d

They have time last: x [B,D,T], weight [D,K], states [B,D,K-1]. Here that is a view, [B,T,D], of which kernels run as it
is where channels are neighbours in memory (``x.stride(1) == 1``, "channels last" there); else most copy it first.
Any number of taps will do. Source: github.com/Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py; vLLM,
model_executor/layers/mamba/ops/causal_conv1d.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.functional import (
    last_tokens,
    segment_positions,
    temporal_conv1d,
    temporal_conv1d_extend,
    temporal_conv1d_step,
)
from griffin_kernels.ops import _slots


def activation_of(chosen: bool | str | None) -> str | None:
    """Ours by its name there: "swish" is silu, and so is True in vLLM's functions."""
    if isinstance(chosen, bool):
        return "silu" if chosen else None
    return "silu" if chosen == "swish" else chosen


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    conv_states: Tensor | None = None,
    query_start_loc: Tensor | None = None,
    cache_indices: Tensor | None = None,
    has_initial_state: Tensor | None = None,
    pad_slot_id: int = -1,
) -> Tensor | tuple[Tensor, Tensor]:
    """The convolution on sequences, differentiable; with ``conv_states`` that of vLLM, which is not.

    x: [B, D, T]. weight: [D, K]. bias: [D]. activation: None, "silu", "swish" (the same) or "gelu" in its tanh form.
    seq_idx: int32 or int64 [B, T], the number of each token's document; negative for padding, whose output is 0.
    initial_states: [B, D, K-1]. final_states_out: [B, D, K-1], written and returned with ``return_final_states``.
    conv_states: [P, D, K-1], the pool, changed in place. cache_indices: [N], the row of each sequence, by which it
        starts where has_initial_state, bool [N], holds, and in which its last inputs are kept; row n if None. Those
        that are ``pad_slot_id`` or negative neither start from nor are kept in a row.
    query_start_loc: int32 or int64 [N+1], offsets of sequences packed into x [D, T] or [1, D, T].

    Returns y like x, and with ``return_final_states`` the last K-1 inputs [B, D, K-1]. As in the original, seq_idx and
    states exclude each other.
    """
    if conv_states is not None:
        if seq_idx is not None or initial_states is not None or return_final_states or final_states_out is not None:
            raise errors.ArgumentError("conv_states excludes seq_idx, initial_states and final states: they are in it")
        pools = conv_states, query_start_loc, cache_indices, has_initial_state, pad_slot_id
        return _with_pool(x, weight, bias, activation, *pools)
    for name, value in (
        ("query_start_loc", query_start_loc),
        ("cache_indices", cache_indices),
        ("has_initial_state", has_initial_state),
    ):
        if value is not None:
            raise errors.ArgumentError(f"{name} goes with conv_states, which is None")
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise errors.ArgumentError("seq_idx excludes initial_states and return_final_states")
    if final_states_out is not None and not return_final_states:
        raise errors.ArgumentError("final_states_out is only written with return_final_states=True")
    y, after = temporal_conv1d(
        x.transpose(1, 2),
        weight.t(),
        bias,
        state=None if initial_states is None else initial_states.transpose(1, 2),
        segment_pos=None if seq_idx is None else segment_positions(seq_idx),
        activation=activation_of(activation),
    )
    if seq_idx is not None:
        y = y.masked_fill((seq_idx < 0)[..., None], 0.0)
    out = y.transpose(1, 2)
    if not return_final_states:
        return out
    final = after.transpose(1, 2)
    return out, final if final_states_out is None else final_states_out.copy_(final)


@torch.no_grad()
def _with_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    states: Tensor,
    offsets: Tensor | None,
    rows: Tensor | None,
    started: Tensor | None,
    pad: int,
) -> Tensor:
    taps, length = weight.shape[1], states.shape[-1]
    if length != taps - 1:
        sides = (
            f"the last columns, conv_states[..., {length - taps + 1}:], or vLLM's first, conv_states[..., :{taps - 1}]"
        )
        longer = f": of a longer pool pass {sides}" if length >= taps else ""
        raise errors.ShapeError(f"conv_states has {length} columns, expected K-1={taps - 1}{longer}")
    packed = x[None] if x.dim() == 2 else x
    if offsets is None and x.dim() == 2:
        raise errors.ArgumentError("x has two dimensions, which are packed sequences: pass query_start_loc")
    count, steps = packed.shape[0] if offsets is None else offsets.shape[0] - 1, packed.shape[2]
    if rows is None:
        rows = torch.arange(count, dtype=torch.int64, device=x.device)
    kept = torch.where(rows == pad, -1, rows).long()
    slots = torch.full_like(kept, -1) if started is None else torch.where(started, kept, -1)
    y = temporal_conv1d_extend(
        packed.transpose(1, 2),
        weight.t(),
        bias,
        states.transpose(1, 2),
        slots,
        last_tokens(kept, steps, offsets),
        cu_seqlens=offsets,
        activation=activation_of(activation),
    )
    out = y.transpose(1, 2)
    return out[0] if x.dim() == 2 else out


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The next tokens of every row, ``conv_state`` changed in place; it has no gradient, as in the original.

    x: [B, D], or [B, D, T] for several tokens. conv_state: [B, D, L], L >= K-1, the last inputs. weight: [D, K].
    bias: [D]. activation: as in causal_conv1d_fn.
    cache_seqlens: int32 [B], how many tokens each row has seen: conv_state is then a ring, in which token t lies at
        t modulo L. It has room for T tokens; a call of more is refused.
    conv_state_indices: int32 [B], the row of conv_state [P, D, L] of each row of x; negative for padding, whose output
        is 0.

    Returns y like x. One token on a state of K-1 columns is one kernel, ``temporal_conv1d_step``; other calls gather
    and scatter around ``temporal_conv1d``.
    """
    taps, length = weight.shape[1], conv_state.shape[2]
    if length < taps - 1:
        raise errors.ShapeError(f"conv_state has {length} columns, expected at least K-1={taps - 1}")
    tokens = x[..., None] if x.dim() == 2 else x
    steps = tokens.shape[2]
    chosen, indices = activation_of(activation), None if conv_state_indices is None else conv_state_indices.long()
    if cache_seqlens is None and steps == 1 and length == taps - 1:
        rows = tokens[..., 0], weight.t(), bias, conv_state.transpose(1, 2)
        y = temporal_conv1d_step(*rows, slots=indices, activation=chosen)
        return y if x.dim() == 2 else y[..., None]
    state = _slots.rows(conv_state, indices)  # [B, D, L]
    if cache_seqlens is None:
        joined = torch.cat([state, tokens], dim=2)
        before, after = state[..., length - (taps - 1) :], joined[..., steps:]
    else:
        if steps > length:
            raise errors.ArgumentError(f"x has {steps} tokens, conv_state is a ring of {length}")
        seen, device = cache_seqlens.long()[:, None], x.device
        last = (torch.arange(1 - taps, 0, dtype=torch.int64, device=device) + seen).remainder(length)
        new = (torch.arange(steps, dtype=torch.int64, device=device) + seen).remainder(length)
        before = state.gather(2, last[:, None].expand(-1, tokens.shape[1], -1))
        after = state.scatter(2, new[:, None].expand(-1, tokens.shape[1], -1), tokens)
    y, _ = temporal_conv1d(tokens.transpose(1, 2), weight.t(), bias, state=before.transpose(1, 2), activation=chosen)
    _slots.write(conv_state, indices, after)
    out = _slots.silence(y.transpose(1, 2), indices)
    return out[..., 0] if x.dim() == 2 else out
