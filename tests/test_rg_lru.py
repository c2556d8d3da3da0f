"""The public rg_lru: gradients, clipping, meaning of resets, torch.compile, opcheck, bad and empty input."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import griffin_kernels
import griffin_kernels.functional  # registers torch.ops.griffin_kernels
from griffin_kernels import RGLRUWeights, catalog, errors, verify
from griffin_kernels.ops.rg_lru.cost import make_case
from griffin_kernels.ops.rg_lru.op import ClippedSqrt

OP = catalog.op("rg_lru")
BACKWARD = catalog.op("rg_lru_bwd")
CPU = torch.device("cpu")
CALLS = OP.cases_tagged("smoke", "edge")
FLOATS = [name for name, spec in OP.inputs.items() if spec.dtype in ("data", "state")]

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def call(inputs):
    weights = RGLRUWeights(**{name: inputs[name] for name in RGLRUWeights._fields})
    return griffin_kernels.rg_lru(
        inputs["x"], weights, **{name: inputs[name] for name in ("h0", "segment_pos", "cu_seqlens")}
    )


def leaves(inputs):
    return [inputs[name].requires_grad_() for name in FLOATS if inputs[name] is not None]


def plain(time=6, **changes):
    return OP.make_inputs(make_case(2, time, 8, 2, "float64"), CPU, 0) | changes


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.key)
def test_backward_reference_is_autograd_of_the_forward_reference(case):
    inputs = verify.to_float64(OP.make_inputs(case, CPU, 0))
    inputs = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    wanted = leaves(inputs)
    targets = OP.reference(OP.call(**inputs))
    upstream = [torch.randn_like(target) for target in targets]
    want = torch.autograd.grad(targets, wanted, upstream)
    detached = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    got = BACKWARD.reference(BACKWARD.call(dy=upstream[0], dh_last=upstream[1], y=targets[0].detach(), **detached))
    for mine, theirs in zip(got, want, strict=False):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.key)
def test_gradients_match_float64_autograd(case):
    inputs = OP.make_inputs(case, CPU, 0)
    exact = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in verify.to_float64(inputs).items()}
    wanted = leaves(inputs)
    targets = call(inputs)
    upstream = [torch.randn_like(target) for target in targets]
    got = torch.autograd.grad(targets, wanted, upstream)
    wanted = leaves(exact)
    want = torch.autograd.grad(OP.reference(OP.call(**exact)), wanted, [u.double() for u in upstream])
    tolerance, extra = BACKWARD.tolerance(case), torch.finfo(case.torch_dtype).eps  # y is rounded once more
    for name, mine, theirs in zip(FLOATS, got, want, strict=False):
        error = verify.error_of(name, mine, theirs)
        assert error.rel_norm <= tolerance.rel_norm + extra, error
        assert error.worst <= tolerance.worst + 2 * extra, error


def test_square_root_gradient_is_clipped_at_1000():
    v = torch.tensor([0.0, 1e-12, 2.4e-7, 2.6e-7, 0.25], dtype=torch.float64, requires_grad=True)
    ClippedSqrt.apply(v).sum().backward()
    torch.testing.assert_close(v.grad, torch.tensor([1e3, 1e3, 1e3, 0.5 / 2.6e-7**0.5, 1.0], dtype=torch.float64))


def test_clipping_acts_through_the_public_function():
    inputs = plain(a_param=torch.full((8,), -25.0, dtype=torch.float64, requires_grad=True))
    call(inputs)[0].sum().backward()
    clipped = inputs["a_param"].grad
    with torch.no_grad():
        step = 1e-3
        up = call(inputs | {"a_param": inputs["a_param"] + step})[0].sum()
        down = call(inputs | {"a_param": inputs["a_param"] - step})[0].sum()
    assert clipped.sum().abs() < 0.5 * ((up - down) / (2 * step)).abs()


def test_first_position_starts_with_the_whole_input():
    inputs = plain(segment_pos=torch.arange(6).expand(2, 6), h0=torch.randn(2, 8, dtype=torch.float64))
    y, _ = call(inputs)
    blocks = inputs["x"][:, 0].reshape(2, 2, 1, 4)
    i = torch.sigmoid((blocks @ inputs["input_gate_weight"]).flatten(1) + inputs["input_gate_bias"].flatten())
    torch.testing.assert_close(y[:, 0], i * inputs["x"][:, 0])


def outputs_and_gradients(inputs):
    given = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    wanted = leaves(given)
    y, h_last = call(given)
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
    torch.testing.assert_close(call(zeros)[0], call(continued)[0])
    assert not torch.allclose(call(zeros)[0][:, 0], call(plain())[0][:, 0])


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
    fresh_y, fresh_last = call(inputs | {"cu_seqlens": offsets})
    y, h_last = call(inputs | {"cu_seqlens": offsets, "h0": h0})
    start = 0
    for row, length in enumerate(lengths):
        part = inputs | {"x": inputs["x"][:, start : start + length]}
        alone, last = call(part)
        torch.testing.assert_close(fresh_y[:, start : start + length], alone)
        torch.testing.assert_close(fresh_last[row : row + 1], last)
        alone, last = call(part | {"h0": h0[row : row + 1]})
        torch.testing.assert_close(y[:, start : start + length], alone)
        torch.testing.assert_close(h_last[row : row + 1], last)
        start += length


def test_halves_joined_by_the_state_equal_the_whole():
    inputs = plain(9)
    whole, last = call(inputs)
    first, middle = call(inputs | {"x": inputs["x"][:, :4]})
    second, end = call(inputs | {"x": inputs["x"][:, 4:], "h0": middle})
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(end, last)


def test_int32_positions_are_taken():
    positions = torch.arange(6).expand(2, 6)
    torch.testing.assert_close(call(plain(segment_pos=positions.int()))[0], call(plain(segment_pos=positions))[0])


@pytest.mark.parametrize("case", CALLS[:1] + CALLS[-2:], ids=lambda case: case.key)
def test_opcheck(case):
    inputs = OP.make_inputs(case, CPU, 0)
    leaves(inputs)
    opcheck(torch.ops.griffin_kernels.rg_lru.default, OP.call(**inputs))
    opcheck(torch.ops.griffin_kernels.rg_lru_bwd.default, BACKWARD.call(**BACKWARD.make_inputs(case, CPU, 0)))


def test_compiles_fullgraph_forward_and_backward():
    def model(inputs):
        y, h_last = call(inputs | {"x": inputs["x"].tanh()})
        return y.square().sum() + h_last.sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for time in (5, 12):
        grads = []
        for run in (model, compiled):
            inputs = plain(time, segment_pos=torch.arange(time).expand(2, time))
            wanted = leaves(inputs)
            grads.append(torch.autograd.grad(run(inputs), wanted))
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("batch", "time"), [(2, 0), (0, 5)])
def test_empty_input_gives_empty_output_and_gradients(batch, time):
    inputs = OP.make_inputs(make_case(max(batch, 1), max(time, 1), 8, 2), CPU, 0)
    inputs["x"] = inputs["x"][:batch, :time].expand(batch, time, 8).clone()
    inputs["h0"] = torch.randn(batch, 8)
    wanted = leaves(inputs)
    y, h_last = call(inputs)
    assert y.shape == (batch, time, 8)
    torch.testing.assert_close(h_last, inputs["h0"])
    for gradient in torch.autograd.grad(y.sum() + h_last.sum(), wanted)[1:-1]:
        assert (gradient == 0).all()


BAD = {
    "blocks that do not fill x": ({"x": torch.randn(2, 6, 9)}, errors.ShapeError, "x has shape|a_param has shape"),
    "a block too few": (
        {name: plain()[name].float()[:1] for name in ("input_gate_weight", "input_gate_bias",
         "recurrence_gate_weight", "recurrence_gate_bias")}, errors.ShapeError, "make 4 channels; x has 8"
    ),
    "positions of floats": ({"segment_pos": torch.ones(2, 6)}, errors.DtypeError, "segment_pos is float32, expected"),
    "state of another batch": ({"h0": torch.ones(3, 8)}, errors.ShapeError, r"h0 has shape \[3, 8\], expected \[N=2"),
    "weights in half": ({"a_param": torch.ones(8).half()}, errors.DtypeError, "a_param is float16, expected float32"),
    "offsets with a batch": (
        {"cu_seqlens": torch.tensor([0, 6], dtype=torch.int32)}, errors.ShapeError, "batch 1, x has batch 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_argument_is_named(what):
    changes, error, message = BAD[what]
    inputs = OP.make_inputs(make_case(2, 6, 8, 2), CPU, 0)
    with pytest.raises(error, match=message):
        call(inputs | changes)


def test_weights_of_another_type_are_refused():
    with pytest.raises(errors.ArgumentError, match="weights is a dict, expected RGLRUWeights"):
        griffin_kernels.rg_lru(torch.randn(1, 2, 8), {})
