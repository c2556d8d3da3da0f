"""The public rg_lru: clipping, and the meaning of resets."""

from __future__ import annotations

import pytest
import torch

from griffin_kernels import catalog
from griffin_kernels.ops.rg_lru.cost import make_case
from griffin_kernels.ops.rg_lru.op import ClippedSqrt
from tests.calls import public

OP = catalog.op("rg_lru")
CPU = torch.device("cpu")
FLOATS = [name for name, spec in OP.inputs.items() if spec.dtype in ("data", "state", "parameter")]

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def leaves(inputs):
    return [inputs[name].requires_grad_() for name in FLOATS if inputs[name] is not None]


def plain(time=6, **changes):
    return OP.make_inputs(make_case(2, time, 8, 2, "float64"), CPU, 0) | changes


def test_square_root_gradient_is_clipped_at_1000():
    v = torch.tensor([0.0, 1e-12, 2.4e-7, 2.6e-7, 0.25], dtype=torch.float64, requires_grad=True)
    ClippedSqrt.apply(v).sum().backward()
    torch.testing.assert_close(v.grad, torch.tensor([1e3, 1e3, 1e3, 0.5 / 2.6e-7**0.5, 1.0], dtype=torch.float64))


def test_clipping_acts_through_the_public_function():
    inputs = plain(a_param=torch.full((8,), -25.0, dtype=torch.float64, requires_grad=True))
    public("rg_lru", inputs)[0].sum().backward()
    clipped = inputs["a_param"].grad
    with torch.no_grad():
        step = 1e-3
        up = public("rg_lru", inputs | {"a_param": inputs["a_param"] + step})[0].sum()
        down = public("rg_lru", inputs | {"a_param": inputs["a_param"] - step})[0].sum()
    assert clipped.sum().abs() < 0.5 * ((up - down) / (2 * step)).abs()


def test_first_position_starts_with_the_whole_input():
    inputs = plain(segment_pos=torch.arange(6).expand(2, 6), h0=torch.randn(2, 8, dtype=torch.float64))
    y, _ = public("rg_lru", inputs)
    blocks = inputs["x"][:, 0].reshape(2, 2, 1, 4)
    i = torch.sigmoid((blocks @ inputs["input_gate_weight"]).flatten(1) + inputs["input_gate_bias"].flatten())
    torch.testing.assert_close(y[:, 0], i * inputs["x"][:, 0])


def outputs_and_gradients(inputs):
    given = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    wanted = leaves(given)
    y, h_last = public("rg_lru", given)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape)
    return [y, h_last, *torch.autograd.grad([y, h_last], wanted, [upstream, torch.ones_like(h_last)])]


def test_without_positions_and_state_a_sequence_is_fresh():
    inputs = plain()
    numbered = inputs | {"segment_pos": torch.arange(6).expand(2, 6)}
    for mine, theirs in zip(outputs_and_gradients(inputs), outputs_and_gradients(numbered), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_with_a_state_or_positions_past_zero_no_step_is_a_reset():
    zeros = plain(h0=torch.zeros(2, 8, dtype=torch.float64))
    continued = plain(segment_pos=torch.arange(3, 9).expand(2, 6))
    torch.testing.assert_close(public("rg_lru", zeros)[0], public("rg_lru", continued)[0])
    assert not torch.allclose(public("rg_lru", zeros)[0][:, 0], public("rg_lru", plain())[0][:, 0])


def test_a_fresh_first_step_gives_nothing_to_its_recurrence_gate():
    gradients = dict(zip(FLOATS, outputs_and_gradients(plain(1))[2:], strict=False))
    for name in ("a_param", "recurrence_gate_weight", "recurrence_gate_bias"):
        assert (gradients[name] == 0).all(), name
    assert (gradients["input_gate_bias"] != 0).all()


def test_packed_sequences_equal_the_same_sequences_alone():
    lengths = (4, 0, 1, 5)
    inputs = OP.make_inputs(make_case(1, 10, 8, 2, "float64"), CPU, 0)
    offsets = torch.tensor([0, 4, 4, 5, 10], dtype=torch.int32)
    h0 = torch.randn(4, 8, dtype=torch.float64)
    fresh_y, fresh_last = public("rg_lru", inputs | {"cu_seqlens": offsets})
    y, h_last = public("rg_lru", inputs | {"cu_seqlens": offsets, "h0": h0})
    start = 0
    for row, length in enumerate(lengths):
        part = inputs | {"x": inputs["x"][:, start : start + length]}
        alone, last = public("rg_lru", part)
        torch.testing.assert_close(fresh_y[:, start : start + length], alone)
        torch.testing.assert_close(fresh_last[row : row + 1], last)
        alone, last = public("rg_lru", part | {"h0": h0[row : row + 1]})
        torch.testing.assert_close(y[:, start : start + length], alone)
        torch.testing.assert_close(h_last[row : row + 1], last)
        start += length


def test_halves_joined_by_the_state_equal_the_whole():
    inputs = plain(9)
    whole, last = public("rg_lru", inputs)
    first, middle = public("rg_lru", inputs | {"x": inputs["x"][:, :4]})
    second, end = public("rg_lru", inputs | {"x": inputs["x"][:, 4:], "h0": middle})
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(end, last)
