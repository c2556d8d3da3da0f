"""The recurrent block on batches as vLLM lays them out, on pages, against each sequence run whole."""

from __future__ import annotations

import importlib
import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from griffin_kernels.functional import RGLRUWeights, recurrent_block
from griffin_kernels.integrations import _vllm_batch, vllm
from griffin_kernels.integrations._vllm_batch import BlockWeights, StatePools, guessed_rows, prompt_rows, run_batch

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

BLOCKS, N, TAPS = 3, 4, 4
WIDTH = BLOCKS * N
PAGES = 24
PAGE_BYTES = 1024
"""Of a page that attention's is longer than: rows of the pools lie apart."""


def drawn(generator, *shape, scale=1.0):
    return torch.randn(shape, generator=generator) * scale


def made_weights(generator):
    gates = [drawn(generator, BLOCKS, N, N) for _ in range(2)] + [drawn(generator, BLOCKS, N) for _ in range(2)]
    gates = RGLRUWeights(drawn(generator, WIDTH) - 3.0, *gates)
    return BlockWeights(drawn(generator, TAPS, WIDTH), drawn(generator, WIDTH), gates)


def paged_pools(dim_first=False, dtype=torch.float32):
    """Views of raw pages as vLLM's bind_kv_cache makes them, and the pages; what nobody wrote is NaN."""
    pages = torch.full((PAGES, PAGE_BYTES), -1, dtype=torch.int8)
    split = (TAPS - 1) * WIDTH * dtype.itemsize
    shape = (WIDTH, TAPS - 1) if dim_first else (TAPS - 1, WIDTH)
    conv = pages[:, :split].view(dtype).view(-1, *shape)
    states = pages[:, split : split + WIDTH * 4].view(torch.float32).view(-1, WIDTH)
    assert bool(states.isnan().all()) and states.stride(0) == PAGE_BYTES // 4
    return StatePools(conv.transpose(1, 2) if dim_first else conv, states), pages


