"""Keys of cases: every one names its case, and nothing else passes for one."""

from __future__ import annotations

import pytest

from griffin_kernels import catalog, errors
from griffin_kernels.case import Case

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("op", list(catalog.ops()))
def test_key_names_its_case(op):
    for case in catalog.op(op).cases:
        assert Case.parse(op, case.key, list(case.dims)) == case.plain()
        assert Case.parse(op, case.key).key == case.key


@pytest.mark.parametrize(
    "key",
    ["", "float32", "B1-T2", "B1-T-float32", "B1--float32", "1-float32", "B1-float8",
     "B1-float32+", "B1-float32~", "B-1-float32"],
)  # fmt: skip
def test_what_is_no_key_is_refused(key):
    with pytest.raises(errors.ArgumentError, match="keys look like"):
        Case.parse("linear_scan", key)


@pytest.mark.parametrize("key", ["B1-T2-D3-K4-float32", "B1-T2-float32", "T2-D3-float32"])
def test_key_of_another_op_is_refused(key):
    with pytest.raises(errors.ArgumentError, match="its dimensions are B, T, D, N"):
        Case.parse("linear_scan", key, ["B", "T", "D", "N"])
