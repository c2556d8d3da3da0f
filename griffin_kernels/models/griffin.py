"""Griffin, Hawk and the MQA Transformer as one module: the configuration says which."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from griffin_kernels import errors
from griffin_kernels.functional import _bridge
from griffin_kernels.models.cache import Cache, PendingTokens, check_lengths
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.layers import Place, ResidualBlock
from griffin_kernels.models.loss import Implementation, Reduction, linear_cross_entropy
from griffin_kernels.models.sampling import OnToken, Stop
from griffin_kernels.models.speculation import DRAFT_TOKENS
from griffin_kernels.nn import RGLRU, RMSNorm, TemporalConv1D
from griffin_kernels.nn.attention_layers import rope_tables
from griffin_kernels.nn.drawing import draw_linear, factory_of, undrawn
from griffin_kernels.nn.linear_layers import linear
from griffin_kernels.nn.sharded import local


class Griffin(nn.Module):
    """A language model of residual blocks, each of which mixes time by recurrence or attention (arXiv 2402.19427).

    Hawk has recurrent blocks only, Griffin also local attention, the MQA Transformer global attention only. The
    embedding is the output matrix too. With ``config.scale_embeddings`` embeddings are multiplied by sqrt(width)
    rounded to bfloat16, as both published implementations do, because their checkpoints were trained so.

    config: see GriffinConfig. device, dtype: of the parameters; torch's defaults if None. ``device="meta"`` allocates
    nothing. Parameters are drawn as in the published code: matrices normal with variance 1 / inputs (2 / layers of
    that for the last matrix of a block), decays with exp(-softplus(a_param))^2 uniform in [0.9^2, 0.999^2].

    The recurrence, the convolution and attention run on the kernels that ``griffin_kernels.select`` chooses.
    """

    def __init__(
        self, config: GriffinConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        factory = factory_of(device, dtype)
        self.config = self.cache_config = config  # of a model cut over ranks, a cache has this rank's sizes
        sizes = (config.vocab_size, config.width)
        self.embedding = undrawn(nn.Embedding, *sizes, factory=factory)
        self.blocks = nn.ModuleList(ResidualBlock(config, kind, factory) for kind in config.block_types)
        self.final_norm = RMSNorm(config.width, config.norm_eps, **factory)
        # both published codes round it so, whatever the dtype
        self.embedding_scale = float(torch.tensor(math.sqrt(config.width), dtype=torch.bfloat16, device="cpu"))
        self.has_attention = any(kind != "recurrent" for kind in config.block_types)
        self.has_global_attention = "global_attention" in config.block_types
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew."""
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear):
                last = name.endswith((".linear_out", ".out", ".down"))
                draw_linear(part, 2 / self.config.num_layers if last else 1.0)
            elif isinstance(part, RMSNorm | TemporalConv1D | RGLRU):
                part.reset_parameters()

    def init_cache(self, batch: int, *, tokens: int = 0) -> Cache:
        """An empty cache for ``batch`` rows, each before position 0, on the model's device and in its dtype.

        tokens: positions to make room for with global attention, which otherwise grows as it must; a captured CUDA
        graph needs all the room it will ever use.
        """
        weight = self.embedding.weight
        return Cache(self.cache_config, batch, device=weight.device, dtype=weight.dtype, tokens=tokens)

    def forward(
        self,
        tokens: Tensor,
        segment_pos: Tensor | None = None,
        cache: Cache | None = None,
        *,
        lengths: Tensor | None = None,
        last_only: bool = False,
        return_cache: bool = True,
        pending: PendingTokens | None = None,
    ) -> tuple[Tensor, Cache | None]:
        """Logits of the token after each of ``tokens``: prefill, prefill continued from a cache, decode, training.

        tokens: int64 or int32 [B, T]. On a GPU their range is not checked by this function.
        segment_pos: int64 or int32 [B, T], each token's position in its document; 0 begins a document, which sees
            nothing of what was before it. A row goes on by ones; its first token goes on where the cache ends or is 0.
            Without it rows go on where the cache ends, and without a cache they are one document from position 0.
            Checked on the CPU only. A model with global attention reads its maximum, which waits for a GPU.
        cache: of earlier tokens of the same rows. **It is updated in place** and returned; ``T = 1`` is decode, which
            waits for nothing and writes into the same memory, so that a CUDA graph can be captured. Pieces of any
            length give what one call gives. Gradients do not flow into a cache.
        lengths: int64 or int32 [B], how many of its T tokens each row has, 0 to T; those after them only pad: the
            cache does not take them in, and their logits mean nothing. Checked on the CPU only. Rows of a cache stand
            at positions of their own from then on.
        last_only: logits of each row's last token only, [B, 1, V]: what serving needs; all of them are V numbers a
            token. Those of a row of length 0 mean nothing.
        return_cache: False builds no cache and returns None for it, for training; one given is read and left as it is.
        pending: see ``verify``, which passes it.

        Returns logits [B, T, V], and the cache, a new one where none was given. Logits, softcap included, and all
        matmuls are in the parameters' dtype; RMSNorm, RoPE, the gates and state of the recurrence, and softmax compute
        in float32 or better. T = 0 or B = 0 gives empty logits and leaves the cache as it was.

        Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
        """
        x, cache = self.hidden(
            tokens,
            segment_pos,
            cache,
            lengths=lengths,
            last_only=last_only,
            return_cache=return_cache,
            pending=pending,
        )
        return self._logits(x), cache

    def hidden(
        self,
        tokens: Tensor,
        segment_pos: Tensor | None = None,
        cache: Cache | None = None,
        *,
        lengths: Tensor | None = None,
        last_only: bool = False,
        return_cache: bool = True,
        pending: PendingTokens | None = None,
    ) -> tuple[Tensor, Cache | None]:
        """What ``forward`` multiplies with the output matrix: the final norm's output [B, T, width], and the cache.

        For losses that need no logits, and heads of one's own. Arguments and errors are ``forward``'s.
        """
        self._check(tokens, segment_pos, cache, return_cache)
        batch, time = tokens.shape
        if lengths is not None:
            check_lengths(lengths, batch, time, tokens.device)
            lengths = lengths.long().clamp(0, time)
        if return_cache and cache is None:
            cache = self.init_cache(batch)
        if batch == 0 or time == 0:
            shape = (batch, min(time, 1) if last_only else time, self.config.width)
            return self.embedding.weight.new_empty(shape), cache if return_cache else None

        place, bound = self._place(tokens, segment_pos, cache, return_cache, lengths)
        place.pending = pending
        if cache is not None and return_cache:
            cache.reserve(bound)
        x = self.embedding(tokens)
        if self.config.scale_embeddings:
            x = x * self.embedding_scale
        for index, block in enumerate(self.blocks):
            x = block(x, place, None if cache is None else cache.layers[index])
        if cache is not None and return_cache:
            cache.advance(place.last, time, bound)
        if last_only and lengths is not None:
            x = x.gather(1, (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2]))
        return self.final_norm(x[:, -1:] if last_only else x), cache if return_cache else None

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        segment_pos: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        implementation: Implementation = "chunked",
    ) -> Tensor:
        """Cross-entropy of ``targets`` after ``tokens``, for training: the logits of all tokens are never held.

        tokens, segment_pos: [B, T], as ``forward`` takes them. targets: int64 or int32 [B, T], the token that follows
        each, ``tokens`` shifted by one, or ignore_index. implementation and the rest: see
        ``griffin_kernels.models.linear_cross_entropy``. Returns a scalar, or [B, T] with reduction="none".

        Under FSDP2, call ``torch.distributed.fsdp.register_fsdp_forward_method(model, "loss")`` once: it gathers
        parameters for ``forward`` alone otherwise.
        """
        hidden, _ = self.hidden(tokens, segment_pos, return_cache=False)
        return linear_cross_entropy(
            hidden,
            local(self.embedding.weight),
            targets,
            softcap=self.config.logits_softcap,
            ignore_index=ignore_index,
            reduction=reduction,
            implementation=implementation,
        )

    @torch.no_grad()
    def verify(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, PendingTokens]:
        """Logits of drafted tokens, and the tokens, of which the cache takes in some later.

        tokens: int64 or int32 [B, T], which go on where the cache ends: a row's last token that is certain, then its
            drafted ones. cache: is left as it is until ``pending.commit``.

        Returns logits [B, T, V] and ``pending``: ``pending.commit(lengths)`` has the cache take in the first
        ``lengths[b]`` tokens of row b, in place. Neither waits for a GPU. Until then each token of a row takes a state
        and K-1 inputs of the convolution in every recurrent block.

        Raises as ``forward``.
        """
        if not isinstance(cache, Cache):
            raise errors.ArgumentError(f"cache is a {type(cache).__name__}, expected the Cache of an earlier call")
        pending = PendingTokens(cache)
        logits, _ = self(tokens, cache=cache, return_cache=False, pending=pending)
        pending.time = tokens.shape[1]
        return logits, pending

    def _place(
        self, tokens: Tensor, segment_pos: Tensor | None, cache: Cache | None, update: bool, lengths: Tensor | None
    ) -> tuple[Place, int]:
        """Where the tokens stand, and a number that all their positions are below."""
        batch, time = tokens.shape
        if cache is not None and not cache.tokens:
            cache = None
        steps = torch.arange(time, device=tokens.device, dtype=torch.int64)
        bound = time if cache is None else cache.bound + time
        if segment_pos is not None:
            positions = segment_pos.long()
            if self.has_global_attention and update:
                highest = int(positions.max()) + 1  # rows that begin new documents again and again need no more room
                bound = highest if lengths is None or cache is None else max(highest, cache.bound)
        elif cache is not None:
            positions = cache.positions[:, None] + steps
        else:
            positions = steps.expand(batch, time)
        documents = None if segment_pos is None and cache is None else positions
        place = Place(positions, documents, update=update)
        if cache is not None:
            place.before, place.tokens_before, place.bound_before = cache.positions, cache.tokens, cache.bound
        if lengths is not None:
            place.take(lengths)
        if self.has_attention:
            tables = rope_tables(positions, self.config.head_dim, self.config.rope_base, self.embedding.weight.dtype)
            place.cos, place.sin = tables
        return place, bound

    def _logits(self, x: Tensor) -> Tensor:
        """Of what ``hidden`` gives."""
        logits = linear(x, local(self.embedding.weight))
        cap = self.config.logits_softcap
        if cap is None:
            return logits
        if logits.requires_grad:
            return torch.tanh(logits / cap) * cap
        return logits.div_(cap).tanh_().mul_(cap)

    def _check(self, tokens: Tensor, segment_pos: Tensor | None, cache: Cache | None, return_cache: bool) -> None:
        weight = self.embedding.weight
        for name, given in (("tokens", tokens), ("segment_pos", segment_pos)):
            if given is None and name == "segment_pos":
                continue
            if not isinstance(given, Tensor):
                raise errors.ArgumentError(f"{name} is a {type(given).__name__}, expected a tensor")
            if given.dtype not in (torch.int64, torch.int32):
                raise errors.DtypeError(f"{name}: dtype {given.dtype}, expected int64 or int32")
            if given.dim() != 2:
                raise errors.ShapeError(f"{name}: shape {list(given.shape)}, expected [B, T]")
            if given.shape != tokens.shape:
                raise errors.ShapeError(f"{name}: shape {list(given.shape)}, but tokens have {list(tokens.shape)}")
            if given.device != weight.device:
                raise errors.DeviceMismatchError(f"{name}: on {given.device}, but the model is on {weight.device}")
        if cache is not None:
            if not isinstance(cache, Cache):
                raise errors.ArgumentError(f"cache is a {type(cache).__name__}, expected the Cache of an earlier call")
            cache.check(self.cache_config, tokens.shape[0], tokens.device, weight.dtype)
        # values are read where that waits for nothing
        if tokens.device.type != "cpu" or tokens.numel() == 0 or not _bridge.is_plain((tokens,)):
            return
        low, high = (int(value) for value in tokens.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            wrong = low if low < 0 else high
            raise errors.ArgumentError(f"tokens: id {wrong}, expected 0 to {self.config.vocab_size - 1}")
        if segment_pos is not None:
            follows = segment_pos[:, 1:] == segment_pos[:, :-1] + 1
            if not bool(((segment_pos[:, 1:] == 0) | follows).all()) or int(segment_pos.min()) < 0:
                raise errors.ArgumentError("segment_pos: each entry must be 0 or one more than the entry before it")
            first = segment_pos[:, 0]
            begin = f"segment_pos: rows begin at {first.tolist()}"
            if cache is not None and not bool(((first == 0) | (first == cache.positions)).all()):
                ends = cache.positions.tolist()
                raise errors.ArgumentError(f"{begin}, expected 0 or where the cache ends, {ends}")
            if cache is None and return_cache and self.has_attention and bool(first.any()):
                without = "pass return_cache=False for the logits alone"
                raise errors.ArgumentError(f"{begin}, but there is no cache with the keys before; {without}")

    def generate(
        self,
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
    ) -> Tensor:
        """Prompts, followed by at most ``max_new_tokens`` more: tokens [B, T] -> [B, T + N] in their dtype.

        The first T columns are ``tokens`` as they were given, padding included. Column T on are each row's new tokens,
        then ``pad_token_id``. N is the most new tokens that a row has: ``max_new_tokens`` unless all rows end before.
        Each row has the tokens that it would have alone, but for roundings. ``models.generate`` takes the same
        arguments, and also tells the lengths and how many drafts were accepted.

        tokens: int64 or int32 [B, T], T >= 1. What is padding may be any number.
        temperature: 0 takes the likeliest token; else tokens are drawn from softmax(logits / temperature) by
            ``generator``, or torch's own.
        top_k, top_p: draw from the k likeliest tokens only, then from the fewest likeliest ones with probability p.
        lengths: int64 or int32 [B], at least 1: row b's prompt is its first ``lengths[b]`` tokens.
        attention_mask: bool or integer [B, T], in place of lengths: tokens where it is 0 are no part of the prompt,
            be they on the left, on the right or in between.
        eos_token_id: one token or several, each of which ends a row. pad_token_id: any number; the first of
            eos_token_id if None, or 0.
        stop: token sequences, with each of which a row ends; or a function of a row's new tokens, a list of ints which
            it must not change, called after each of them: True ends the row. What ends a row is kept in it.
        on_token: called with row and token for each new token, in the order of a row.
        cache: of text before ``tokens``, a row each, as ``Cache.repeat`` makes it of a prefix that all share. It is
            copied and left as it is.
        prompt_lookup: draft what came after the last n tokens where the text had them before; n is at most this.
        assistant: a smaller model of the same vocabulary, on the same device, which drafts.
        draft_tokens: how many are drafted, before the model reads all of them in one call and accepts those that it
            would have chosen; by the rule of arXiv 2211.17192 where tokens are drawn. Neither changes what comes out:
            the same tokens at temperature 0, the same distribution else.
        cuda_graph: on a GPU, decode in a CUDA graph, which is captured anew by each call; False runs the kernels one by
            one. Not with drafts, whose rounds differ in length. **Decoding in a graph has not run on a GPU yet.**

        A GPU is waited for in every step with eos_token_id, stop or on_token, and in every round of drafts; else only
        for the lengths of prompts. Raises as ``forward`` does, and ArgumentError for options out of range.
        """
        from griffin_kernels.models.generation import generate

        return generate(
            self, tokens, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator,
            lengths=lengths, attention_mask=attention_mask, eos_token_id=eos_token_id, pad_token_id=pad_token_id,
            stop=stop, on_token=on_token, cache=cache, assistant=assistant, prompt_lookup=prompt_lookup,
            draft_tokens=draft_tokens, cuda_graph=cuda_graph,
        ).tokens  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Griffin:
        """``griffin_kernels.models.load_pretrained``."""
        from griffin_kernels.models.checkpoint import load_pretrained

        return load_pretrained(folder, device=device, dtype=dtype)

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "50GB") -> None:
        """``griffin_kernels.models.save_pretrained``, which has more options."""
        from griffin_kernels.models.checkpoint import save_pretrained

        save_pretrained(self, folder, max_shard_size=max_shard_size)
