"""Text from a model: prompts of several lengths, plain or speculative decoding, results."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.models.cache import Cache, check_lengths
from griffin_kernels.models.decode_graph import DecodeGraph
from griffin_kernels.models.sampling import OnToken, Sampling, Stop, Transcript
from griffin_kernels.models.speculation import (
    DRAFT_TOKENS,
    Acceptance,
    AssistantDrafter,
    Drafter,
    LookupDrafter,
    padded,
    speculate,
)

if TYPE_CHECKING:
    from griffin_kernels.models.griffin import Griffin

GRAPH_STEPS = 8
"""With fewer tokens to come a CUDA graph is not worth its capture."""


@dataclass(frozen=True)
class Generation:
    """What ``generate`` made.

    tokens: [B, T + N] in the prompts' dtype: the prompts as they were given, each row's new tokens from column T on,
        then ``pad_token_id``. N is the most new tokens that a row has.
    lengths: how many new tokens each row has, the one that ended it included.
    acceptance: of drafted tokens; None where none were asked for.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    acceptance: Acceptance | None = None


@torch.no_grad()
def generate(
    model: Griffin,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    lengths: Tensor | None = None,
    attention_mask: Tensor | None = None,
    eos_token_id: int | Iterable[int] | None = None,
    pad_token_id: int | None = None,
    stop: Stop | None = None,
    on_token: OnToken | None = None,
    cache: Cache | None = None,
    assistant: Griffin | None = None,
    prompt_lookup: int | None = None,
    draft_tokens: int = DRAFT_TOKENS,
    cuda_graph: bool = True,
) -> Generation:
    """``Griffin.generate``, whose arguments these are, with all that is known of the result."""
    if max_new_tokens < 0:
        raise errors.ArgumentError(f"max_new_tokens is {max_new_tokens}, expected at least 0")
    sampling = Sampling(temperature, top_k, top_p, generator)
    vocabulary = model.config.vocab_size
    eos = _ids(eos_token_id, vocabulary)
    pad = pad_token_id if pad_token_id is not None else eos[0] if eos else 0
    _check_drafts(model, assistant, prompt_lookup, draft_tokens)
    prompt, counts = _prompts(model, tokens, lengths, attention_mask)
    batch = tokens.shape[0]
    if cache is not None:
        model._check(prompt, None, cache, True)
        if assistant is not None:
            raise errors.ArgumentError("cache: the assistant has not seen its tokens; pass all tokens, or no assistant")
    transcript = Transcript(batch, max_new_tokens, frozenset(eos), stop, on_token)
    if batch == 0 or max_new_tokens == 0:
        new = tokens.new_full((batch, max_new_tokens), pad)
        return Generation(torch.cat([tokens, new], dim=1), (0,) * batch)

    ragged = None if counts is None else torch.tensor(counts, dtype=torch.int64, device=tokens.device)
    cache = model.init_cache(batch) if cache is None else cache.fork()
    logits, _ = model(prompt, cache=cache, lengths=ragged, last_only=True)
    logits = logits[:, -1]
    drafter: Drafter | None = None
    if assistant is not None:
        drafter = AssistantDrafter(assistant, prompt, ragged, sampling, draft_tokens)
    elif prompt_lookup is not None:
        rows = prompt.tolist()
        texts = rows if counts is None else [row[:count] for row, count in zip(rows, counts, strict=True)]
        drafter = LookupDrafter(texts, prompt_lookup, draft_tokens, tokens.device)
    if drafter is None:
        step = _decoder(model, cache, max_new_tokens - 1, cuda_graph)
        new, acceptance = _plain(step, logits, sampling, transcript), None
    else:
        acceptance = speculate(model, logits, cache, drafter, sampling, transcript)
        new = padded(transcript.rows, tokens.device)
    ended = transcript.watches or drafter is not None
    sizes = [len(made) for made in transcript.rows] if ended else [max_new_tokens] * batch
    if min(sizes) < new.shape[1]:
        columns = torch.arange(new.shape[1], device=new.device, dtype=torch.int64)
        over = columns >= torch.tensor(sizes, dtype=torch.int64, device=new.device)[:, None]
        new = new.masked_fill(over, pad)
    return Generation(torch.cat([tokens, new.to(tokens.dtype)], dim=1), tuple(sizes), acceptance)


def _plain(step: Callable[[Tensor], Tensor], logits: Tensor, sampling: Sampling, transcript: Transcript) -> Tensor:
    """New tokens int64 [B, N], one call of ``step`` for each. Reads nothing on the host unless something is watched."""
    columns: list[Tensor] = []
    while True:
        columns.append(sampling.choose(logits))
        if transcript.watches:
            for row, token in enumerate(columns[-1].tolist()):
                transcript.add(row, [token])
            if not any(transcript.running):
                break
        if len(columns) == transcript.limit:
            break
        logits = step(columns[-1])
    return torch.stack(columns, dim=1)


