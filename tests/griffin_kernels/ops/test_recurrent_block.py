"""The public recurrent_block: parts and packs, and its pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels import RGLRUWeights, catalog
from griffin_kernels.ops._activation import gelu_and_slope
from griffin_kernels.ops.recurrent_block.cost import make_case
from tests.calls import public

OP = catalog.op("recurrent_block")
CPU = torch.device("cpu")
FLOATS = [name for name, spec in OP.inputs.items() if spec.dtype in ("data", "state", "parameter")]

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def plain(time=6, **changes):
    return OP.make_inputs(make_case(2, time, 8, 2, dtype="float64"), CPU, 0) | changes


def test_gelu_and_its_slope_are_those_of_torch():
    y = torch.linspace(-6, 6, 97, dtype=torch.float64, requires_grad=True)
    want = torch.nn.functional.gelu(y, approximate="tanh")
    value, slope = gelu_and_slope(y.detach())
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(want.sum(), y)[0])


def test_it_is_its_pieces():
    inputs = plain(11, segment_pos=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]] * 2))
    weights = RGLRUWeights(**{name: inputs[name] for name in RGLRUWeights._fields})
    positions = inputs["segment_pos"]
    u, kept = griffin_kernels.temporal_conv1d(
        inputs["x"], inputs["conv_weight"], inputs["conv_bias"], segment_pos=positions
    )
    h, h_last = griffin_kernels.rg_lru(u, weights, segment_pos=positions)
    want = h * torch.nn.functional.gelu(inputs["y"], approximate="tanh")
    for mine, theirs in zip(public("recurrent_block", inputs), (want, kept, h_last), strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=20, deadline=None)
@given(time=st.integers(2, 30), cut=st.integers(1, 29), taps=st.integers(1, 6), seed=st.integers(0, 99))
def test_parts_with_carried_states_equal_the_whole(time, cut, taps, seed):
    cut = min(cut, time - 1)
    inputs = OP.make_inputs(make_case(2, time, 6, 2, taps, "float64", data=("state", "h0")), CPU, seed)
    whole = public("recurrent_block", inputs)
    head = {name: inputs[name][:, :cut] for name in ("x", "y")}
    tail = {name: inputs[name][:, cut:] for name in ("x", "y")}
    first, kept, middle = public("recurrent_block", inputs | head)
    second, *ends = public("recurrent_block", inputs | tail | {"conv_state": kept, "h0": middle})
    for mine, theirs in zip((torch.cat([first, second], dim=1), *ends), whole, strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), states=st.booleans(), seed=st.integers(0, 99))
def test_packed_sequences_equal_the_same_sequences_alone(lengths, states, seed):
    total, count = sum(lengths), len(lengths)
    inputs = OP.make_inputs(make_case(1, max(total, 1), 6, 3, dtype="float64"), CPU, seed)
    inputs |= {name: inputs[name][:, :total] for name in ("x", "y")}
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randn(count, 3, 6, generator=generator, dtype=torch.float64) if states else None
    h0 = torch.randn(count, 6, generator=generator, dtype=torch.float64) if states else None
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    packed = public("recurrent_block", inputs | {"cu_seqlens": offsets, "conv_state": kept, "h0": h0})
    start = 0
    for row, length in enumerate(lengths):
        part = {name: inputs[name][:, start : start + length] for name in ("x", "y")}
        if states:
            part |= {"conv_state": kept[row : row + 1], "h0": h0[row : row + 1]}
        alone = public("recurrent_block", inputs | part)
        at = slice(start, start + length)
        for mine, theirs in zip((packed[0][:, at], packed[1][row, None], packed[2][row, None]), alone, strict=True):
            torch.testing.assert_close(mine, theirs)
        start += length
