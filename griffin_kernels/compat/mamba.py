"""vLLM's functions of Mamba layers, whose states lie in slots of pools: ``import griffin_kernels.compat.mamba``.

They have its positional arguments, time last, and change pools in place; none has a gradient. A pool of last inputs is
conv_states [P, D, L], L >= K-1. A sequence's history is its first K-1 columns, oldest first; further ones are room for
guesses that ``num_accepted_tokens`` settles a call later. causal-conv1d has a longer state the other way, its history
in the last columns, and so has ``compat.causal_conv1d``. Pools of states of Mamba's scan are [P, .., dim, dstate].
Source: github.com/vllm-project/vllm, model_executor/layers/mamba/ops/causal_conv1d.py and mamba_ssm.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.compat import causal_conv1d
from griffin_kernels.functional import (
    last_tokens,
    linear_scan_step,
    temporal_conv1d,
    temporal_conv1d_extend,
    temporal_conv1d_step,
)
from griffin_kernels.ops import _slots

_PLANS = ("metadata", "validate_data", "is_blackwell", "cache_philox_rounds")
"""Arguments of the originals that plan or check their launches: nothing here needs them."""


def _refuse(function: str, others: dict[str, Any]) -> None:
    """ArgumentError where an argument is given that has no form here."""
    for name, value in others.items():
        # None, False and 0 are how the originals leave one out
        if name not in _PLANS and (isinstance(value, Tensor) or value):
            raise errors.ArgumentError(f"{function} does not take {name}, expected it to be left out")


def _marked(slots: Tensor | None, pad: int | None) -> Tensor | None:
    """Slots with -1 for those that pad."""
    return slots if slots is None or pad is None else slots.long().masked_fill(slots == pad, -1)


@torch.no_grad()
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor | None = None,
    has_initial_state: Tensor | None = None,
    activation: bool | str | None = "silu",
    pad_slot_id: int = -1,
    **others: Any,
) -> Tensor:
    """The convolution of packed prompts, each of which starts from a slot and leaves its last inputs there.

    x: [D, T]. weight: [D, K]. bias: [D] or None. conv_states: [P, D, L], L >= K-1. query_start_loc: int32 or int64
    [N+1], offsets. cache_indices: [N], slots; n if None. has_initial_state: bool [N], where a sequence goes on; none
    does if None. Slots that are ``pad_slot_id`` or negative are neither read nor written. activation: None, True,
    "silu", "swish" or "gelu". Blocks of a prefix cache (``block_idx_first_scheduled_token`` and its like) are refused.

    Returns y [D, T] in x's dtype, computed in that of the pool. It is ``temporal_conv1d_extend``.
    """
    _refuse("causal_conv1d_fn", others)
    y = causal_conv1d.causal_conv1d_fn(
        x.to(conv_states.dtype),
        weight,
        bias,
        activation=causal_conv1d.activation_of(activation),
        conv_states=conv_states[..., : weight.shape[1] - 1],
        query_start_loc=query_start_loc,
        cache_indices=cache_indices,
        has_initial_state=has_initial_state,
        pad_slot_id=pad_slot_id,
    )
    assert isinstance(y, Tensor)  # final states are asked for by none
    return y.to(x.dtype)


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: bool | str | None = None,
    conv_state_indices: Tensor | None = None,
    num_accepted_tokens: Tensor | None = None,
    query_start_loc: Tensor | None = None,
    max_query_len: int = -1,
    pad_slot_id: int = -1,
    **others: Any,
) -> Tensor:
    """The next tokens of every sequence, or guesses at them.

    x: [N, D], [N, D, S], or with query_start_loc, int32 or int64 [N+1], packed tokens [T, D]. weight: [D, K]. bias: [D]
    or None. conv_state: [P, D, L], L >= K-1. activation: as in causal_conv1d_fn.
    conv_state_indices: [N], slots; n if None. Those that are ``pad_slot_id`` or negative are neither read nor written.
    num_accepted_tokens: [N], 1 or more: how many of the last call's tokens hold. The history is then the K-1 columns
        that end with the last of those, and all tokens of this call are kept behind its last K-2: that takes K-2+S
        columns, of which the call after this one says how many hold. Others stay as they are.
    max_query_len: the most tokens of a packed sequence, by which room for them is checked.

    Returns y like x; 0 for padding where x is not packed, and for packed padding what zeros before it give.
    One token each is ``temporal_conv1d_step``, several are ``temporal_conv1d_extend``. Guesses are
    ``temporal_conv1d`` between a gather and a scatter of whole slots. Without num_accepted_tokens a packed sequence
    keeps its last K-1 inputs whatever max_query_len is. Trees of guesses and blocks of a prefix cache are refused.
    """
    _refuse("causal_conv1d_update", others)
    taps, length, packed = weight.shape[1], conv_state.shape[2], query_start_loc is not None
    if length < taps - 1:
        raise errors.ShapeError(f"conv_state has {length} columns, expected at least K-1={taps - 1}")
    if packed and (x.dim() != 2 or conv_state_indices is None):
        raise errors.ArgumentError("query_start_loc goes with x [T, D] and with conv_state_indices")
    data = x.to(conv_state.dtype)
    tokens = data[None] if packed else data[:, None] if x.dim() == 2 else data.transpose(1, 2)  # [B, T, D]
    filters = weight.t(), bias
    options: dict[str, Any] = {"activation": causal_conv1d.activation_of(activation)}
    slots = _marked(conv_state_indices, pad_slot_id)
    if slots is None:
        slots = torch.arange(tokens.shape[0], dtype=torch.int64, device=x.device)
    history = conv_state[..., : taps - 1].transpose(1, 2)
    if num_accepted_tokens is not None:
        steps = max_query_len if packed else tokens.shape[1]
        if taps - 2 + steps > length:
            raise errors.ShapeError(
                f"conv_state has {length} columns, expected K-2 + {steps} tokens = {taps - 2 + steps}"
            )
        y = _guesses(tokens, filters, conv_state, slots, num_accepted_tokens.long(), query_start_loc, options)
    elif not packed and tokens.shape[1] == 1:
        y = temporal_conv1d_step(tokens[:, 0], *filters, history, slots=slots, **options)[:, None]
    else:
        kept = last_tokens(slots, tokens.shape[1], query_start_loc)
        y = temporal_conv1d_extend(tokens, *filters, history, slots, kept, cu_seqlens=query_start_loc, **options)
    if packed:
        return y[0].to(x.dtype)
    out = _slots.silence(y.transpose(1, 2), slots).to(x.dtype)
    return out[..., 0] if x.dim() == 2 else out


def _guesses(
    tokens: Tensor,
    filters: tuple[Tensor, Tensor | None],
    pool: Tensor,
    slots: Tensor,
    accepted: Tensor,
    offsets: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """y [B, T, D] from the histories that accepted tokens end; slots then hold their last K-2 inputs and all tokens."""
    (taps, width), device, length = filters[0].shape, tokens.device, pool.shape[2]
    held = _slots.rows(pool, slots)  # [N, D, L]
    most = length - taps + 2
    if accepted.device.type == "cpu" and bool(((slots >= 0) & ((accepted < 1) | (accepted > most))).any()):
        raise errors.ArgumentError(
            f"num_accepted_tokens is beyond 1 to {most}, the tokens that conv_state has room for"
        )
    # those that pad may have any number; a GPU's are not looked at
    columns = accepted.clamp(1, most)[:, None] - 1 + torch.arange(taps - 1, dtype=torch.int64, device=device)
    before = held.gather(2, columns[:, None].expand(-1, width, -1)).masked_fill((slots < 0)[:, None, None], 0.0)
    y, _ = temporal_conv1d(tokens, *filters, state=before.transpose(1, 2), cu_seqlens=offsets, **options)
    kept = max(taps - 2, 0)
    if offsets is None:
        after = torch.cat([before[..., 1:], tokens.transpose(1, 2), held[..., kept + tokens.shape[1] :]], dim=2)
    else:
        begins, places = offsets.to(device).long(), torch.arange(tokens.shape[1], dtype=torch.int64, device=device)
        row = torch.searchsorted(begins, places, right=True) - 1
        # a column more, for tokens past the last sequence
        column = torch.where(places < begins[-1], kept + places - begins[row], length).clamp_max(length)
        after = torch.cat([before[..., 1:], held[..., kept:], held[..., :1]], dim=2)
        if len(slots):
            after[row.clamp_max(len(slots) - 1), :, column] = tokens[0]
        after = torch.where((begins.diff() > 0)[:, None, None], after[..., :length], held)
    _slots.write(pool, slots, after)
    return y


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
    dst_state_batch_indices: Tensor | None = None,
    pad_slot_id: int = -1,
    out: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """One token of Mamba's scan: s = exp(dt A) s + dt B x, y = (C s + D x) silu(z), per head and channel.

    state: [P, dim, dstate] or [P, heads, dim, dstate], float32 (float64 for float64); other dtypes are refused. Each
        slot is one piece of memory, slots may lie apart.
    x, dt, z: [N, dim] or [N, heads, dim]. A: [dim, dstate] or [heads, dim, dstate]. B, C: [N, dstate] or
        [N, groups, dstate], a group for heads / groups heads. D, dt_bias: [dim] or [heads, dim].
    dt_softplus: dt is softplus(dt + dt_bias).
    state_batch_indices: [N], slots; n if None. dst_state_batch_indices: [N], where new states go, if elsewhere. Those
        that are ``pad_slot_id`` or negative are neither read nor written.

    Returns y like x in its dtype, 0 for padding; in ``out`` if given. The recurrence is ``linear_scan_step`` on the
    states of all channels. Its gates and inputs, each as large as the states, are made in PyTorch before it. Several
    tokens (``num_accepted_tokens``, ``cu_seqlens``) and stochastic rounding are refused.
    """
    _refuse("selective_state_update", others)
    if state.dtype not in (torch.float32, torch.float64):
        raise errors.DtypeError(f"state is {str(state.dtype)[6:]}, expected float32: slots of the scan are not rounded")
    if state.dim() not in (3, 4) or (state.numel() and not state[0].is_contiguous()):
        raise errors.ArgumentError(
            "state is not [P, dim, dstate] or [P, heads, dim, dstate] with each slot in one piece"
        )
    rows, (heads, width, size) = x.shape[0], state.shape[1:] if state.dim() == 4 else (1, *state.shape[1:])

    def per_channel(value: Tensor) -> Tensor:
        return value.to(state.dtype).reshape(-1, heads, width)

    def per_state(value: Tensor) -> Tensor:
        grouped = value.to(state.dtype).reshape(rows, value.shape[1] if value.dim() == 3 else 1, size)
        return grouped.repeat_interleave(heads // grouped.shape[1], dim=1)[:, :, None]

    step, data = per_channel(dt), per_channel(x)
    step = step if dt_bias is None else step + per_channel(dt_bias)
    step = torch.nn.functional.softplus(step) if dt_softplus else step
    gates = step[..., None] * A.to(state.dtype).reshape(heads, width, size)
    inputs = (step * data)[..., None] * per_state(B)
    slots, places = _marked(state_batch_indices, pad_slot_id), _marked(dst_state_batch_indices, pad_slot_id)
    held = linear_scan_step(
        inputs.flatten(1), None, state.flatten(1), log_a=gates.flatten(1), slots=slots, dst_slots=places
    )
    y = (held.view_as(inputs) * per_state(C)).sum(-1)
    y = y if D is None else y + data * per_channel(D)
    y = y if z is None else y * torch.nn.functional.silu(per_channel(z))
    y = _slots.silence(y, slots).reshape(x.shape).to(x.dtype)
    return y if out is None else out.copy_(y)
