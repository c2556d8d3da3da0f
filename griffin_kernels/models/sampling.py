"""Which token comes next, and where a row ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels import errors

Stop = Callable[[Sequence[int]], bool] | Iterable[Sequence[int]]
OnToken = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits: the likeliest at temperature 0, else drawn from ``probabilities``."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise errors.ArgumentError(f"temperature is {self.temperature}, expected a finite number, at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise errors.ArgumentError(f"top_k is {self.top_k}, expected at least 1, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise errors.ArgumentError(f"top_p is {self.top_p}, expected above 0 and at most 1, or None")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., V] in float32 (float64 for float64): softmax(logits / temperature), of the tokens that top_k and then
        top_p leave.

        top_k leaves the k likeliest; top_p the fewest likeliest ones whose probabilities add up to p or more. Of
        equally likely tokens those with smaller ids stay.
        """
        wide = logits.double() if logits.dtype == torch.float64 else logits.float()
        if self.top_k is None and self.top_p is None:
            return torch.softmax(wide / self.temperature, dim=-1)
        ordered, ids = (wide / self.temperature).sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered[..., self.top_k :] = -math.inf
        chances = torch.softmax(ordered, dim=-1)
        if self.top_p is not None:
            before = chances.cumsum(dim=-1) - chances
            before[..., 0] = 0  # one token is always left
            chances = chances.masked_fill(before >= self.top_p, 0)
            chances = chances / chances.sum(dim=-1, keepdim=True)
        return torch.zeros_like(chances).scatter_(-1, ids, chances)

    def choose(self, logits: Tensor) -> Tensor:
        """A token for each row: logits [B, V] -> int64 [B]."""
        if self.greedy:
            return logits.argmax(dim=-1)
        return self.draw(self.probabilities(logits))

    def draw(self, probabilities: Tensor) -> Tensor:
        """A token for each row by its chance: [B, V], not all 0 -> int64 [B]."""
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]


class Transcript:
    """The new tokens of every row, and which rows still go on. Kept on the host, where ends are looked for."""

    def __init__(
        self, batch: int, limit: int, eos: frozenset[int], stop: Stop | None, on_token: OnToken | None
    ) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.running = [limit > 0] * batch
        self.limit, self._eos, self._on_token = limit, eos, on_token
        self._stop = stop if callable(stop) else None
        self._sequences = () if stop is None or callable(stop) else tuple(tuple(map(int, each)) for each in stop)
        if not all(self._sequences):
            raise errors.ArgumentError("stop has a sequence of 0 tokens, expected at least 1 in each")
        self.watches = bool(eos) or stop is not None or on_token is not None
        """Whether anything has to be looked at before every row has its last token."""

    def add(self, row: int, tokens: Iterable[int]) -> None:
        """The next tokens of a row, as many of them as come before it ends."""
        for token in tokens:
            if not self.running[row]:
                return
            new = self.rows[row]
            new.append(token)
            if self._on_token is not None:
                self._on_token(row, token)
            over = len(new) == self.limit or token in self._eos
            over = over or any(tuple(new[-len(each) :]) == each for each in self._sequences)
            self.running[row] = not (over or (self._stop is not None and self._stop(new)))
