"""Every variant x smoke and edge case x default and corner configs, against the float64 reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec
import pytest
import torch
from torch._dynamo.utils import counters

from griffin_kernels import catalog, verify
from griffin_kernels.contract import Case, Variant, config_key
from griffin_kernels.device import Device
from tests.everywhere import device_of


def corner_configs(variant: Variant, case: Case, device: Device) -> list[object]:
    """The default, all axes at their first value, all at their last, where accepted."""
    corners = [variant.config()]
    for end in (0, -1):
        corners.append(variant.config(**{name: values[end] for name, values in variant.axes.items()}))
    return [config for config in dict.fromkeys(corners) if variant.reject(case, device, config) is None]


def table() -> Iterator[object]:
    for op in catalog.ops().values():
        for variant in catalog.variants(op.name).values():
            where = device_of(variant.backend)
            for case in op.cases_tagged("smoke", "edge"):
                marks = [pytest.mark.smoke] if case.tag == "smoke" else []
                for config in corner_configs(variant, case, where):
                    key = f"{variant.key}/{case.key}/{config_key(config)}"
                    yield pytest.param(op, variant, case, config, id=key, marks=marks)


@pytest.mark.parametrize(("op", "variant", "case", "config"), list(table()))
def test_variant_matches_float64_reference(op, variant, case, config):
    inputs = op.make_inputs(case, device_of(variant.backend).torch_device, seed=0)
    verdict = verify.check(op, variant, case, config, inputs)
    assert verdict.ok, verdict.problem


def test_what_is_checked_of_a_compiled_variant_is_what_is_timed():
    op, variant = catalog.op("rg_lru"), catalog.variant("rg_lru/compiled.unfused")
    usual = next(case for case in op.cases_tagged("bench") if case.dtype == "float32" and case.where == "cpu")
    case = msgspec.structs.replace(usual, dims={name: 19 if name == "T" else size for name, size in usual.dims.items()})
    inputs, config = op.make_inputs(case, torch.device("cpu"), 0), variant.config()
    graphs = counters["stats"]["unique_graphs"]
    assert verify.check(op, variant, case, config, inputs).ok
    variant.on(inputs, config)
    assert counters["stats"]["unique_graphs"] == graphs + 1


def test_memory_is_poisoned_around_a_compiled_graph_and_not_after_a_check():
    op, variant = catalog.op("rg_lru"), catalog.variant("rg_lru/compiled.unfused")
    case = op.cases_tagged("smoke")[0]
    inputs, config = op.make_inputs(case, torch.device("cpu"), 0), variant.config()

    def forgetful(call, config):
        y, h_last = variant.run(call, config)
        return torch.empty_like(y), h_last

    forgets = dataclasses.replace(variant, run=forgetful)
    assert "relative norm inf" in verify.check(op, forgets, case, config, inputs).problem
    assert not torch.are_deterministic_algorithms_enabled()
