"""Outputs are ordinary tensors: they may be changed in place, with gradients or without, and nothing else changes."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, contract, device, memory, verify
from tests.calls import CPU, DIFFERENTIABLE, leaves, operator, small

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

VARIANTS = [
    variant
    for name in DIFFERENTIABLE
    for variant in catalog.variants(name).values()
    if variant.backend in ("eager", "numba")
]


def gradients(outputs, inputs):
    wanted = [value for value in inputs.values() if isinstance(value, torch.Tensor) and value.requires_grad]
    total = sum(out.double().sum() for out in outputs if out is not None and out.requires_grad)
    return torch.autograd.grad(total, wanted, allow_unused=True)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.key)
def test_every_output_can_be_changed_in_place_while_training(variant):
    """Adding a constant changes no gradient. An output that the gradient needs is torch's to watch, as tanh's is."""
    op, call, ran = catalog.op(variant.op), operator(variant.op), 0
    candidates = [case for dtype in ("float32", "bfloat16") for case in small(variant.op, None, dtype=dtype)]
    refusals = {case: variant.reject(case, device.cpu(), variant.config()) for case in candidates}
    accepted = [case for case, reason in refusals.items() if reason is None]
    if not accepted:
        pytest.skip("; ".join(sorted(set(refusals.values()))))
    for case in accepted[:2]:
        given = op.make_inputs(case, CPU, 0)
        with griffin_kernels.use(variant=variant.key):
            inputs = leaves(given)
            want = gradients(_tuple(call(**inputs)), inputs)
            for at in range(len(_tuple(call(**inputs)))):
                before = {k: v.detach().clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
                outputs = _tuple(call(**inputs))
                if outputs[at] is None:
                    continue
                kept = any(
                    saved is not None and saved.numel() and saved.data_ptr() == outputs[at].data_ptr()
                    for saved in outputs[0].grad_fn.saved_tensors
                )
                outputs[at].add_(1.0)
                ran += 1
                assert all(torch.equal(inputs[name], value) for name, value in before.items())
                if kept:
                    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                        gradients(outputs, inputs)
                    continue
                for got, expected in zip(gradients(outputs, inputs), want, strict=True):
                    assert (got is None) == (expected is None) and (got is None or torch.equal(got, expected))
    assert ran


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_large_outputs_are_no_views_and_say_why_they_cannot_grow():
    large = memory.empty((2, 2**19), torch.float32)
    assert not large._is_view() and large.is_contiguous()
    assert large.clone().resize_(2**22).numel() == 2**22
    large.add_(1).resize_(2**19)
    with pytest.raises(RuntimeError, match="not resizable"):
        large.resize_(2**22)  # what torch leaves of a tensor after this error must not be used


def test_ordinary():
    base = torch.arange(12.0).reshape(3, 4)
    made = contract.ordinary(base)  # reshape gives a view
    assert not made._is_view() and made.data_ptr() == base.data_ptr() and torch.equal(made, base)
    for part in (base[1:], base.T, base[0].expand(3, 4)):
        made = contract.ordinary(part)
        assert not made._is_view() and made.is_contiguous() and torch.equal(made, part)
        assert made.data_ptr() != part.data_ptr() and made.untyped_storage().nbytes() == made.nbytes
    plain = torch.zeros(3)
    assert contract.ordinary(plain) is plain


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda h: h.clone().view(h.shape), "view of another"),
        (lambda h: torch.empty_strided(h.shape, (1, h.shape[0], h[..., 0].numel())).copy_(h), "strides"),
        (lambda h: torch.empty(0).set_(h.new_empty(h.numel() + 1).untyped_storage(), 0, h.shape), "bytes of memory"),
    ],
)
def test_the_gate_refuses_what_is_not_ordinary(spoil, words):
    real = catalog.variant("linear_scan/numba.sequential")

    def run(call, config):
        h, *others = real.run(call, config)
        return spoil(h), *others

    run.__module__ = real.run.__module__
    op = catalog.op("linear_scan")
    case = next(c for c in op.cases_tagged("smoke") if c.dtype == "float32")
    spoilt = dataclasses.replace(real, run=run)
    verdict = verify.check(op, spoilt, case, real.config(), op.make_inputs(case, CPU, 0))
    assert verdict.problem is not None and re.search(words, verdict.problem), verdict.problem
