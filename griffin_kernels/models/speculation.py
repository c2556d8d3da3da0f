"""Speculative decoding: cheap drafts of a few tokens, which the model reads in one call and accepts in part.

What comes out is distributed as without drafts (Leviathan et al. 2023, arXiv 2211.17192). A drafted token x is kept
with probability min(1, p(x) / q(x)), p the model's and q the drafter's distribution; the first one that is not is
replaced by a draw from max(p - q, 0), scaled to sum 1. With temperature 0 a draft is kept where it is the likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from griffin_kernels.models.cache import Cache
from griffin_kernels.models.sampling import Sampling, Transcript

if TYPE_CHECKING:
    from griffin_kernels.models.griffin import Griffin

DRAFT_TOKENS = 5
"""Tokens that are drafted at once where nothing else is said."""


@dataclass(frozen=True)
class Acceptance:
    """How many tokens of each row were drafted, and how many accepted. calls: of the model, the prompt's included."""

    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    calls: int

    @property
    def rate(self) -> float | None:
        """Accepted tokens over drafted ones, of all rows; None where nothing was drafted."""
        return sum(self.accepted) / sum(self.drafted) if sum(self.drafted) else None


class Drafts(NamedTuple):
    """tokens: int64 [B, K]. lengths: how many of a row's K are drafted. probabilities: [B, K, V] that they were drawn
    from, or None: they are certain."""

    tokens: Tensor
    lengths: list[int]
    probabilities: Tensor | None


class Drafter(Protocol):
    def propose(self, room: list[int], transcript: Transcript) -> Drafts:
        """Drafts of at most ``room[b]`` tokens that go on from the prompt and the transcript of row b."""


class LookupDrafter:
    """What came after the same few tokens, the last time that they were in the row's text (prompt lookup)."""

    def __init__(self, prompts: Sequence[Sequence[int]], longest: int, count: int, device: torch.device) -> None:
        """longest: of the n-grams that are looked for, before shorter ones. count: tokens to draft."""
        self.longest, self.count, self.device = longest, count, device
        self._texts: list[list[int]] = [[] for _ in prompts]
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in prompts]
        """n-gram -> where its last continuation begins."""
        self._prompts = [len(prompt) for prompt in prompts]
        for row, prompt in enumerate(prompts):
            self._read(row, prompt)

    def propose(self, room: list[int], transcript: Transcript) -> Drafts:
        drafts = []
        for row, new in enumerate(transcript.rows):
            self._read(row, new[len(self._texts[row]) - self._prompts[row] :])
            drafts.append(self._draft(row, min(self.count, room[row])))
        lengths = [len(draft) for draft in drafts]
        return Drafts(padded(drafts, self.device), lengths, None)

    def _read(self, row: int, tokens: Sequence[int]) -> None:
        text, after = self._texts[row], self._after[row]
        for token in tokens:
            for size in range(1, min(self.longest, len(text)) + 1):
                after[tuple(text[-size:])] = len(text)
            text.append(token)

    def _draft(self, row: int, count: int) -> list[int]:
        text, after = self._texts[row], self._after[row]
        for size in range(min(self.longest, len(text)), 0, -1):
            start = after.get(tuple(text[-size:]))
            if start is not None:
                draft: list[int] = []
                for place in range(start, start + count):  # past the text's end the draft repeats itself
                    draft.append(text[place] if place < len(text) else draft[place - len(text)])
                return draft
        return []


class AssistantDrafter:
    """What a smaller model of the same vocabulary would say."""

    def __init__(self, model: Griffin, prompt: Tensor, lengths: Tensor | None, sampling: Sampling, count: int) -> None:
        self.model, self.sampling, self.count = model, sampling, count
        self.seen = [0] * prompt.shape[0]
        self.cache: Cache
        _, self.cache = model(prompt, lengths=lengths, last_only=True)
        """Has the prompts and ``seen`` tokens of each row of the transcript: nothing that can be rejected."""
        self.ahead: Cache | None = None

    def propose(self, room: list[int], transcript: Transcript) -> Drafts:
        lengths = [min(self.count, most) for most in room]
        device = self.cache.device
        pieces = [new[seen:] if most else [] for new, seen, most in zip(transcript.rows, self.seen, room, strict=True)]
        if not any(lengths):
            return Drafts(torch.zeros(len(room), 0, dtype=torch.int64, device=device), lengths, None)
        counts = torch.tensor([len(piece) for piece in pieces], dtype=torch.int64, device=device)
        logits, _ = self.model(padded(pieces, device), cache=self.cache, lengths=counts, last_only=True)
        self.seen = [seen + len(piece) for seen, piece in zip(self.seen, pieces, strict=True)]
        if max(lengths) > 1:
            if self.ahead is None:
                self.ahead = self.cache.fork()
            else:
                self.ahead.restore(self.cache)
        tokens: list[Tensor] = []
        chances: list[Tensor] = []
        for step in range(max(lengths)):
            if step:
                logits, _ = self.model(tokens[-1][:, None], cache=self.ahead)
            if self.sampling.greedy:
                tokens.append(logits[:, -1].argmax(dim=-1))
            else:
                chances.append(self.sampling.probabilities(logits[:, -1]))
                tokens.append(self.sampling.draw(chances[-1]))
        return Drafts(torch.stack(tokens, dim=1), lengths, torch.stack(chances, dim=1) if chances else None)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """int64 [B, most], rows of several lengths with zeros after them."""
    most = max(map(len, rows), default=0)
    return torch.tensor(
        [[*row, *[0] * (most - len(row))] for row in rows], dtype=torch.int64, device=device
    ).reshape(len(rows), most)  # fmt: skip


