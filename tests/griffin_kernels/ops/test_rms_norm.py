"""rms_norm: published norms' numbers, any leading dims, one rounding of the sum, what is kept, equal bits."""

from __future__ import annotations

import pytest
import torch
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRMSNorm

import griffin_kernels
from griffin_kernels import catalog, nn, planted
from griffin_kernels.contract import Case
from tests.calls import CPU
from tests.everywhere import device_of, running

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
FORWARD = pytest.mark.parametrize(
    "variant", [v for v in catalog.variants("rms_norm").values() if v.backend != "compiled"], ids=lambda v: v.name
)


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
@FORWARD
def test_recurrentgemma_s_norm(variant, dtype):
    """transformers': the weight, an offset from 1, multiplies in float32 before the result is rounded."""
    theirs = RecurrentGemmaRMSNorm(520, eps=1e-6).to(dtype)
    with torch.no_grad():
        theirs.weight.copy_(0.3 * drawn(520))
    x = drawn(2, 3, 520, dtype=dtype, seed=1)
    with running(variant):
        mine = griffin_kernels.rms_norm(x, theirs.weight, eps=1e-6, weight_offset=1.0)
    # theirs is float32 for all dtypes; both round once
    unit = torch.finfo(dtype if dtype.itemsize == 2 else torch.float32).eps
    torch.testing.assert_close(mine, theirs(x).detach(), rtol=4 * unit, atol=unit)


@DTYPES
def test_torch_s_norm(dtype):
    x, weight = drawn(3, 40, dtype=dtype), 1 + 0.3 * drawn(40, dtype=dtype, seed=1)
    want = torch.nn.functional.rms_norm(x.double(), (40,), weight.double(), 1e-6)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(griffin_kernels.rms_norm(x, weight).double(), want, rtol=4 * unit, atol=unit)


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 5, 24), (2, 3, 5, 24), (2, 1, 3, 5, 24), (0, 24), (2, 0, 3, 24)])
@pytest.mark.parametrize("strided", [False, True])
def test_any_leading_dims(shape, strided):
    """As row by row; gradients too. Strided: every second channel of a buffer whose outer dims are swapped."""
    outer = shape[:-1][::-1] if strided else shape[:-1]
    buffers = [drawn(*outer, 48 if strided else 24, seed=at).requires_grad_() for at in range(2)]
    x, residual = buffers
    if strided:
        x, residual = (b.permute(*range(len(shape) - 2, -1, -1), len(shape) - 1)[..., ::2] for b in buffers)
    weight = drawn(24, seed=2).requires_grad_()
    assert x.shape == shape
    results = []
    for one in (
        lambda x, residual: griffin_kernels.rms_norm(x, weight, residual=residual),
        lambda x, r: tuple(
            out[0].view(shape)
            for out in griffin_kernels.rms_norm(x.reshape(1, -1, 24), weight, residual=r.reshape(1, -1, 24))
        ),
    ):
        y, s = one(x, residual)
        assert y.shape == s.shape == shape and y.is_contiguous()
        results.append((y, s, *torch.autograd.grad((y * y * s).sum() + s.sum(), [*buffers, weight])))
    for mine, want in zip(*results, strict=True):
        assert torch.equal(mine, want)


@DTYPES
@FORWARD
def test_the_sum_is_rounded_once_and_normed_as_it_is_returned(variant, dtype):
    if variant.backend == "triton" and dtype == torch.bfloat16:
        dtype = torch.float16  # Triton's interpreter does not round to bfloat16 as hardware does
    x, residual = (drawn(2, 3, 523, dtype=dtype, seed=at) for at in range(2))
    weight = drawn(523, dtype=dtype, seed=2)
    with running(variant):
        y, s = griffin_kernels.rms_norm(x, weight, residual=residual)
        assert torch.equal(s, x + residual)
        assert torch.equal(y, griffin_kernels.rms_norm(s, weight))


def kept(call):
    """Bytes that autograd keeps of a call, without its parameters."""
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storages.values())


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_what_was_normed_is_kept(dtype, added):
    """2 D bytes a row in bfloat16. The sum itself goes on as the next residual: of x nothing is kept."""
    rows, width = 33, 256
    norm = nn.RMSNorm(width, dtype=dtype)
    x, residual = (drawn(1, rows, width, dtype=dtype, seed=at).requires_grad_() for at in range(2))
    size = kept(lambda: norm(x, residual) if added else norm(x))
    assert size == rows * width * dtype.itemsize


@pytest.mark.parametrize("variant", ["numba.rows", "eager.composed"])
def test_weights_gradients_have_equal_bits_on_any_number_of_threads(variant):
    op, case = catalog.op("rms_norm_bwd"), Case({"B": 2, "T": 700, "D": 640}, "float32", ("residual",))
    inputs, found = op.make_inputs(case, CPU, 0), catalog.variant(f"rms_norm_bwd/{variant}")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            results.append(found.on(inputs, found.config()))
    finally:
        torch.set_num_threads(before)
    for others in results[1 if variant.startswith("numba") else 2 :]:
        assert all(torch.equal(mine, want) for mine, want in zip(others, results[0], strict=True))


def test_rows_of_nothing_with_eps_of_nothing_are_not_a_number_and_stay_alone():
    x = drawn(1, 3, 24)
    x[0, 1] = 0.0
    y = griffin_kernels.rms_norm(x, torch.ones(24), eps=0.0)
    assert y[0, 1].isnan().all() and y[0, ::2].isfinite().all()
    assert torch.equal(griffin_kernels.rms_norm(x, torch.ones(24))[0, 1], torch.zeros(24))


@pytest.mark.parametrize("variant", ["numba.rows", "triton.rows"])
def test_rows_far_apart(variant):
    """Rows 2**30 elements apart, the last from 2**31 on. Only the touched pages take memory."""
    op, found = catalog.op("rms_norm"), catalog.variant(f"rms_norm/{variant}")
    memory = torch.empty(2**31 + 640, dtype=torch.bfloat16)
    x = torch.as_strided(memory, (3, 1, 640), (2**30, 640, 1)).copy_(drawn(3, 1, 640))
    weight = torch.ones(640, dtype=torch.bfloat16)
    with running(found):
        y, _ = found.run(op.call(x, weight), found.config())
        want, _ = found.run(op.call(x.clone(memory_format=torch.contiguous_format), weight), found.config())
    assert torch.equal(y, want)


@pytest.mark.parametrize(("width", "block"), [(1030, {}), (3100, {"block_d": 64, "num_warps": 1})])
@pytest.mark.parametrize("name", ["rms_norm", "rms_norm_bwd"])
def test_triton_s_rows_stay_apart(name, width, block):
    """The table's small cases are too narrow for the default: rows in registers here, and rows that are read twice."""
    op, variant = catalog.op(name), catalog.variant(f"{name}/triton.rows")
    case, config = Case({"B": 1, "T": 3, "D": width}, "float32", ("residual",)), variant.config(**block)
    assert variant.reject(case, device_of("triton"), config) is None
    inputs = op.make_inputs(case, device_of("triton").torch_device, 0)
    assert planted.check(op, variant, case, config, inputs, planted.plantings(op, inputs, most=2)) is None
