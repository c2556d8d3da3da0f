"""The first minutes on a GPU: what runs there untuned is right, forward, backward and as one-token steps in a graph.

A cheap case or two of every op, so that most of the time goes into compiling, which processes share (pytest -n).
"""

from __future__ import annotations

import pytest
import torch

from griffin_kernels import catalog, device, dispatch, verify

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")]


def cases():
    for op in catalog.ops().values():
        small = [case for case in op.cases_tagged("smoke", "edge") if case.dtype in ("float32", "bfloat16")]
        told = {(case.dtype, bool(case.flags)): case for case in reversed(small)}
        for case in told.values():
            yield pytest.param(op, case, id=f"{op.name}/{case.key}")


@pytest.mark.parametrize(("op", "case"), list(cases()))
def test_what_runs_untuned_is_right(op, case):
    here = device.gpu(0)
    choice = dispatch.select(op.name, case, here)
    inputs = op.make_inputs(case, here.torch_device, 0)
    verdict = verify.check(op, choice.variant, case, choice.config, inputs)
    assert verdict.ok, f"{choice.variant.key}: {verdict.problem}"


@pytest.mark.parametrize("op", [op for op in catalog.ops().values() if op.in_place], ids=lambda op: op.name)
def test_steps_in_a_graph_give_what_they_give_outside(op):
    here = device.gpu(0)
    case = next(case for case in op.cases_tagged("smoke") if case.dtype == "bfloat16")
    inputs = op.make_inputs(case, here.torch_device, 0)
    want = dispatch.call(op.name, op.call(**inputs | {name: inputs[name].clone() for name in op.in_place}))
    held = inputs | {name: inputs[name].clone() for name in op.in_place}
    dispatch.call(op.name, op.call(**held))  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = dispatch.call(op.name, op.call(**held))
    for name in op.in_place:
        held[name].copy_(inputs[name])
    graph.replay()
    torch.cuda.synchronize()
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
