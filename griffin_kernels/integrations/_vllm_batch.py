"""A recurrent block on a batch as vLLM lays it out: tokens of decodes, then of prompts, then padding. Needs no vLLM.

Names are those of vLLM's ``BaseMambaAttentionMetadata`` (v1/attention/backends/mamba_attn.py). A slot is a block of
vLLM's cache: a row of both pools. Block 0 belongs to nobody, and rows that pad have it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from griffin_kernels.functional import RGLRUWeights, last_tokens, recurrent_block_extend, recurrent_block_step

NULL_BLOCK = 0
"""vLLM's NULL_BLOCK_ID."""

PROMPT_ROWS = "_griffin_prompt_rows"
"""Where a batch's metadata keep ``prompt_rows`` for the layers to come; a changed copy of them does not."""


class BlockWeights(NamedTuple):
    """Parameters between the linear layers of a block: conv_weight [K, D], conv_bias [D] and those of the RG-LRU."""

    conv_weight: Tensor
    conv_bias: Tensor
    gates: RGLRUWeights


class StatePools(NamedTuple):
    """conv_states [P, K-1, D] in the model's dtype, states [P, D] in float32; rows may lie apart, as pages do."""

    conv_states: Tensor
    states: Tensor


class BatchMetadata(Protocol):
    """Which sequences a batch has.

    num_decode_tokens, num_prefill_tokens: tokens of either kind; others pad.
    state_indices_tensor_d: int32 [N, 1+S], slots of decodes with S guesses a call; only the first counts without.
    num_accepted_tokens: int32 [N], how many of the last call's tokens hold, 1 to 1+S; None if nothing is guessed.
    query_start_loc_d: int32 [N+1], offsets of the decodes' tokens; needed with guesses.
    state_indices_tensor_p: int32 [M], has_initial_states_p: bool [M], query_start_loc_p: int32 [M+1]: of prompts.
    """

    num_decode_tokens: int
    num_prefill_tokens: int
    state_indices_tensor_d: Tensor | None
    num_accepted_tokens: Tensor | None
    query_start_loc_d: Tensor | None
    state_indices_tensor_p: Tensor | None
    has_initial_states_p: Tensor | None
    query_start_loc_p: Tensor | None


def run_batch(
    x: Tensor, y: Tensor, out: Tensor, weights: BlockWeights, pools: StatePools, batch: BatchMetadata
) -> None:
    """``out`` [T, D] of both branches [T, D], zeros for padding; the pools are changed in place.

    A slot keeps the last inputs of the convolution beside the state. With guesses, those after guess s are kept in slot
    s of the sequence, and the next call goes on from slot ``num_accepted_tokens - 1``. Nothing here waits for a GPU.
    """
    decoded = batch.num_decode_tokens
    end = decoded + batch.num_prefill_tokens
    if decoded:
        rows = batch.state_indices_tensor_d
        assert rows is not None
        if batch.num_accepted_tokens is None:
            inputs = (x[:decoded], y[:decoded], *weights, *pools)
            slots = rows.reshape(rows.shape[0], -1)[:decoded, 0]
            recurrent_block_step(*inputs, slots=slots, pad_slot=NULL_BLOCK, out=out[:decoded])
        else:
            offsets = batch.query_start_loc_d
            assert offsets is not None
            slots, keep = guessed_rows(rows, batch.num_accepted_tokens, offsets, decoded)
            _extend(x[:decoded], y[:decoded], out[:decoded], weights, pools, (slots, keep, offsets))
    if batch.num_prefill_tokens:
        # the same for every layer; captured graphs have no prompts, so that nothing kept is of another replay
        if (tokens := getattr(batch, PROMPT_ROWS, None)) is None:
            tokens = prompt_rows(batch)
            setattr(batch, PROMPT_ROWS, tokens)
        _extend(x[decoded:end], y[decoded:end], out[decoded:end], weights, pools, tokens)
    out[end:].zero_()


def owned(rows: Tensor) -> Tensor:
    """int64: slots with -1 in place of the block that belongs to nobody."""
    return rows.long().masked_fill(rows == NULL_BLOCK, -1)


def prompt_rows(batch: BatchMetadata) -> tuple[Tensor, Tensor, Tensor]:
    """(slots [M] that prompts start from, keep [1, T] where their last states go, offsets [M+1]); -1 for none."""
    rows, goes_on, offsets = batch.state_indices_tensor_p, batch.has_initial_states_p, batch.query_start_loc_p
    assert rows is not None and goes_on is not None and offsets is not None
    kept = owned(rows.flatten())
    return kept.masked_fill(~goes_on, -1), last_tokens(kept, batch.num_prefill_tokens, offsets), offsets


def guessed_rows(rows: Tensor, accepted: Tensor, offsets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """(slots [N] that sequences start from, keep [1, tokens] where each token's state goes), int64, -1 for none.

    rows: [N', 1+S], N' >= N. accepted: [N'], the last call's tokens that hold. offsets: [N+1].
    """
    count, most = offsets.shape[0] - 1, rows.shape[1] - 1
    rows, begins = owned(rows[:count]), offsets.long()
    slots = rows.gather(1, (accepted[:count].long() - 1).clamp(0, most)[:, None])[:, 0]
    places = torch.arange(tokens, dtype=torch.int64, device=rows.device)
    sequence = (torch.searchsorted(begins, places, right=True) - 1).clamp_max(count - 1)
    guess = places - begins[sequence]
    padding = (places >= begins[-1]) | (guess > most)
    return slots, rows[sequence, guess.clamp(0, most)].masked_fill(padding, -1)[None]


def _extend(
    x: Tensor,
    y: Tensor,
    out: Tensor,
    weights: BlockWeights,
    pools: StatePools,
    tokens: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Packed sequences [T, D]; tokens: their slots, what is kept, their offsets."""
    slots, keep, offsets = tokens
    result = recurrent_block_extend(x[None], y[None], *weights, *pools, slots, keep, cu_seqlens=offsets)
    out.copy_(result[0])
