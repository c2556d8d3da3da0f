"""The middle of a recurrent block: a sequence, a step, or rows that go on by themselves, with states in a cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.functional import (
    RGLRUWeights,
    recurrent_block,
    recurrent_block_extend,
    recurrent_block_step,
    rg_lru,
    rg_lru_extend,
    rg_lru_step,
    temporal_conv1d,
    temporal_conv1d_extend,
    temporal_conv1d_step,
)
from griffin_kernels.functional._bridge import wants_gradient
from griffin_kernels.integrations.transformers._hf_cache import States


class Mixing(NamedTuple):
    """What a recurrent block does between its linear layers, but for the RG-LRU's weights.

    x, y: [B, T, D], both branches; y before its activation. positions: what the RG-LRU begins documents by.
    documents: what keeps the convolution within a document; None: nothing does.
    """

    x: Tensor
    y: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    activation: Any
    fused: bool
    states: States | None
    documents: Tensor | None
    positions: Tensor | None
    lengths: Tensor | None

    def run(self, weights: RGLRUWeights) -> Tensor:
        """[B, T, D]; the states are updated."""
        conv = self.conv_weight, self.conv_bias
        states = self.states
        if states is None:
            return self._sequence(conv, weights, None, None)[0]
        if not wants_gradient((self.x, self.y, *conv, *weights)):
            if self.lengths is not None:
                out = self._extend(conv, weights, states.conv, states.h)
                states.written()
                return out
            if self.x.shape[1] == 1:
                out = self._step(conv, weights, states.conv, states.h)
                states.written()
                return out
        out, *after = self._sequence(conv, weights, *states.before())
        if self.lengths is not None:  # states after the last real token, which the sequence form does not give
            with torch.no_grad():
                columns, h = states.copies()
                window = columns[:, :, 1:].transpose(1, 2)
                self._extend(conv, weights, window, h)
                after = [window, h]
        states.store(*after)
        return out

    def _sequence(
        self, conv: tuple[Tensor, Tensor], weights: RGLRUWeights, state: Tensor | None, h: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.fused:
            return recurrent_block(self.x, self.y, *conv, weights, conv_state=state, h0=h, segment_pos=self.documents)
        u, state = temporal_conv1d(self.x, *conv, state=state, segment_pos=self.documents)
        u, h = rg_lru(u, weights, h0=h, segment_pos=self.positions)
        return u * self.activation(self.y), state, h

    def _step(self, conv: tuple[Tensor, Tensor], weights: RGLRUWeights, state: Tensor, h: Tensor) -> Tensor:
        positions = None if self.positions is None else self.positions[:, 0]
        x, y = self.x[:, 0], self.y[:, 0]
        if self.fused:
            return recurrent_block_step(x, y, *conv, weights, state, h, positions=positions)[:, None]
        documents = None if self.documents is None else self.documents[:, 0]
        u = temporal_conv1d_step(x, *conv, state, positions=documents)
        h = rg_lru_step(u, weights, h, positions=positions)
        return (h * self.activation(y))[:, None]  # type: ignore[no-any-return]

    def _extend(self, conv: tuple[Tensor, Tensor], weights: RGLRUWeights, state: Tensor, h: Tensor) -> Tensor:
        """Keeps the states after each row's last real token; a row without any keeps what it had."""
        assert self.lengths is not None and self.states is not None
        rows = torch.arange(h.shape[0], device=h.device, dtype=torch.int64)
        steps = torch.arange(self.x.shape[1], device=h.device, dtype=torch.int64)
        keep = torch.where(steps == self.lengths[:, None] - 1, rows[:, None], -1)
        pool = (rows if self.states.continues else torch.full_like(rows, -1)), keep
        if self.fused:
            return recurrent_block_extend(self.x, self.y, *conv, weights, state, h, *pool, segment_pos=self.documents)
        u = temporal_conv1d_extend(self.x, *conv, state, *pool, segment_pos=self.documents)
        h = rg_lru_extend(u, weights, h, *pool, segment_pos=self.positions)
        return h * self.activation(self.y)  # type: ignore[no-any-return]