def accept(logits: Tensor, drafts: Drafts, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """How many of each row's drafts are kept, int64 [B], and the token after them, int64 [B].

    logits: [B, 1 + K, V], the model's before each of K drafts and after the last one.
    """
    batch, count = drafts.tokens.shape
    device = logits.device
    rows = torch.arange(batch, device=device, dtype=torch.int64)
    lengths = torch.tensor(drafts.lengths, dtype=torch.int64, device=device)
    offered = torch.arange(count, device=device, dtype=torch.int64) < lengths[:, None]
    if sampling.greedy:
        best = logits.argmax(dim=-1)
        kept = _leading(offered & (best[:, :count] == drafts.tokens))
        return kept, best[rows, kept]
    p = sampling.probabilities(logits)
    ids = drafts.tokens[:, :, None]
    ours = p[:, :count].gather(2, ids)[:, :, 0]
    theirs = torch.ones_like(ours) if drafts.probabilities is None else drafts.probabilities.gather(2, ids)[:, :, 0]
    chance = torch.rand(ours.shape, dtype=ours.dtype, device=device, generator=sampling.generator)
    kept = _leading(offered & (chance * theirs < ours))
    own = p[rows, kept]
    if count == 0:
        return kept, sampling.draw(own)
    at = kept.clamp(max=count - 1)
    if drafts.probabilities is None:
        q = torch.zeros_like(own).scatter_(1, drafts.tokens[rows, at][:, None], 1.0)
    else:
        q = drafts.probabilities[rows, at].to(own.dtype)
    left = (own - q).clamp(min=0)
    # all drafts kept, or p and q equal but for rounding: nothing to take off
    whole = (kept == lengths)[:, None] | (left.sum(dim=1, keepdim=True) == 0)
    return kept, sampling.draw(torch.where(whole, own, left))


def _leading(kept: Tensor) -> Tensor:
    """How many entries of each row are True before the first that is not: bool [B, K] -> int64 [B]."""
    return kept.long().cumprod(dim=1).sum(dim=1)


def speculate(
    model: Griffin, logits: Tensor, cache: Cache, drafter: Drafter, sampling: Sampling, transcript: Transcript
) -> Acceptance:
    """Fill a transcript. logits: [B, V], after each row's prompt, which ``cache`` has seen."""
    batch = cache.batch
    drafted, accepted, calls = [0] * batch, [0] * batch, 1
    last = sampling.choose(logits)
    for row, token in enumerate(last.tolist()):
        transcript.add(row, [token])
    while any(transcript.running):
        # one more token comes after the drafts
        room = [max(0, transcript.limit - len(new) - 1) for new in transcript.rows]
        room = [most if runs else 0 for most, runs in zip(room, transcript.running, strict=True)]
        drafts = drafter.propose(room, transcript)
        logits, pending = model.verify(torch.cat([last[:, None], drafts.tokens], dim=1), cache)
        calls += 1
        kept, last = accept(logits, drafts, sampling)
        table = torch.cat([kept[:, None], last[:, None], drafts.tokens], dim=1).tolist()  # the one wait of a round
        taken = [1 + line[0] if runs else 0 for line, runs in zip(table, transcript.running, strict=True)]
        pending.commit(torch.tensor(taken, dtype=torch.int64, device=cache.device), most=max(taken))
        for row, (count, token, *tokens) in enumerate(table):
            drafted[row] += drafts.lengths[row]
            accepted[row] += count
            transcript.add(row, [*tokens[:count], token])
    return Acceptance(tuple(drafted), tuple(accepted), calls)
