"""What a model remembers between calls: recurrent states, the convolution's last inputs, keys and values.

Keys and values live in a ring of C slots: the key of a token at position p of its document is in slot p mod C. With
local attention C is the window, so a token overwrites the one that has just left the window. With global attention C is
above every position, so nothing is overwritten, and the ring grows by doubling.

A slot above the position of a row's last token is never visible before it is written anew, whatever it holds: keys of
an earlier document, or zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig

GROWTH = 64
"""A ring of global attention has a multiple of this many slots."""


# no dataclasses: FSDP's mixed precision would hand blocks copies of them, with states rounded to its dtype


class RecurrentCache:
    """Of a recurrent block. state: [B, R], float32 (float64 for a float64 model). conv: [B, K-1, R], oldest first."""

    def __init__(self, state: Tensor, conv: Tensor) -> None:
        self.state, self.conv = state, conv

    def update(self, state: Tensor, conv: Tensor) -> None:
        """Overwrite both in place, so that a captured CUDA graph finds them where they were."""
        if torch.is_grad_enabled():  # a backward pass may need the old ones
            self.state, self.conv = state.detach(), conv.detach()
            return
        self.state.copy_(state)
        self.conv.copy_(conv)


class AttentionCache:
    """Of an attention block. keys, values: [B, C, Hkv, d], slot p mod C for position p. wraps: C is the window."""

    def __init__(self, keys: Tensor, values: Tensor, wraps: bool) -> None:
        self.keys, self.values, self.wraps = keys, values, wraps

    @property
    def slots(self) -> int:
        return self.keys.shape[1]

    def past(self, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, count, Hkv, d] of the tokens before ``positions`` [B], oldest first."""
        rows, slots = self._rows_and_slots(positions - 1, count)
        return self.keys[rows, slots], self.values[rows, slots]

    def write(self, k: Tensor, v: Tensor, last: Tensor) -> None:
        """Store k, v [B, T, Hkv, d], whose last token is at position ``last`` [B] of its document."""
        count = min(k.shape[1], self.slots)
        at = self._rows_and_slots(last, count)  # count <= C: no slot twice
        self.keys.index_put_(at, k[:, -count:].detach().to(self.keys.dtype))
        self.values.index_put_(at, v[:, -count:].detach().to(self.values.dtype))

    def reserve(self, tokens: int) -> None:
        """Make room for positions below ``tokens`` where slots are not reused."""
        if not self.wraps and tokens > self.slots:
            slots = -(-max(tokens, 2 * self.slots) // GROWTH) * GROWTH
            more = (0, 0, 0, 0, 0, slots - self.slots)
            self.keys, self.values = (functional.pad(ring, more) for ring in (self.keys, self.values))

    def _rows_and_slots(self, last: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Indices [B, 1] and [B, count] of the slots of the ``count`` tokens that end with position ``last`` [B]."""
        ages = torch.arange(count - 1, -1, -1, device=last.device, dtype=torch.int64)
        rows = torch.arange(last.shape[0], device=last.device, dtype=torch.int64)
        return rows[:, None], (last[:, None] - ages) % self.slots


LayerCache = RecurrentCache | AttentionCache


class Cache:
    """The memory of a model for a batch of sequences; ``Griffin.forward`` makes it, reads it and updates it in place.

    positions: int64 [B], the position in its document of each row's next token. layers: one LayerCache for each block.
    tokens: how many tokens every row has been given. bound: no entry of ``positions`` is above it. Both are kept on
    the host, so that decoding never waits for a GPU.

    Nothing in it carries gradients. A cache made under torch.inference_mode can only be updated under it.
    """

    def __init__(
        self, config: GriffinConfig, batch: int, *, device: torch.device, dtype: torch.dtype, tokens: int = 0
    ) -> None:
        """An empty cache: every row is before position 0. tokens: positions to make room for with global attention."""
        self.config = config
        self.dtype = dtype
        self.tokens = 0
        self.bound = 0
        self.positions = torch.zeros(batch, dtype=torch.int64, device=device)
        self.layers: list[LayerCache] = []
        state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        for kind in config.block_types:
            if kind == "recurrent":
                state = torch.zeros(batch, config.lru_width, dtype=state_dtype, device=device)
                conv = torch.zeros(batch, config.conv_width - 1, config.lru_width, dtype=dtype, device=device)
                self.layers.append(RecurrentCache(state, conv))
            else:
                wraps = kind == "local_attention"
                shape = (batch, config.window if wraps else 0, config.num_kv_heads, config.head_dim)
                keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
                self.layers.append(AttentionCache(keys, values, wraps))
        self.reserve(tokens)

    @property
    def batch(self) -> int:
        return self.positions.shape[0]

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def reserve(self, tokens: int) -> None:
        """Make room for positions below ``tokens`` in global attention, which otherwise grows when it must."""
        for layer in self.layers:
            if isinstance(layer, AttentionCache):
                layer.reserve(tokens)

    def advance(self, last: Tensor, tokens: int, bound: int) -> None:
        """Every row was given ``tokens`` more, the last one at position ``last`` [B], none at ``bound`` or above."""
        torch.add(last, 1, out=self.positions)
        self.tokens += tokens
        self.bound = bound

    def nbytes(self, *, used: bool = False) -> int:
        """Bytes of states, keys and values (``positions``, 8 bytes a row, are not counted).

        used: count only the slots that the tokens given so far need, ``B * config.cache_bytes(tokens, ...)``, and not
        the whole ring, which is allocated from the start.
        """
        total = 0
        for layer in self.layers:
            size = sum(tensor.nbytes for tensor in vars(layer).values() if isinstance(tensor, Tensor))
            if used and isinstance(layer, AttentionCache) and layer.slots:
                size = size // layer.slots * min(self.tokens, layer.slots)
            total += size
        return total

    def check(self, config: GriffinConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Raise the error that says why this cache cannot serve a model and a batch."""
        if self.config is not config and self.config != config:
            raise errors.ArgumentError("cache: made by a model with another configuration")
        if self.batch != batch:
            raise errors.ShapeError(f"cache: made for {self.batch} rows, but tokens have {batch}")
        if self.device != device:
            raise errors.DeviceMismatchError(f"cache: on {self.device}, but tokens are on {device}")
        if self.dtype != dtype:
            raise errors.DtypeError(f"cache: of {self.dtype}, but the parameters are {dtype}")
