"""Continuous batching: requests come and go, every step decodes one token of each row of one cache.

A row of the cache is a slot. A new request is prefilled alone, its cache copied into a free row; a row that has ended
is free for the next. Rows without a request decode too, and nobody reads what they say: a step is one call of the
kernels whatever the rows hold, and no row sees another. At the end each text is held against a run of its own.

    python examples/serve_with_slots.py
"""

from __future__ import annotations

import argparse
import collections
import time
from dataclasses import dataclass, field

import torch

from griffin_kernels.models import Griffin, preset


@dataclass
class Request:
    """prompt: int64 [T]. most: tokens to generate. text: those that were."""

    prompt: torch.Tensor
    most: int
    text: list[int] = field(default_factory=list)


class Engine:
    """slots: rows that decode together."""

    def __init__(self, model: Griffin, slots: int) -> None:
        self.model, self.cache = model, model.init_cache(slots)
        self.running: dict[int, Request] = {}
        self.waiting: collections.deque[Request] = collections.deque()
        self.next = torch.zeros(slots, 1, dtype=torch.int64)

    def step(self) -> int:
        """Prefill requests into free rows, then decode one token of every row; how many requests had a row."""
        for row in sorted(set(range(self.cache.batch)) - set(self.running)):
            if self.waiting:
                request = self.waiting.popleft()
                logits, filled = self.model(request.prompt[None], last_only=True)
                self.cache.restore(filled, rows=[row])
                self.running[row] = request
                self.take(row, int(logits.argmax()))
        busy = len(self.running)
        if busy:
            logits, _ = self.model(self.next, cache=self.cache)
            for row, token in enumerate(logits[:, -1].argmax(dim=1).tolist()):
                self.take(row, token)
        return busy

    def take(self, row: int, token: int) -> None:
        """A row has said a token; its request may have ended with it."""
        request = self.running.get(row)
        if request is not None:
            request.text.append(token)
            self.next[row] = token
            if len(request.text) == request.most:
                del self.running[row]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="a few short requests")
    options = parser.parse_args()
    if options.quick:
        options.slots, options.requests = 3, 7

    torch.manual_seed(0)
    model = Griffin(preset("griffin-tiny")).eval()
    engine, draw = Engine(model, options.slots), torch.Generator().manual_seed(1)
    engine.waiting.append(Request(torch.zeros(3, dtype=torch.int64), 3))
    while engine.waiting or engine.running:  # loads every kernel before time is taken
        engine.step()
    requests = []
    for _ in range(options.requests):
        length, most = (int(torch.randint(low, high, (), generator=draw)) for low, high in ((1, 40), (1, 30)))
        requests.append(Request(torch.randint(256, (length,), generator=draw), most))
    waiting = collections.deque(requests)

    steps, rows, begin = 0, 0, time.perf_counter()
    while waiting or engine.waiting or engine.running:
        if waiting:  # one more comes in at every step
            engine.waiting.append(waiting.popleft())
        rows += engine.step()
        steps += 1
    tokens = sum(len(request.text) for request in requests)
    print(
        f"{len(requests)} requests, {tokens} tokens in {steps} steps, {rows / steps:.1f} of {options.slots} rows busy"
    )
    print(f"{tokens / (time.perf_counter() - begin):.0f} tokens/s on {engine.cache.device}")

    for number, request in enumerate(requests):
        alone = model.generate(request.prompt[None], request.most)[0, len(request.prompt) :]
        if alone.tolist() != request.text:
            raise SystemExit(f"request {number} differs from its own run: {request.text}, alone {alone.tolist()}")
    print("every text is that of a run of its own")


if __name__ == "__main__":
    main()
