"""What a model remembers between calls: recurrent states, the convolution's last inputs, keys and values.

Keys and values live in a ring of C slots: the key of a token at position p of its document is in slot p mod C. With
local attention C is the window, so a token overwrites the one that has just left the window. With global attention C is
above every position, so nothing is overwritten, and the ring grows by doubling.

A slot above the position of a row's last token is never visible before it is written anew, whatever it holds: keys of
an earlier document, or zeros.

``restore`` and ``reorder`` write into the tensors that are there, so that a captured CUDA graph goes on with them;
``snapshot``, ``select``, ``repeat`` and ``fork`` make new caches. None of them reads a value on the host; rows in a
list are copied to the device, which waits for a GPU, rows in a tensor there are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from griffin_kernels import errors
from griffin_kernels.functional import _bridge
from griffin_kernels.models.config import GriffinConfig

GROWTH = 64
"""A ring of global attention has a multiple of this many slots."""


# no dataclasses: FSDP's mixed precision would hand blocks copies of them, with states rounded to its dtype


class RecurrentCache:
    """Of a recurrent block. state: [B, R], float32 (float64 for a float64 model). conv: [B, K-1, R], oldest first."""

    def __init__(self, state: Tensor, conv: Tensor) -> None:
        self.state, self.conv = state, conv

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.state, self.conv

    def mapped(self, function: Callable[[Tensor], Tensor]) -> RecurrentCache:
        """A new one of what ``function`` makes of both tensors."""
        return RecurrentCache(function(self.state), function(self.conv))

    def owned(self) -> tuple[Tensor, Tensor]:
        """conv and state, to be changed in place; copies where a backward pass may need the old ones."""
        if torch.is_grad_enabled():
            self.state, self.conv = self.state.clone(), self.conv.clone()
        return self.conv, self.state

    def with_room(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Pools conv [B * (1 + tokens), K-1, R] and state: what each row has, and room for that after each token."""
        pools = [t.new_empty(t.shape[0], 1 + tokens, *t.shape[1:]) for t in (self.conv, self.state)]
        for pool, tensor in zip(pools, (self.conv, self.state), strict=True):
            pool[:, 0] = tensor
        return pools[0].flatten(0, 1), pools[1].flatten(0, 1)

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

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def mapped(self, function: Callable[[Tensor], Tensor]) -> AttentionCache:
        """A new one of what ``function`` makes of both rings."""
        return AttentionCache(function(self.keys), function(self.values), self.wraps)

    def past(self, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, count, Hkv, d] of the tokens before ``positions`` [B], oldest first."""
        rows, slots = self._rows_and_slots(positions - 1, count)
        return self.keys[rows, slots], self.values[rows, slots]

    def write(self, k: Tensor, v: Tensor, last: Tensor, lengths: Tensor | None = None) -> None:
        """Store k, v [B, T, Hkv, d], whose last token is at position ``last`` [B] of its document.

        lengths: int64 [B], how many of a row's T tokens there are; ``last`` is the position of the last of these.
        """
        count = min(k.shape[1], self.slots)
        at = self._rows_and_slots(last, count)  # count <= C: no slot twice
        for ring, new in ((self.keys, k), (self.values, v)):
            if lengths is None:
                kept = new[:, -count:].detach().to(ring.dtype)
            else:
                taken = lengths[:, None] - torch.arange(count, 0, -1, device=last.device, dtype=torch.int64)
                kept = new.detach().to(ring.dtype)[at[0], taken.clamp(min=0)]
                kept = torch.where((taken >= 0)[:, :, None, None], kept, ring[at])  # what is not there changes nothing
            ring.index_put_(at, kept)

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

Rows = Tensor | Sequence[int] | None


def _overwrite(tensor: Tensor, index: Tensor | None, new: Tensor) -> None:
    if index is None:
        tensor.copy_(new)
    else:
        tensor.index_copy_(0, index, new)


class Cache:
    """The memory of a model for a batch of sequences; ``Griffin.forward`` makes it, reads it and updates it in place.

    positions: int64 [B], the position in its document of each row's next token. layers: one LayerCache for each block.
    tokens: how many tokens every row has been given, padding included; no row has more. bound: no entry of
    ``positions`` is above it. Both are kept on the host, so that decoding never waits for a GPU.

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

    @torch.no_grad()
    def snapshot(self, rows: Rows = None) -> Cache:
        """A copy of some rows, for ``restore``: a cache of its own that later calls of the model do not change.

        rows: int64 or int32 [n] or a sequence of ints, which rows, in which order; None: all.

        Returns a new Cache of n rows. States, convolution inputs and rings are copied whole, ``config.cache_bytes`` a
        row; of global attention only the slots that positions below ``bound`` need. Raises as ``select``.
        """
        copy = self._made(self._picked(rows))
        for layer in copy.layers:
            if isinstance(layer, AttentionCache) and not layer.wraps:
                needed = min(-(-self.bound // GROWTH) * GROWTH, layer.slots)
                if needed < layer.slots:
                    layer.keys, layer.values = layer.keys[:, :needed].clone(), layer.values[:, :needed].clone()
        return copy

    @torch.no_grad()
    def restore(self, snapshot: Cache, rows: Rows = None) -> None:
        """Overwrite rows with those of a snapshot, in place: tensors stay where they are, as a CUDA graph needs them.

        snapshot: a cache of the same configuration, dtype and device, and as many rows as are overwritten, such as
            ``snapshot``, ``select`` or ``fork`` made. It can be restored any number of times.
        rows: int64 or int32 [n] or a sequence of ints, each once at most, the rows to overwrite; None: all.

        Only rings of global attention that have fewer slots than the snapshot's move, since they grow. Raises
        ArgumentError, ShapeError, DtypeError or DeviceMismatchError naming the argument at fault.
        """
        if not isinstance(snapshot, Cache):
            raise errors.ArgumentError(f"snapshot is a {type(snapshot).__name__}, expected a Cache")
        index = self._index(rows)
        count = self.batch if index is None else index.shape[0]
        if snapshot.config != self.config:
            raise errors.ArgumentError("snapshot: made by a model with another configuration")
        if snapshot.batch != count:
            raise errors.ShapeError(f"snapshot: has {snapshot.batch} rows, but {count} are to be restored")
        if snapshot.device != self.device:
            raise errors.DeviceMismatchError(f"snapshot: on {snapshot.device}, but the cache is on {self.device}")
        if snapshot.dtype != self.dtype:
            raise errors.DtypeError(f"snapshot: of {snapshot.dtype}, but the cache is {self.dtype}")
        for mine, theirs in zip(self.layers, snapshot.layers, strict=True):
            if isinstance(mine, AttentionCache) and isinstance(theirs, AttentionCache):
                mine.reserve(theirs.slots)
                if mine.slots > theirs.slots:  # slots beyond are above every position of the rows, so never visible
                    mine = AttentionCache(mine.keys[:, : theirs.slots], mine.values[:, : theirs.slots], mine.wraps)
            for tensor, saved in zip(mine.tensors, theirs.tensors, strict=True):
                _overwrite(tensor, index, saved)
        _overwrite(self.positions, index, snapshot.positions)
        self.tokens = snapshot.tokens if index is None else max(self.tokens, snapshot.tokens)
        self.bound = snapshot.bound if index is None else max(self.bound, snapshot.bound)

    @torch.no_grad()
    def select(self, rows: Rows) -> Cache:
        """A new cache of these rows: fewer, in another order, or some of them several times.

        rows: int64 or int32 [n] or a sequence of ints, from 0 to B - 1; checked on the CPU only.

        Raises ArgumentError, ShapeError, DtypeError or DeviceMismatchError naming the argument at fault.
        """
        if rows is None:
            raise errors.ArgumentError("rows is None, expected int64 [n] or a sequence of ints; fork() copies all")
        return self._made(self._picked(rows))

    @torch.no_grad()
    def repeat(self, count: int) -> Cache:
        """A new cache with each row ``count`` times in succession, row b at b * count: several samples of a prompt."""
        if count < 0:
            raise errors.ArgumentError(f"count is {count}, expected at least 0")
        return self._made(lambda tensor: tensor.repeat_interleave(count, dim=0))

    @torch.no_grad()
    def reorder(self, rows: Rows) -> None:
        """Row i becomes what row ``rows[i]`` was, in place, as in beam search. rows: as of ``select``, B of them."""
        index = self._index(rows)
        if index is None or index.shape[0] != self.batch:
            found = "None" if index is None else f"of {index.shape[0]} entries"
            raise errors.ShapeError(f"rows is {found}, expected {self.batch}; select() takes any number")
        for tensor in self._tensors():
            tensor.copy_(tensor.index_select(0, index))

    @torch.no_grad()
    def fork(self) -> Cache:
        """A new cache of the same rows with as much room, which goes on by itself."""
        return self._made(torch.clone)

    def _tensors(self) -> Iterator[Tensor]:
        for layer in self.layers:
            yield from layer.tensors
        yield self.positions

    def _picked(self, rows: Rows) -> Callable[[Tensor], Tensor]:
        index = self._index(rows)
        return torch.clone if index is None else lambda tensor: tensor.index_select(0, index)

    def _made(self, function: Callable[[Tensor], Tensor]) -> Cache:
        """A cache of what ``function`` makes of every tensor."""
        made = Cache.__new__(Cache)
        made.config, made.dtype, made.tokens, made.bound = self.config, self.dtype, self.tokens, self.bound
        made.layers = [layer.mapped(function) for layer in self.layers]
        made.positions = function(self.positions)
        return made

    def _index(self, rows: Rows) -> Tensor | None:
        """int64 [n] on the cache's device, or None for all rows."""
        if rows is None:
            return None
        if not isinstance(rows, Tensor):
            rows = torch.tensor([int(row) for row in rows], dtype=torch.int64, device=self.device)
        if rows.dtype not in (torch.int64, torch.int32):
            raise errors.DtypeError(f"rows: dtype {rows.dtype}, expected int64 or int32")
        if rows.dim() != 1:
            raise errors.ShapeError(f"rows: shape {list(rows.shape)}, expected [n]")
        if rows.device != self.device:
            raise errors.DeviceMismatchError(f"rows: on {rows.device}, but the cache is on {self.device}")
        # values are read where that waits for nothing
        if self.device.type == "cpu" and rows.numel() and _bridge.is_plain((rows,)):
            low, high = (int(value) for value in rows.aminmax())
            if low < 0 or high >= self.batch:
                wrong = low if low < 0 else high
                raise errors.ArgumentError(f"rows: row {wrong}, expected 0 to {self.batch - 1}")
        return rows.long()

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


class PendingTokens:
    """Tokens that a model has read and its cache has not yet: drafted ones, of which ``commit`` takes in the first few.

    ``Griffin.verify`` makes it. It holds each recurrent block's states after every token and each attention block's new
    keys and values, so that nothing has to be taken back or computed again, whatever is rejected.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache, self._tokens_before = cache, cache.tokens
        self.time = 0
        self._over = False
        self._held: list[tuple[LayerCache, Tensor, Tensor]] = []

    def hold(self, layer: LayerCache, first: Tensor, second: Tensor) -> None:
        """Of a recurrent block conv and state [B, 1 + T, ...] before and after each token, of attention k and v."""
        self._held.append((layer, first, second))

    @torch.no_grad()
    def commit(self, lengths: Tensor, most: int | None = None) -> None:
        """The cache takes in the first ``lengths[b]`` tokens of each row, in place; once.

        lengths: int64 or int32 [B], 0 to T; checked on the CPU only, cut to that elsewhere. most: no length is above
        it, where the caller knows; T if None. With it rings of global attention grow no further than they must.

        Raises ArgumentError where it was called before, or another call has changed the cache.
        """
        cache = self.cache
        check_lengths(lengths, cache.batch, self.time, cache.device)
        if self._over or self._tokens_before != cache.tokens:
            raise errors.ArgumentError("commit: the cache has changed since these tokens were read; read them again")
        self._over = True
        lengths = lengths.long().clamp(0, self.time)
        bound = cache.bound + (self.time if most is None else min(most, self.time))
        cache.reserve(bound)
        rows = torch.arange(cache.batch, device=cache.device, dtype=torch.int64)
        last = cache.positions + (lengths - 1)
        for layer, first, second in self._held:
            if isinstance(layer, RecurrentCache):
                layer.update(second[rows, lengths], first[rows, lengths])
            else:
                layer.write(first, second, last, lengths)
        self._held.clear()
        cache.advance(last, self.time, bound)


def check_lengths(lengths: Tensor, batch: int, time: int, device: torch.device) -> None:
    """Raise the error that says why these are not the numbers of tokens of a batch's rows."""
    if not isinstance(lengths, Tensor):
        raise errors.ArgumentError(f"lengths is a {type(lengths).__name__}, expected a tensor")
    if lengths.dtype not in (torch.int64, torch.int32):
        raise errors.DtypeError(f"lengths: dtype {lengths.dtype}, expected int64 or int32")
    if lengths.shape != (batch,):
        raise errors.ShapeError(f"lengths: shape {list(lengths.shape)}, expected [B={batch}]")
    if lengths.device != device:
        raise errors.DeviceMismatchError(f"lengths: on {lengths.device}, expected {device}")
    if device.type == "cpu" and batch and _bridge.is_plain((lengths,)):
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > time:
            raise errors.ArgumentError(f"lengths: {low if low < 0 else high}, expected 0 to T={time}")
