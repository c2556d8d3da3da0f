"""gated_gelu and its packed form beyond the table: dims, far gates, strides past 2**31, what is kept, one gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import griffin_kernels
from griffin_kernels import catalog, gated_gelu, geglu
from tests.everywhere import device_of

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

PARTS = ["gated_gelu", "gated_gelu_bwd"]


def formula(gate, value):
    return functional.gelu(gate, approximate="tanh") * value


def usable(name):
    """Variants of an op that are nobody's baseline."""
    return [v for v in catalog.variants(name).values() if not v.baseline]


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 1, 3, 8), (0, 8), (2, 0, 3, 8), (2, 3, 0)])
def test_any_number_of_dimensions(shape):
    gate, value = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(gated_gelu(gate, value), formula(gate, value))
    packed = torch.cat([gate, value], -1).requires_grad_()
    out = geglu(packed)
    assert torch.equal(out, gated_gelu(gate, value))
    (gradient,) = torch.autograd.grad(out.sum(), packed)
    leaves = [gate.requires_grad_(), value.requires_grad_()]
    apart = torch.autograd.grad(gated_gelu(*leaves).sum(), leaves)
    torch.testing.assert_close(gradient, torch.cat(apart, -1))


@pytest.mark.parametrize("variant", usable("gated_gelu"), ids=lambda v: v.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_from_zero(variant, dtype):
    """gelu is 0 or its argument, its slope 0 or 1; nothing overflows on the way, and NaN stays where it is."""
    far = torch.tensor([-3e38, -1e20, -40.0, -0.0, 0.0, 40.0, 1e20, 3e38, torch.nan], dtype=dtype).expand(1, 2, 9)
    far, ones = far.to(device_of(variant.backend).torch_device), torch.ones_like(far)
    (out,) = variant.on({"gate": far, "value": ones}, variant.config())
    want = torch.where(far > 0, far, torch.zeros_like(far)).where(~far.isnan(), far)
    torch.testing.assert_close(out, want, equal_nan=True)
    backward = catalog.variant(f"gated_gelu_bwd/{variant.name}")
    dgate, dvalue = backward.on({"gate": far, "value": ones, "dout": ones}, backward.config())
    slope = torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1, torch.nan], dtype=dtype, device=far.device).expand(1, 2, 9)
    if variant.backend != "eager":  # PyTorch's own gradient is NaN beyond the root of the largest float
        torch.testing.assert_close(dgate, slope.contiguous(), equal_nan=True)
    torch.testing.assert_close(dvalue, want, equal_nan=True)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("backend", ["numba.rows", "triton.rows"])
def test_rows_further_apart_than_32_bits_reach(name, backend):
    """Three rows 2**30 elements apart: the last begins at 2**31. Only the touched pages take memory."""
    op, variant = catalog.op(name), catalog.variant(f"{name}/{backend}")
    where = device_of(variant.backend).torch_device
    memory = torch.empty(2**31 + 64, dtype=torch.bfloat16, device=where)
    apart = torch.as_strided(memory, (1, 3, 21), (1, 2**30, 1)).copy_(torch.randn(1, 3, 21))
    inputs = {key: torch.randn(1, 3, 21, dtype=torch.bfloat16, device=where) for key in op.inputs} | {"gate": apart}
    near = inputs | {"gate": apart.contiguous()}
    for mine, want in zip(variant.on(inputs, variant.config()), variant.on(near, variant.config()), strict=True):
        assert torch.equal(mine, want)


@pytest.mark.parametrize(
    "variant", [v for v in usable("geglu_bwd") if v.backend != "eager"], ids=lambda variant: variant.name
)
def test_both_gradients_are_written_where_they_belong(variant):
    where = device_of(variant.backend).torch_device
    x, dout = torch.randn(2, 3, 2, 37, device=where), torch.randn(2, 3, 37, device=where)
    (dx,) = variant.on({"dout": dout, "x": x}, variant.config())
    twin = catalog.variant(f"gated_gelu_bwd/{variant.name}")
    apart = twin.on({"dout": dout, "gate": x[:, :, 0], "value": x[:, :, 1]}, twin.config())
    assert torch.equal(dx, torch.stack(apart, 2))


def kept(call):
    """Bytes of distinct memory that autograd keeps of a call."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    del out
    return sum(found.values())


def test_gate_and_value_are_all_that_is_kept():
    gate, value = (torch.randn(2, 5, 64, requires_grad=True) for _ in range(2))
    packed = torch.randn(2, 5, 128, requires_grad=True)
    assert kept(lambda: gated_gelu(gate, value)) == kept(lambda: geglu(packed)) == 2 * gate.nbytes
    assert kept(lambda: formula(gate, value)) == 3 * gate.nbytes


def test_the_gradient_of_the_packed_form_is_not_put_together():
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._overloadpacket.__name__.split(".")[-1])
            return func(*args, **kwargs or {})

    packed = torch.randn(2, 5, 128, requires_grad=True)
    with Watching():
        geglu(packed).backward(torch.ones(2, 5, 64))
    assert "geglu_bwd" in seen
    assert not {"cat", "stack", "copy_", "add", "add_", "clone", "slice_backward"} & set(seen), seen


def test_slices_of_a_wider_tensor_are_read_where_they_are():
    wide = torch.randn(3, 4, 100)
    gate, value = wide[..., 10:40], wide[..., 60:90]
    with griffin_kernels.use(variant="gated_gelu/numba.rows"):
        torch.testing.assert_close(gated_gelu(gate, value), formula(gate, value))


def test_a_value_may_be_the_same_for_all_rows():
    gate, value = torch.randn(3, 4, 32), torch.randn(32)
    for name in ("numba.rows", "eager.unfused"):
        with griffin_kernels.use(variant=f"gated_gelu/{name}"):
            torch.testing.assert_close(gated_gelu(gate, value.expand(3, 4, 32)), formula(gate, value))
