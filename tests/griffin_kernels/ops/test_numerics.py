"""The errors that the public functions' docstrings state are those that their variants make."""

from __future__ import annotations

import inspect
import math
import re

import pytest

import griffin_kernels
from griffin_kernels import catalog, verify
from tests.everywhere import device_of

DTYPES = ("float32", "bfloat16", "float16")
OPS = [op.name for op in catalog.ops().values() if op.forward is None]
SENTENCE = re.compile(r"Error against float64[^:]*: (float32 .*?)(?:; of gradients (float32 .*?))?\.\s", re.DOTALL)

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def measured(op_name: str, dtype: str) -> tuple[float, str]:
    """The largest relative norm of an error among an op's variants at its smoke cases, and whose it is."""
    op = catalog.op(op_name)
    found = []
    for variant in catalog.variants(op_name).values():
        where = device_of(variant.backend)
        for case in op.cases_tagged("smoke"):
            if case.dtype == dtype and variant.reject(case, where, variant.config()) is None:
                inputs = op.make_inputs(case, where.torch_device, seed=0)
                found.append((verify.check(op, variant, case, variant.config(), inputs).rel_norm, variant.name))
    return max(found)


def stated(op_name: str) -> list[dict[str, float]]:
    """Errors by dtype that the docstring of the public function states: of its results, of its gradients."""
    text = inspect.getdoc(getattr(griffin_kernels, op_name)) or ""
    sentence = SENTENCE.search(" ".join(text.split()) + " ")
    assert sentence is not None, f"{op_name} states no error"
    return [
        {name: float(value) for name, value in re.findall(r"(\w+) (\d+e-\d+)", part)}
        for part in sentence.groups()
        if part is not None
    ]


def kinds(op_name: str) -> list[str]:
    """The op and, where there is one, its backward."""
    return [op_name, *(op.name for op in catalog.ops().values() if op.forward == op_name)]


@pytest.mark.parametrize("op_name", OPS)
def test_stated_errors_are_those_measured(op_name):
    names, told = kinds(op_name), stated(op_name)
    assert len(names) == len(told)
    for name, by_dtype in zip(names, told, strict=True):
        assert tuple(by_dtype) == DTYPES
        for dtype, bound in by_dtype.items():
            worst, variant = measured(name, dtype)
            # other machines sum in other orders: what is stated may be up to six times what is measured here
            assert worst <= bound <= 6 * worst, f"{name} {dtype}: states {bound:.0e}, {variant} makes {worst:.1e}"


def rounded_up(value: float) -> str:
    """A third above the value, up to one digit."""
    exponent = math.floor(math.log10(1.3 * value))
    return f"{math.ceil(1.3 * value / 10**exponent) * 10.0**exponent:.0e}"


if __name__ == "__main__":
    for op_name in OPS:
        parts = []
        for name in kinds(op_name):
            found = {dtype: measured(name, dtype) for dtype in DTYPES}
            print(name, {dtype: f"{worst:.1e} {variant}" for dtype, (worst, variant) in found.items()})
            parts.append(", ".join(f"{dtype} {rounded_up(worst)}" for dtype, (worst, _) in found.items()))
        print(f"{op_name}: {'; of gradients '.join(parts)}")
