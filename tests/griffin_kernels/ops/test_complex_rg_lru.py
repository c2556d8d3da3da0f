"""complex_rg_lru against the equations of DeepMind's RGLRU(only_real=False), written plainly over complex128."""

from __future__ import annotations

import pytest
import torch

import griffin_kernels
from griffin_kernels import RGLRUWeights
from griffin_kernels.errors import ArgumentError, DtypeError, ShapeError

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

BATCH, TIME, WIDTH, HEADS = 2, 13, 12, 3
N, HALF = WIDTH // HEADS, WIDTH // 2
POSITIONS = torch.tensor([[*range(5), *range(8)], [*range(3, 9), *range(7)]])


def drawn(dtype=torch.float64, seed=0):
    """(x, weights, a_imag_param, h0), weights as the published code initialises them, biases small."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    radius = 0.9 + 0.099 * torch.rand(HALF, generator=generator, dtype=torch.float64)
    a_param = torch.log(torch.expm1(-torch.log(radius))).to(dtype)
    matrices = [normal(HEADS, N, N // 2) * N**-0.5 for _ in range(2)]
    weights = RGLRUWeights(a_param, *matrices, *(normal(HEADS, N // 2) * 0.3 for _ in range(2)))
    angle = (torch.pi * torch.rand(HALF, generator=generator, dtype=torch.float64)).to(dtype)
    return normal(BATCH, TIME, WIDTH), weights, angle, normal(BATCH, WIDTH)


def published(x, weights, a_imag_param, h0=None, segment_pos=None):
    """The equations, a step at a time; of a sequence without positions the first step is a reset without h0."""

    def gate(weight, bias):
        blocks = x.view(*x.shape[:2], HEADS, N)
        return torch.sigmoid(torch.einsum("bthi,hij->bthj", blocks, weight) + bias).flatten(2)

    def merged_to_complex(merged):
        return torch.complex(*merged.chunk(2, dim=-1))

    gate_x = gate(weights.input_gate_weight, weights.input_gate_bias)
    gate_a = gate(weights.recurrence_gate_weight, weights.recurrence_gate_bias)
    log_a = -8.0 * gate_a * torch.log1p(torch.exp(weights.a_param))
    a, a_squared = torch.exp(torch.complex(log_a, a_imag_param * gate_a)), torch.exp(2 * log_a)
    if segment_pos is None:
        begins = torch.zeros(x.shape[:2], dtype=torch.bool)
        begins[:, 0] = h0 is None
    else:
        begins = segment_pos == 0
    multiplier = torch.where(begins[..., None], 1.0, torch.sqrt(1 - a_squared))
    values = merged_to_complex(x) * gate_x * multiplier
    state = torch.zeros_like(values[:, 0]) if h0 is None else merged_to_complex(h0)
    found = []
    for t in range(x.shape[1]):
        state = torch.where(begins[:, t, None], 0.0, a[:, t] * state) + values[:, t]
        found.append(state)
    y = torch.stack(found, dim=1)
    return torch.cat((y.real, y.imag), dim=-1), torch.cat((state.real, state.imag), dim=-1)


@pytest.mark.parametrize("segment_pos", [None, POSITIONS], ids=["", "positions"])
@pytest.mark.parametrize("state", [False, True], ids=["", "h0"])
def test_the_published_equations_forward_and_backward(segment_pos, state):
    results = []
    for function in (griffin_kernels.complex_rg_lru, published):
        x, weights, angle, h0 = drawn()
        given = [x, *weights, angle, *([h0] if state else [])]
        leaves = [value.requires_grad_() for value in given]
        y, last = function(x, weights, angle, h0=h0 if state else None, segment_pos=segment_pos)
        loss = (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() + last.square().sum()
        results.append((y, last, *torch.autograd.grad(loss, leaves)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_data_beside_float32_parameters(dtype):
    x, weights, angle, h0 = drawn(torch.float32)
    x = x.to(dtype).requires_grad_()
    leaves = [value.requires_grad_() for value in (*weights, angle)]
    y, last = griffin_kernels.complex_rg_lru(x, weights, angle, h0=h0)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    gradients = torch.autograd.grad(y.float().square().sum(), [x, *leaves])
    assert [g.dtype for g in gradients] == [dtype] + [torch.float32] * 6
    want, end = published(x.double(), RGLRUWeights(*(v.double() for v in weights)), angle.double(), h0.double())
    # the gates' arguments, of order 1, are rounded to the dtype with their weights: sqrt(n) roundings and two more,
    # which log a = -8 softplus() r passes on at most 8 times over, to a memory of all steps; y is rounded once
    unit = torch.finfo(dtype).eps / 2
    bound = (N**0.5 + 2) * unit * TIME**0.5 + unit
    assert (y.double() - want).norm() <= bound * want.norm()
    assert (last.double() - end).norm() <= bound * end.norm()


def test_packed_sequences_are_the_same_sequences_alone():
    x, weights, angle, _ = drawn()
    x, h0 = x[:1], torch.randn(3, WIDTH, dtype=torch.float64)
    offsets = torch.tensor([0, 5, 5, TIME])
    for states in (None, h0):
        y, last = griffin_kernels.complex_rg_lru(x, weights, angle, h0=states, cu_seqlens=offsets)
        for row, (start, end) in enumerate(((0, 5), (5, 5), (5, TIME))):
            state = None if states is None else states[row : row + 1]
            part, final = griffin_kernels.complex_rg_lru(x[:, start:end], weights, angle, h0=state)
            torch.testing.assert_close(y[:, start:end], part)
            torch.testing.assert_close(last[row : row + 1], final)


def test_halves_joined_by_the_state_are_the_whole():
    x, weights, angle, _ = drawn()
    whole, last = griffin_kernels.complex_rg_lru(x, weights, angle)
    first, state = griffin_kernels.complex_rg_lru(x[:, :4], weights, angle)
    second, end = griffin_kernels.complex_rg_lru(x[:, 4:], weights, angle, h0=state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(end, last)


def test_without_angles_the_parts_are_linear_scans_of_the_real_gates():
    """Weights that look at the real parts alone: these are then an RG-LRU of their own."""
    x, weights, angle, _ = drawn()
    x[..., HALF:] = 0.0
    zero = torch.zeros(1, WIDTH, HALF, dtype=torch.float64)
    zero[0, :HALF] = torch.eye(HALF, dtype=torch.float64)
    bias = torch.zeros(1, HALF, dtype=torch.float64)
    y, last = griffin_kernels.complex_rg_lru(x, RGLRUWeights(weights.a_param, zero, zero, bias, bias), 0 * angle)
    plain = RGLRUWeights(weights.a_param, zero[:, :HALF], zero[:, :HALF], bias, bias)
    want, end = griffin_kernels.rg_lru(x[..., :HALF], plain)
    torch.testing.assert_close(y[..., :HALF], want)
    torch.testing.assert_close(last[..., :HALF], end)
    assert (y[..., HALF:] == 0).all()


def test_the_square_root_s_derivative_is_clipped():
    x, weights, angle, _ = drawn()
    weights = weights._replace(a_param=torch.full((HALF,), -60.0, dtype=torch.float64).requires_grad_())
    y, _ = griffin_kernels.complex_rg_lru(x, weights, angle)
    (gradient,) = torch.autograd.grad(y.sum(), weights.a_param)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_nan_of_a_document_stays_there():
    results = []
    for planted in (False, True):
        x, weights, angle, _ = drawn()
        if planted:
            x[0, 3] = float("nan")
        y, last = griffin_kernels.complex_rg_lru(x.requires_grad_(), weights, angle, segment_pos=POSITIONS)
        (gradient,) = torch.autograd.grad(y.sum() + last.sum(), x)
        results.append((y.detach(), gradient, last.detach()))
    (clean, clean_gradient, _), (y, gradient, last) = results
    assert y[0, 3:5].isnan().all()
    assert last.isfinite().all()
    outside = torch.ones(BATCH, TIME, dtype=torch.bool)
    outside[0, :5] = False  # the document, which its last steps hand gradients to the first of
    for mine, theirs in ((y, clean), (gradient, clean_gradient)):
        assert torch.equal(mine[outside], theirs[outside])
    assert torch.equal(y[0, :3], clean[0, :3])  # never earlier in time


def test_compiles_fullgraph():
    x, weights, angle, h0 = drawn()

    def model(x, angle):
        return griffin_kernels.complex_rg_lru(x, weights, angle, h0=h0, segment_pos=POSITIONS)[0].square().sum()

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        leaves = [v.clone().requires_grad_() for v in (x, angle)]
        gradients.append(torch.autograd.grad(run(*leaves), leaves))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"x": torch.ones(2, 13, 11)}, ShapeError, r"x has shape \[2, 13, 11\], expected .* even D"),
        ({"x": torch.ones(2, 13, 12, dtype=torch.complex64)}, DtypeError, "x is complex64, expected a real"),
        ({"weights": ()}, ArgumentError, "weights is a tuple, expected RGLRUWeights"),
        ({"a_imag_param": torch.ones(12)}, ShapeError, r"a_imag_param has shape \[12\], expected \[6\]"),
        ({"a_imag_param": None}, ArgumentError, "a_imag_param is a NoneType, expected a tensor"),
        ({"h0": torch.ones(2, 6)}, ShapeError, r"h0 has shape \[2, 6\], expected \[N, D=12\]"),
        ({"h0": torch.ones(3, 12)}, ShapeError, r"h0 has shape \[3, 6, 2\], expected \[N=2"),
        ({"segment_pos": torch.arange(13)}, ShapeError, r"segment_pos has shape \[13\], expected \[2, 13\]"),
    ],
)
def test_wrong_arguments_are_named(changed, kind, words):
    x, weights, angle, h0 = drawn(torch.float32)
    with pytest.raises(kind, match=words):
        griffin_kernels.complex_rg_lru(**{"x": x, "weights": weights, "a_imag_param": angle, "h0": h0} | changed)


def test_gates_of_the_real_unit_are_refused():
    x, weights, angle, _ = drawn(torch.float32)
    wide = weights._replace(input_gate_weight=torch.ones(HEADS, N, N))
    with pytest.raises(ShapeError, match=r"input_gate_weight has shape \[3, 4, 4\], expected \[3, 4, 2\]"):
        griffin_kernels.complex_rg_lru(x, wide, angle)