def _decoder(model: Griffin, cache: Cache, steps: int, cuda_graph: bool) -> Callable[[Tensor], Tensor]:
    """tokens int64 [B] -> logits [B, V] of the tokens after them."""
    if cuda_graph and cache.device.type == "cuda" and steps >= GRAPH_STEPS:
        return DecodeGraph(model, cache, steps)

    def step(tokens: Tensor) -> Tensor:
        logits, _ = model(tokens[:, None], cache=cache)
        return logits[:, -1]  # type: ignore[no-any-return]

    return step


def _prompts(
    model: Griffin, tokens: Tensor, lengths: Tensor | None, attention_mask: Tensor | None
) -> tuple[Tensor, list[int] | None]:
    """Prompts with padding only on the right, and their lengths; None where all are whole."""
    if not isinstance(tokens, Tensor) or tokens.dim() != 2:
        model._check(tokens, None, None, False)
    batch, time = tokens.shape
    steps = torch.arange(time, device=tokens.device, dtype=torch.int64)
    if lengths is not None and attention_mask is not None:
        raise errors.ArgumentError("lengths and attention_mask are both given, expected one of them")
    if attention_mask is not None:
        _check_mask(attention_mask, tokens)
        there = attention_mask != 0
        lengths = there.sum(dim=1)
        tokens = tokens.gather(1, torch.argsort((~there).to(torch.uint8), dim=1, stable=True))
    elif lengths is not None:
        check_lengths(lengths, batch, time, tokens.device)
    counts = [time] * batch if lengths is None else [int(count) for count in lengths.tolist()]
    if batch and min(counts) < 1:
        row = "" if time == 0 else f" in row {counts.index(min(counts))}"
        raise errors.ShapeError(f"tokens: a prompt of 0 tokens{row}, expected at least 1")
    if lengths is None or min(counts, default=time) == time:
        return tokens, None
    tokens = tokens.masked_fill(steps >= lengths[:, None], 0)  # padding may be any id
    return tokens[:, : max(counts)], counts


def _check_mask(mask: Tensor, tokens: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise errors.ArgumentError(f"attention_mask is a {type(mask).__name__}, expected a tensor")
    if mask.is_floating_point() or mask.is_complex():
        raise errors.DtypeError(f"attention_mask: dtype {mask.dtype}, expected bool or an integer dtype")
    if mask.shape != tokens.shape:
        raise errors.ShapeError(f"attention_mask: shape {list(mask.shape)}, but tokens have {list(tokens.shape)}")
    if mask.device != tokens.device:
        raise errors.DeviceMismatchError(f"attention_mask: on {mask.device}, but tokens are on {tokens.device}")


def _ids(eos_token_id: int | Iterable[int] | None, vocabulary: int) -> tuple[int, ...]:
    if eos_token_id is None:
        return ()
    try:
        ids: tuple[int, ...] = (operator.index(eos_token_id),)  # type: ignore[arg-type]
    except TypeError:
        ids = tuple(int(each) for each in eos_token_id)  # type: ignore[union-attr]
    for each in ids:
        if not 0 <= each < vocabulary:
            raise errors.ArgumentError(f"eos_token_id: {each}, expected 0 to {vocabulary - 1}")
    return ids


def _check_drafts(model: Griffin, assistant: Griffin | None, prompt_lookup: int | None, draft_tokens: int) -> None:
    if draft_tokens < 1:
        raise errors.ArgumentError(f"draft_tokens is {draft_tokens}, expected at least 1")
    if prompt_lookup is not None and (isinstance(prompt_lookup, bool) or prompt_lookup < 1):
        raise errors.ArgumentError(
            f"prompt_lookup is {prompt_lookup}, expected the longest n-gram, at least 1, or None"
        )
    if assistant is None:
        return
    if prompt_lookup is not None:
        raise errors.ArgumentError("assistant and prompt_lookup are both given, expected one of them")
    if not isinstance(assistant, type(model)):
        raise errors.ArgumentError(f"assistant is a {type(assistant).__name__}, expected a {type(model).__name__}")
    ours, theirs = model.config.vocab_size, assistant.config.vocab_size
    if ours != theirs:
        raise errors.ArgumentError(f"assistant: has {theirs} tokens, but the model has {ours}")
    devices = model.embedding.weight.device, assistant.embedding.weight.device
    if devices[0] != devices[1]:
        raise errors.DeviceMismatchError(f"assistant: on {devices[1]}, but the model is on {devices[0]}")
