"""Every variant x smoke and edge case x default and corner configs, against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from griffin_kernels import catalog, verify
from griffin_kernels.contract import config_key
from tests.everywhere import device_of


def table() -> Iterator[object]:
    for op in catalog.ops().values():
        for variant in catalog.variants(op.name).values():
            where = device_of(variant.backend)
            for case in op.cases_tagged("smoke", "edge"):
                for config in variant.corner_configs(case, where):
                    yield pytest.param(op, variant, case, config, id=f"{variant.key}/{case.key}/{config_key(config)}")


@pytest.mark.parametrize(("op", "variant", "case", "config"), list(table()))
def test_variant_matches_float64_reference(op, variant, case, config):
    inputs = op.make_inputs(case, device_of(variant.backend).torch_device, seed=0)
    verdict = verify.check(op, variant, case, config, inputs)
    assert verdict.ok, verdict.problem