def offsets(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def laid_out(decodes, prompts, *, goes_on, slots, accepted=None, padded_rows=0):
    """Metadata of requests by name -> tokens; slots: name -> its blocks."""
    table = [slots[name] for name in decodes] + [[0] * len(next(iter(slots.values())))] * padded_rows
    lengths = [decodes[name] for name in decodes] + [0] * padded_rows
    tokens = sum(decodes.values()) + (padded_rows if accepted is None else 0)
    good = None if accepted is None else [accepted[name] for name in decodes] + [1] * padded_rows
    return SimpleNamespace(
        num_decode_tokens=tokens,
        num_prefill_tokens=sum(prompts.values()),
        state_indices_tensor_d=torch.tensor(table, dtype=torch.int32) if table else None,
        num_accepted_tokens=None if good is None else torch.tensor(good, dtype=torch.int32),
        query_start_loc_d=None if accepted is None else offsets(lengths),
        state_indices_tensor_p=torch.tensor([slots[name][0] for name in prompts], dtype=torch.int32),
        has_initial_states_p=torch.tensor([name in goes_on for name in prompts], dtype=torch.bool),
        query_start_loc_p=offsets(prompts.values()),
    )


class Served:
    """Requests, what was computed of them, and their states."""

    def __init__(self, lengths, slots, dim_first=False, dtype=torch.float32):
        generator = torch.Generator().manual_seed(len(lengths))
        self.weights, self.slots, self.generator, self.dtype = made_weights(generator), slots, generator, dtype
        self.inputs = {name: drawn(generator, 2, length, WIDTH).to(dtype) for name, length in lengths.items()}
        self.pools, self.pages = paged_pools(dim_first, dtype)
        self.done = dict.fromkeys(lengths, 0)
        self.accepted = {}
        self.found = {name: [] for name in lengths}

    def call(self, decodes, prompts, *, padded_rows=0, padding=2, wrong=None):
        """One step: name -> tokens of decodes, then of prompts. wrong: name -> how many of the last are wrong guesses.

        Returns the output of what pads.
        """
        parts, counts = [], {**decodes, **prompts}
        for name, count in counts.items():
            part = self.inputs[name][:, self.done[name] : self.done[name] + count].clone()
            bad = (wrong or {}).get(name, 0)
            part[:, count - bad :] = drawn(self.generator, 2, bad, WIDTH).to(self.dtype)
            parts.append(part)
        guessing = wrong is not None
        blank, rest = (drawn(self.generator, 2, rows, WIDTH).to(self.dtype) for rows in (padded_rows, padding))
        between = [] if guessing else [blank]
        parts[len(decodes) : len(decodes)] = between
        tokens = torch.cat([*parts, rest], dim=1)
        branches = torch.cat([tokens[0], tokens[1]], dim=1)  # as one product gives them: neither is contiguous
        x, y = branches.chunk(2, dim=1)
        goes_on = {name for name in prompts if self.done[name]}
        accepted = {name: self.accepted.get(name, 1) for name in decodes} if guessing else None
        batch = laid_out(
            decodes, prompts, goes_on=goes_on, slots=self.slots, accepted=accepted, padded_rows=padded_rows
        )
        out = torch.full((x.shape[0], WIDTH), torch.nan, dtype=self.dtype)
        run_batch(x, y, out, self.weights, self.pools, batch)
        at, idle = 0, []
        for index, (name, count) in enumerate(counts.items()):
            if index == len(decodes) and not guessing:
                idle.append(out[at : at + padded_rows])
                at += padded_rows
            good = count - (wrong or {}).get(name, 0)
            self.found[name].append(out[at : at + good])
            self.done[name] += good
            self.accepted[name] = good if name in decodes else 1
            at += count
        if len(decodes) == len(counts) and not guessing:
            idle.append(out[at : at + padded_rows])
            at += padded_rows
        return torch.cat([*idle, out[at:]])

    def check(self):
        """Everything found is what each request gives by itself, in float64."""
        wide = [part.double() for part in self.weights[:2]], RGLRUWeights(*[w.double() for w in self.weights.gates])
        for name, (x, y) in self.inputs.items():
            length = self.done[name]
            whole = recurrent_block(x[None, :length].double(), y[None, :length].double(), *wide[0], wide[1])[0][0]
            found = torch.cat(self.found[name])
            assert found.shape == whole.shape
            # some ten roundings a step, which the recurrence forgets, of 6e-8 or 2e-3, of values up to 10
            bound = 1e-5 if self.dtype == torch.float32 else 5e-2
            torch.testing.assert_close(found.double(), whole, atol=bound, rtol=bound, msg=f"{name}: {{}}".format)


SLOTS = {"a": [5], "b": [17], "c": [1], "d": [9]}


@pytest.mark.parametrize("dim_first", [False, True], ids=["SD", "DS"])
def test_mixed_batches_are_each_request_by_itself(dim_first):
    served = Served({"a": 14, "b": 13, "c": 1, "d": 21}, SLOTS, dim_first)
    before = served.pages[0].clone()
    silent = [
        served.call({}, {"a": 9, "b": 2}),
        # b goes on with less than a window of the convolution, c is a prompt of one token
        served.call({"a": 1}, {"b": 1, "c": 1, "d": 12}, padded_rows=3),
        served.call({"a": 1, "b": 1}, {"d": 1}, padding=0),
        served.call({"b": 1, "d": 1, "a": 1}, {}, padded_rows=2),
        served.call({"a": 1, "d": 1}, {"b": 7}),
        served.call({"b": 1}, {"a": 1, "d": 6}),
    ]
    served.check()
    assert all(bool((out == 0).all()) for out in silent)
    assert torch.equal(served.pages[0], before)  # the block that belongs to nobody
    used = [rows[0] for rows in SLOTS.values()]
    idle = [row for row in range(PAGES) if row not in used]
    assert bool((served.pages[idle] == -1).all())
    content = (TAPS - 1) * WIDTH * 4 + WIDTH * 4
    assert bool((served.pages[:, content:] == -1).all())


def test_inputs_of_16_bits_beside_float32_states():
    served = Served({"a": 14, "b": 3}, SLOTS, dtype=torch.bfloat16)
    served.call({}, {"a": 9})
    served.call({"a": 1}, {"b": 2}, padded_rows=1)
    served.call({"b": 1}, {"a": 4})
    served.check()
    assert served.pools.conv_states.dtype == torch.bfloat16 and served.pools.states.dtype == torch.float32
    assert not torch.equal(served.pools.states[5], served.pools.states[5].bfloat16().float())


def test_a_new_request_does_not_see_what_its_block_held():
    served = Served({"old": 6, "new": 5, "short": 1}, {"old": [3], "new": [3], "short": [3]})
    served.call({}, {"old": 6})
    served.call({}, {"new": 4})
    served.call({"new": 1}, {})
    served.call({}, {"short": 1})
    served.check()


def test_prompts_without_a_block_are_computed_and_kept_nowhere():
    served = Served({"a": 7, "b": 5}, {"a": [2], "b": [0]})
    before = served.pages[0].clone()
    served.call({}, {"a": 7, "b": 5})
    served.check()
    assert torch.equal(served.pages[0], before)


def test_guesses_go_on_from_the_last_that_held():
    slots = {"a": [5, 6, 7, 8], "b": [17, 2, 3, 4], "c": [1, 18, 19, 20], "d": [9, 10, 11, 12]}
    served = Served({"a": 20, "b": 13, "c": 6, "d": 25}, slots)
    before = served.pages[0].clone()
    silent = [
        served.call({}, {"a": 9, "b": 4}, wrong={}),
        served.call({"a": 4}, {"b": 3, "c": 1, "d": 12}, wrong={"a": 2}, padded_rows=2),
        served.call({"a": 4, "b": 2, "d": 4}, {}, wrong={"b": 1, "d": 3}, padded_rows=1),
        served.call({"a": 1, "b": 4, "c": 3, "d": 1}, {}, wrong={"b": 3}),
        served.call({"d": 4, "b": 3, "a": 4, "c": 2}, {}, wrong={"d": 2, "a": 1}, padding=0),
        served.call({"d": 4, "b": 1}, {}, wrong={}),
    ]
    served.check()
    assert all(bool((out == 0).all()) for out in silent)
    assert torch.equal(served.pages[0], before)


def test_rows_of_guesses():
    rows = torch.tensor([[5, 6, 7], [0, 0, 0], [8, 9, 0]], dtype=torch.int32)
    starts = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    slots, keep = guessed_rows(rows, torch.tensor([3, 1, 1], dtype=torch.int32), starts, 7)
    assert slots.tolist() == [7, -1, 8] and keep.tolist() == [[5, 6, 8, 9, -1, -1, -1]]
    assert slots.dtype == keep.dtype == torch.int64


def test_rows_are_found_without_waiting_for_a_device():
    batch = laid_out({"a": 2}, {"b": 3}, goes_on={"b"}, slots={"a": [1, 2], "b": [3, 4]}, accepted={"a": 1})
    with FakeTensorMode() as mode:  # in which reading a value is an error
        fake = SimpleNamespace(**{
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in vars(batch).items()
        })  # fmt: skip
        slots, keep = guessed_rows(fake.state_indices_tensor_d, fake.num_accepted_tokens, fake.query_start_loc_d, 2)
        starts, kept, _ = prompt_rows(fake)
    assert slots.shape == (1,) and keep.shape == (1, 2) and starts.shape == (1,) and kept.shape == (1, 3)


def test_a_batch_of_padding_alone_is_silent():
    served = Served({"a": 1}, {"a": [4]})
    assert bool((served.call({}, {}, padded_rows=4, padding=1) == 0).all())
    assert bool((served.pages == -1).all())


def test_rows_of_prompts_are_found_once_for_all_layers(monkeypatch):
    found = []
    original = _vllm_batch.last_tokens
    monkeypatch.setattr(_vllm_batch, "last_tokens", lambda *args: found.append(args) or original(*args))
    generator = torch.Generator().manual_seed(7)
    batch = laid_out({}, {"a": 3, "b": 4}, goes_on={"b"}, slots={"a": [5], "b": [2]})
    x, y = drawn(generator, 2, 7, WIDTH)
    for layer in range(3):
        pools = StatePools(torch.zeros(8, TAPS - 1, WIDTH), torch.zeros(8, WIDTH))
        run_batch(x, y, torch.empty(7, WIDTH), made_weights(generator), pools, batch)
        assert pools.states.any(dim=1).nonzero().flatten().tolist() == [2, 5], layer
    assert len(found) == 1


def test_without_vllm_one_sentence_says_so(monkeypatch):
    for name in [*sys.modules]:
        if name.split(".")[0] == "vllm":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"^the plugin for vLLM needs vLLM, pip install vllm: "):
        vllm.register()
    with pytest.raises(ImportError, match=r"^this model needs vLLM 0.33, or one with its interfaces: "):
        importlib.import_module("griffin_kernels.integrations.vllm_model")
