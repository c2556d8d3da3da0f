"""Decoding in a CUDA graph: the launches of a step are recorded once, and one call repeats them all.

It has not run on a GPU yet: here it is typed and imported only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from griffin_kernels.models.cache import Cache
    from griffin_kernels.models.griffin import Griffin


class DecodeGraph:
    """Logits of the next tokens, step by step; ``cache`` is updated in place, and must not be used by others meanwhile.

    The first call is an ordinary one, which chooses and compiles the kernels. The second one captures.
    """

    def __init__(self, model: Griffin, cache: Cache, steps: int) -> None:
        """steps: how many calls there will be at most. Rings of global attention cannot grow once they are captured."""
        cache.reserve(cache.bound + steps)
        self.model, self.cache = model, cache
        self.tokens = torch.zeros(cache.batch, 1, dtype=torch.int64, device=cache.device)
        self.logits: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B] -> logits [B, V], which the next call overwrites."""
        self.tokens.copy_(tokens[:, None])
        if self.logits is None:
            self.logits = self._step()
            return self.logits
        if self.graph is None:
            seen = self.cache.tokens, self.cache.bound
            self.graph = torch.cuda.CUDAGraph()
            # a stream of the cache's own device; other threads may go on meanwhile
            stream = torch.cuda.Stream(self.cache.device)  # type: ignore[no-untyped-call]
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.logits = self._step()
            self.cache.tokens, self.cache.bound = seen  # a capture runs nothing
        self.graph.replay()
        self.cache.tokens += 1  # what a replay does not know of
        self.cache.bound += 1
        return self.logits

    def _step(self) -> Tensor:
        logits, _ = self.model(self.tokens, cache=self.cache, last_only=True)
        return logits[:, -1]  # type: ignore[no-any-return]
