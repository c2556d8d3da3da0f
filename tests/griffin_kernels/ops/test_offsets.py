"""Offsets of packed sequences: of either dtype, and such that end before x does."""

from __future__ import annotations

import math

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device
from tests.calls import CPU, DIFFERENTIABLE, PARAMETERS, copies, leaves, public, small

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

PACKED = [name for name in DIFFERENTIABLE if small(name, 1, ("packed",))]
PADDING = 5
ALONG_TIME = ("T", "Ta", "S")


def variants():
    """Each variant that runs on this CPU, with a small packed case that it takes; gradients' under their own name."""
    for forward in PACKED:
        for name in (forward, f"{forward}_bwd"):
            for variant in catalog.variants(name).values():
                wanted = ("packed", "lse") if forward == "local_attention" else ("packed",)  # which its gradient needs
                for case in (*small(forward, 50, wanted), *small(forward, 50, wanted, "bfloat16")):
                    if {*case.flags} & {*catalog.op(forward).minor_flags}:
                        continue
                    if variant.reject(case, device.cpu(), variant.config()) is None:
                        yield pytest.param(forward, variant.key, case, id=variant.key)
                        break


def padded(name, given):
    """Inputs with steps after the last sequence that are NaN, or positions and flags of some value."""
    longer = dict(given)
    for key, spec in catalog.op(name).inputs.items():
        value, at = given[key], next((at for at, dim in enumerate(spec.names) if dim in ALONG_TIME), None)
        if value is not None and at is not None:
            shape = [*value.shape[:at], PADDING, *value.shape[at + 1 :]]
            more = value.new_full(shape, math.nan if value.is_floating_point() else 1)
            longer[key] = torch.cat([value, more], at)
    return longer | {"cu_seqlens": given["cu_seqlens"].cpu()}


def results(name, given):
    """Outputs that have a gradient, an upstream gradient of each, and the inputs that they depend on."""
    mine = leaves(given)
    outputs = [out for out in public(name, mine) if out is not None and out.requires_grad]
    upstream = [torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype) for out in outputs]
    return outputs, upstream, mine


def test_there_are_packed_ops():
    assert {"linear_scan", "rg_lru", "temporal_conv1d", "recurrent_block", "local_attention"} <= set(PACKED)


@pytest.mark.parametrize("name, key, case", list(variants()))
def test_what_follows_the_last_sequence_is_not_read_and_gives_zeros(name, key, case):
    """NaN there, and infinite upstream gradients, change nothing: outputs and gradients are those of the short call."""
    op, given = catalog.op(name), catalog.op(name).make_inputs(case, CPU, 3)
    time = case["T"]
    with griffin_kernels.use(variant=key):
        outputs, upstream, mine = results(name, given)
        wanted = {k: v for k, v in mine.items() if isinstance(v, torch.Tensor) and v.requires_grad}
        gradients = torch.autograd.grad(outputs, list(wanted.values()), upstream)
        longer = leaves(padded(name, given))
        got = [out for out in public(name, longer) if out is not None and out.requires_grad]
        reaching = []
        for short, grad, out in zip(outputs, upstream, got, strict=True):
            at = next((at for at, size in enumerate(short.shape) if out.shape[at] != size), None)
            if at is None:
                torch.testing.assert_close(out, short, rtol=0, atol=0)
            else:
                assert out.shape[at] == time + PADDING
                torch.testing.assert_close(out.narrow(at, 0, time), short, rtol=0, atol=0)
                assert not out.narrow(at, time, PADDING).any()
                shape = [PADDING if dim == at else size for dim, size in enumerate(short.shape)]
                grad = torch.cat([grad, grad.new_full(shape, math.inf)], at)
            reaching.append(grad)
        found = torch.autograd.grad(got, [longer[k] for k in wanted], reaching)
    for k, short, long in zip(wanted, gradients, found, strict=True):
        at = next((at for at, dim in enumerate(op.inputs[k].names) if dim in ALONG_TIME), None)
        if at is not None:
            assert not long.narrow(at, time, PADDING).any(), k
            long = long.narrow(at, 0, time)
        torch.testing.assert_close(long, short, rtol=0, atol=0, msg=k)


@pytest.mark.parametrize("name", PACKED)
def test_offsets_of_int64(name):
    given = catalog.op(name).make_inputs(small(name, 1, ("packed",))[0], CPU, 3)
    assert "cu_seqlens" in PARAMETERS[name]
    expected = public(name, copies(given))
    wider = copies(given) | {"cu_seqlens": given["cu_seqlens"].long()}
    for out, want in zip(public(name, wider), expected, strict=True):
        torch.testing.assert_close(out, want, rtol=0, atol=0)


@pytest.mark.parametrize("name", PACKED)
def test_no_sequence_has_a_step(name):
    """All offsets 0: outputs are zeros, and states are those that were given."""
    given = catalog.op(name).make_inputs(small(name, 1, ("packed",))[0], CPU, 3)
    given |= {"cu_seqlens": torch.zeros_like(given["cu_seqlens"])}
    first, *states = public(name, given)
    assert first.shape[1] == small(name, 1, ("packed",))[0]["T"] and not first.any()
    assert all(torch.isfinite(state).all() for state in states)


def test_under_torch_compile():
    x, a = torch.randn(1, 9, 4), torch.rand(1, 9, 4)
    cu_seqlens = torch.tensor([0, 2, 6])

    def run(x, a, cu_seqlens):
        return griffin_kernels.linear_scan(x, a, cu_seqlens=cu_seqlens)

    for got, want in zip(torch.compile(run, fullgraph=True)(x, a, cu_seqlens), run(x, a, cu_seqlens), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert not run(x, a, cu_seqlens)[0][:, 6:].any()


def test_offsets_that_no_int32_holds_are_refused():
    x = torch.randn(1, 9, 4)
    with pytest.raises(griffin_kernels.errors.ArgumentError, match="from 0 to T=9 at most"):
        griffin_kernels.linear_scan(x, x, cu_seqlens=torch.tensor([0, 2**32 + 5]))


@pytest.mark.parametrize("last", [9, 6])
def test_offsets_on_the_cpu_beside_data_elsewhere(last):
    """Their values are read before the kernel is chosen: here of data without any."""
    x = torch.empty(1, 9, 4, device="meta", requires_grad=True)
    h, h_last = griffin_kernels.linear_scan(x, x, cu_seqlens=torch.tensor([0, 2, last]))
    assert (h.shape, h_last.shape, h.device.type) == ((1, 9, 4), (2, 4), "meta")
    assert torch.autograd.grad(h.sum(), x)[0].shape == x.shape
    with pytest.raises(griffin_kernels.errors.ArgumentError, match="must not decrease"):
        griffin_kernels.linear_scan(x, x, cu_seqlens=torch.tensor([0, 7, last - 3]))
    with pytest.raises(griffin_kernels.errors.DeviceMismatchError, match="reset is on cpu"):
        griffin_kernels.linear_scan(x, x, reset=torch.zeros(1, 9, dtype=torch.bool))
