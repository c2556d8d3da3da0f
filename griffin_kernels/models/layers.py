"""The residual blocks of a Griffin: the layers of ``griffin_kernels.nn`` on the memory of a model, its Cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from griffin_kernels.functional import (
    local_attention,
    local_attention_step,
    recurrent_block,
    recurrent_block_extend,
    recurrent_block_step,
)
from griffin_kernels.models.cache import AttentionCache, LayerCache, PendingTokens, RecurrentCache
from griffin_kernels.models.config import BlockType, GriffinConfig
from griffin_kernels.nn import GatedMLP, LocalAttention, RecurrentBlock, RMSNorm
from griffin_kernels.nn.drawing import Factory


class Place:
    """Where the tokens of a call stand; the same for every layer. No tuple, in which FSDP would round cos and sin.

    segment_pos: int64 [B, T]. documents: segment_pos where a document can begin inside the call or a cache goes before
    it, else None: one document from its first token. before: int64 [B], the cache's positions before the call, or None.
    tokens_before, bound_before: its ``tokens`` and ``bound``. update: whether the cache takes in these tokens.
    lengths: int64 [B], how many of the tokens it takes in, or None: all. last: int64 [B], the position of the last of
    these. pending: where blocks leave what the cache may take in later, or None; then ``update`` is False.
    cos, sin: [B, T, 1, d / 4], RoPE's; None without attention.
    """

    before: Tensor | None = None
    lengths: Tensor | None = None
    pending: PendingTokens | None = None
    tokens_before: int = 0
    bound_before: int = 0
    cos: Tensor | None = None
    sin: Tensor | None = None

    def __init__(self, segment_pos: Tensor, documents: Tensor | None, update: bool) -> None:
        self.segment_pos, self.documents, self.update = segment_pos, documents, update
        self.last = segment_pos[:, -1]

    def take(self, lengths: Tensor) -> None:
        """Have the cache take in so many tokens of each row; of a row that gives none it stays where it is."""
        self.lengths = lengths
        last = self.segment_pos.gather(1, (lengths[:, None] - 1).clamp(min=0))[:, 0]
        self.last = torch.where(lengths > 0, last, -1 if self.before is None else self.before - 1)

    @property
    def whole_step(self) -> bool:
        """Whether every row takes in one token, which is all there is."""
        return self.update and self.lengths is None and self.segment_pos.shape[1] == 1


class CachedRecurrence(RecurrentBlock):
    """A recurrent block whose states are in a cache."""

    def forward(self, x: Tensor, place: Place, cache: LayerCache | None) -> Tensor:  # type: ignore[override]
        """x: [B, T, width]; the result has its shape and dtype. The cache is updated in place."""
        assert cache is None or isinstance(cache, RecurrentCache)
        before = cache if place.tokens_before else None
        x, y, *taps = branches = self.branches(x)
        training = torch.is_grad_enabled() and x.requires_grad
        if cache is not None and place.whole_step and not training:  # the step has no gradient
            states = {"conv_state": cache.conv, "h": cache.state}  # zeros before the first token
            positions = place.segment_pos[:, 0]
            out = self.rg_lru(x[:, 0], y[:, 0], *taps, op=recurrent_block_step, **states, positions=positions)
            return self.linear_out(out[:, None])  # type: ignore[no-any-return]
        some = cache if place.pending is not None or (place.update and place.lengths is not None) else None
        if some is not None and not training:  # nor have pools
            return self.linear_out(self._extend(branches, place, some))  # type: ignore[no-any-return]
        states = {} if before is None else {"conv_state": before.conv, "h0": before.state}
        out, conv, state = self.rg_lru(*branches, op=recurrent_block, **states, segment_pos=place.segment_pos)
        if some is not None:
            self._extend(branches, place, some)
        elif cache is not None and place.update:
            cache.update(state, conv)
        return self.linear_out(out)  # type: ignore[no-any-return]

    def _extend(self, branches: tuple[Tensor | None, ...], place: Place, cache: RecurrentCache) -> Tensor:
        """Output without gradient [B, T, R]. The cache takes in some of the tokens, or all are left pending."""
        batch, time = place.segment_pos.shape
        rows = torch.arange(batch, device=place.segment_pos.device, dtype=torch.int64)
        steps = torch.arange(time, device=place.segment_pos.device, dtype=torch.int64)
        if place.pending is not None:
            conv, state = cache.with_room(time)
            rows = rows * (1 + time)
            keep = rows[:, None] + 1 + steps
        else:
            assert place.lengths is not None
            conv, state = cache.owned()
            keep = torch.where(steps == place.lengths[:, None] - 1, rows[:, None], -1)
        pools = {"conv_states": conv, "states": state, "slots": rows, "keep": keep}
        with torch.no_grad():
            out = self.rg_lru(*branches, op=recurrent_block_extend, **pools, segment_pos=place.segment_pos)
        if place.pending is not None:
            place.pending.hold(cache, *(pool.view(batch, 1 + time, *pool.shape[1:]) for pool in (conv, state)))
        return out  # type: ignore[no-any-return]


class CachedAttention(LocalAttention):
    """An attention block whose keys and values are in a cache."""

    def forward(self, x: Tensor, place: Place, cache: LayerCache | None) -> Tensor:  # type: ignore[override]
        """x: [B, T, width]; the result has its shape and dtype. The cache is updated in place."""
        assert cache is None or isinstance(cache, AttentionCache)
        assert place.cos is not None and place.sin is not None
        q, k, v = self.project(x, place.cos, place.sin)
        training = torch.is_grad_enabled() and q.requires_grad
        if cache is not None and place.whole_step and not training:  # the step has no gradient
            rings = (cache.keys, cache.values)
            out = local_attention_step(q[:, 0], k[:, 0], v[:, 0], *rings, place.segment_pos[:, 0])
            return self.out(out[:, None].flatten(2))  # type: ignore[no-any-return]
        keys, values = k, v
        reach = place.bound_before if self.window is None else self.window - 1
        past = min(place.tokens_before, reach)
        if cache is not None and place.before is not None and past:
            old_keys, old_values = cache.past(place.before, past)
            keys, values = torch.cat([old_keys, k], dim=1), torch.cat([old_values, v], dim=1)
        window = keys.shape[1] if self.window is None else self.window
        out = local_attention(q, keys, values, window=window, segment_pos=place.documents)
        if cache is not None and place.pending is not None:
            place.pending.hold(cache, k, v)
        elif cache is not None and place.update:
            cache.write(k, v, place.last, place.lengths)
        return self.out(out.flatten(2))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """x + mixing(norm(x)), then x + mlp(norm(x)). Its parameters are not drawn."""

    def __init__(self, config: GriffinConfig, kind: BlockType, factory: Factory) -> None:
        super().__init__()
        self.temporal_norm = RMSNorm(config.width, config.norm_eps, **factory)
        self.mixing: CachedRecurrence | CachedAttention
        if kind == "recurrent":
            self.mixing = CachedRecurrence(
                config.width,
                config.lru_width,
                heads=config.gate_blocks,
                conv_width=config.conv_width,
                draw=False,
                **factory,
            )
        else:
            self.mixing = CachedAttention(
                config.width,
                heads=config.num_heads,
                kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                window=config.window if kind == "local_attention" else None,
                rope_base=config.rope_base,
                draw=False,
                **factory,
            )
        self.channel_norm = RMSNorm(config.width, config.norm_eps, **factory)
        self.mlp = GatedMLP(config.width, config.mlp_width, draw=False, **factory)

    def forward(self, x: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x: [B, T, width]; the result has its shape and dtype. The cache is updated in place."""
        mixed = self.mixing(self.temporal_norm(x), place, cache)
        normed, x = self.channel_norm(mixed, x)
        return x + self.mlp(normed)  # type: ignore[no-any-return]
