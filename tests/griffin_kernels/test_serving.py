"""A toy serving engine on pools of states: whatever its schedule, each sequence gets the tokens of its own single run.

Continuous batching with slots and rows that only pad, prefills in chunks (packed sequences), prefixes restored from
copies of states, guessed tokens verified at once and accepted in part. Rows that nobody owns hold NaN.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels as gk

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

VOCABULARY, WIDTH, TAPS, BLOCKS, HEADS, HEAD, WINDOW = 13, 16, 4, 2, 2, 8, 5
GUESSES = 3
"""Most tokens that are guessed at once."""
CHUNK = 6
RING = WINDOW + max(CHUNK, GUESSES + 1) - 1
POOL, RINGS, BATCH = 64, 16, 4
NOBODY = 0
"""A row of every pool that stands for padding."""


@functools.cache
def weights(dtype):
    """A model of a recurrent block, attention and another recurrent block."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    def recurrent():
        gates = [draw(BLOCKS, WIDTH // BLOCKS, WIDTH // BLOCKS, scale=0.5) for _ in range(2)]
        biases = [draw(BLOCKS, WIDTH // BLOCKS, scale=0.3) for _ in range(2)]
        return {
            "conv": (draw(TAPS, WIDTH, scale=0.5), draw(WIDTH, scale=0.3)),
            "gates": gk.RGLRUWeights(draw(WIDTH) - 3, *gates, *biases),
            "linear": [draw(WIDTH, WIDTH, scale=WIDTH**-0.5) for _ in range(3)],
        }

    attention = [draw(WIDTH, n * HEAD, scale=WIDTH**-0.5) for n in (HEADS, 1, 1)] + [
        draw(HEADS * HEAD, WIDTH, scale=0.3)
    ]
    return {"embedding": draw(VOCABULARY, WIDTH), "recurrent": [recurrent(), recurrent()], "attention": attention}


def model(tokens, dtype, recurrent, attend):
    """Logits [..., vocabulary]. recurrent: ``(layer, x, y)``; attend: ``(q, k, v)``, heads last but one."""
    given = weights(dtype)
    x = given["embedding"][tokens]
    for layer in (0, None, 1):
        normal = x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        if layer is None:
            q, k, v = (normal @ matrix for matrix in given["attention"][:3])
            heads = [part.unflatten(-1, (-1, HEAD)) for part in (q, k, v)]
            x = x + attend(*heads).flatten(-2) @ given["attention"][3]
        else:
            to_x, to_y, back = given["recurrent"][layer]["linear"]
            x = x + recurrent(layer, normal @ to_x, normal @ to_y) @ back
    return x @ given["embedding"].T


def single_run(tokens, dtype):
    """Logits [T, vocabulary] of one sequence from its beginning."""
    given = weights(dtype)["recurrent"]

    def recurrent(layer, x, y):
        return gk.recurrent_block(x, y, *given[layer]["conv"], given[layer]["gates"])[0]

    attend = functools.partial(gk.local_attention, window=WINDOW)
    return model(torch.tensor([tokens]), dtype, recurrent, attend)[0]


@dataclass(eq=False)
class Sequence:
    """tokens: prompt, then what was sampled. seen: of them have gone through the model. row, ring: its states."""

    tokens: list
    prompt: int
    ring: int
    row: int = -1
    seen: int = 0

    @property
    def pending(self):
        return self.tokens[self.seen :]


@dataclass
class Engine:
    dtype: torch.dtype
    random: random.Random
    free: list = field(default_factory=lambda: list(range(1, POOL)))
    rings: list = field(default_factory=lambda: list(range(1, RINGS)))
    sequences: list = field(default_factory=list)
    saved: list = field(default_factory=list)
    """(tokens, row, ring) of prefixes."""

    def __post_init__(self):
        empty = functools.partial(torch.full, fill_value=torch.nan, dtype=self.dtype)
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        # rows as an engine's pages have them: far apart, with room for something else
        self.states = [torch.full((POOL, 2 * WIDTH + 8), torch.nan, dtype=wide)[:, :WIDTH] for _ in range(2)]
        self.windows = [empty((POOL, TAPS - 1, WIDTH)) for _ in range(2)]
        self.keys, self.values = (empty((RINGS, RING, 1, HEAD)) for _ in range(2))

    def take(self, pool):
        return pool.pop(self.random.randrange(len(pool)))

    def drop(self, row):
        if row >= 0:
            for pool in (*self.states, *self.windows):
                pool[row] = torch.nan
            self.free.append(row)

    def begin(self, prompt):
        self.sequences.append(Sequence(list(prompt), len(prompt), self.take(self.rings)))
        return self.sequences[-1]

    def tokens_of(self, sequences, counts):
        """[B, most], the next tokens of each, padded with some token."""
        rows = [s.pending[:n] + [0] * (max(counts) - n) for s, n in zip(sequences, counts, strict=True)]
        return torch.tensor(rows)

    def run(self, tokens, recurrent, sequences, counts=None):
        """Logits [B, T, vocabulary] of the next tokens of sequences, whose keys go into their rings."""
        attend = functools.partial(
            gk.local_attention_extend, k_cache=self.keys, v_cache=self.values, window=WINDOW,
            positions=torch.tensor([s.seen for s in sequences]), slots=torch.tensor([s.ring for s in sequences]),
            lengths=None if counts is None else torch.tensor(counts),
        )  # fmt: skip
        return model(tokens, self.dtype, recurrent, attend)

    def prefill(self, sequences):
        """A random part of each one's pending tokens in one call: packed for the recurrence, padded for attention."""
        counts = [self.random.randint(1, min(CHUNK, len(s.pending))) for s in sequences]
        tokens, given = self.tokens_of(sequences, counts), weights(self.dtype)["recurrent"]
        real = torch.arange(tokens.shape[1]) < torch.tensor(counts)[:, None]  # [B, T]
        offsets = torch.tensor([0, *counts]).cumsum(0)
        starts, ends = [s.row for s in sequences], [self.take(self.free) for _ in sequences]
        keep = gk.last_tokens(torch.tensor(ends), int(offsets[-1]), offsets)

        def recurrent(layer, x, y):
            out = torch.zeros_like(x)
            out[real] = gk.recurrent_block_extend(
                x[real][None], y[real][None], *given[layer]["conv"], given[layer]["gates"],
                self.windows[layer], self.states[layer], torch.tensor(starts), keep, cu_seqlens=offsets,
            )[0]  # fmt: skip
            return out

        logits = self.run(tokens, recurrent, sequences, counts)
        for place, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            self.drop(sequence.row)
            sequence.row, sequence.seen = ends[place], sequence.seen + count
            if not sequence.pending:
                sequence.tokens.append(int(logits[place, count - 1].argmax()))

    def decode(self, sequences):
        """One token of each, in a batch of fixed size whose other rows name nobody's states."""
        padding = BATCH - len(sequences)
        tokens = torch.tensor([s.pending[0] for s in sequences] + [0] * padding)
        slots = torch.tensor([s.row for s in sequences] + [NOBODY] * padding)
        rings = torch.tensor([s.ring for s in sequences] + [NOBODY] * padding)
        positions = torch.tensor([s.seen for s in sequences] + [0] * padding)
        given, elsewhere = weights(self.dtype)["recurrent"], self.random.random() < 0.5
        ends = [self.take(self.free) for _ in sequences] if elsewhere else [s.row for s in sequences]
        to = torch.tensor(ends + [NOBODY] * padding) if elsewhere else None

        def recurrent(layer, x, y):
            return gk.recurrent_block_step(
                x, y, *given[layer]["conv"], given[layer]["gates"], self.windows[layer], self.states[layer],
                slots=slots, dst_slots=to, pad_slot=NOBODY,
            )  # fmt: skip

        def attend(q, k, v):
            return gk.local_attention_step(
                q, k, v, self.keys, self.values, positions, slots=rings, pad_slot=NOBODY, window=WINDOW
            )

        logits = model(tokens, self.dtype, recurrent, attend)
        for place, sequence in enumerate(sequences):
            if elsewhere:
                self.drop(sequence.row)
            sequence.row, sequence.seen = ends[place], sequence.seen + 1
            sequence.tokens.append(int(logits[place].argmax()))

    def verify(self, sequences):
        """Guess some tokens of each, right ones among them, and keep what the model would have chosen."""
        count, given = self.random.randint(1, GUESSES), weights(self.dtype)["recurrent"]
        for sequence in sequences:
            for _ in range(count):
                right = int(single_run(sequence.tokens, self.dtype)[-1].argmax())
                sequence.tokens.append(right if self.random.random() < 0.7 else self.random.randrange(VOCABULARY))
        tokens = self.tokens_of(sequences, [count + 1] * len(sequences))
        starts = torch.tensor([s.row for s in sequences])
        rows = [[self.take(self.free) for _ in range(count + 1)] for _ in sequences]

        def recurrent(layer, x, y):
            return gk.recurrent_block_extend(
                x, y, *given[layer]["conv"], given[layer]["gates"], self.windows[layer], self.states[layer],
                starts, torch.tensor(rows),
            )  # fmt: skip

        chosen = self.run(tokens, recurrent, sequences).argmax(-1).tolist()
        for sequence, mine, own in zip(sequences, chosen, rows, strict=True):
            guessed = sequence.pending[1:]
            accepted = next((n for n in range(count) if guessed[n] != mine[n]), count)
            del sequence.tokens[len(sequence.tokens) - count + accepted :]
            sequence.tokens.append(mine[accepted])
            for row in {sequence.row, *own} - {own[accepted]}:
                self.drop(row)
            sequence.row, sequence.seen = own[accepted], sequence.seen + 1 + accepted

    def save(self, sequence):
        """Copies of a sequence's states, for others that begin with the same tokens."""
        row, ring = self.take(self.free), self.take(self.rings)
        for pool in (*self.states, *self.windows):
            pool[row] = pool[sequence.row]
        for pool in (self.keys, self.values):
            pool[ring] = pool[sequence.ring]
        self.saved.append((sequence.tokens[: sequence.seen], row, ring))

    def restore(self):
        """A sequence that begins as a saved one does. Its states are the copies: they are used once."""
        tokens, row, ring = self.saved.pop(self.random.randrange(len(self.saved)))
        more = [self.random.randrange(VOCABULARY) for _ in range(self.random.randint(1, 4))]
        self.sequences.append(Sequence(tokens + more, len(tokens) + len(more), ring, row, len(tokens)))

    def end(self, sequence):
        self.sequences.remove(sequence)
        self.drop(sequence.row)
        for pool in (self.keys, self.values):
            pool[sequence.ring] = torch.nan
        self.rings.append(sequence.ring)

    def some(self, sequences):
        return self.random.sample(sequences, self.random.randint(1, min(BATCH, len(sequences))))


def check(sequence, dtype):
    """Every sampled token is the best of the single run; in float32 one that is as good may take its place."""
    logits = single_run(sequence.tokens, dtype)
    for place in range(sequence.prompt, len(sequence.tokens)):
        row = logits[place - 1]
        behind = float(row.max() - row[sequence.tokens[place]])
        assert behind <= (1e-9 if dtype == torch.float64 else 1e-4), f"token {place} of {sequence.tokens}"


def serve(seed, dtype, rounds):
    engine = Engine(dtype, random.Random(seed))
    pick, counted = engine.random, 0
    for _ in range(rounds):
        running = [s for s in engine.sequences if len(s.pending) == 1 and s.row >= 0]
        waiting = [s for s in engine.sequences if s not in running]
        action = pick.choice(["begin", "prefill", "prefill", "decode", "verify", "save", "restore", "end"])
        if action == "begin" and len(engine.rings) > 3:
            engine.begin([pick.randrange(VOCABULARY) for _ in range(pick.randint(1, 14))])
        elif action == "prefill" and waiting:
            engine.prefill(engine.some(waiting))
        elif action in ("decode", "verify") and running:
            getattr(engine, action)(engine.some(running))
        elif action == "save" and running and len(engine.rings) > 3 and len(engine.free) > 30:
            engine.save(pick.choice(running))
        elif action == "restore" and engine.saved:
            engine.restore()
        elif action == "end" and running:
            over = pick.choice(running)
            check(over, dtype)
            counted += len(over.tokens) - over.prompt
            engine.end(over)
    for sequence in engine.sequences:
        check(sequence, dtype)
        counted += len(sequence.tokens) - sequence.prompt
    return counted


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_schedule_gives_each_sequence_its_own_tokens(seed):
    with torch.no_grad():
        serve(seed, torch.float64, 40)


def test_native_kernels_serve_too():
    """In float32, on whatever this machine runs by default; a long run that samples many tokens."""
    with torch.no_grad():
        assert serve(7, torch.float32, 400) > 100
