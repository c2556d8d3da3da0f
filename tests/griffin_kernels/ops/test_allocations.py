"""No tensor takes its dtype or device from torch's ambient settings, which are the user's, not ours."""

from __future__ import annotations

import ast

import pytest
import torch
from torch.utils import _device

from tests import ROOT

PACKAGES = ("griffin_kernels", "tuning", "roofline", "reports")

FACTORIES = {
    function.__name__ for function in _device._device_constructors() if getattr(torch, function.__name__, None)
}
"""Functions of torch that put a tensor on the default device, by torch's own list."""


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
        ):
            yield node.func.attr, node


def calls_of(method: str, source: str) -> list[int]:
    """Lines on which a method of that name is called."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
    ]


def ambient(source: str) -> list[str]:
    """``line: what is missing`` for each tensor whose dtype or device depends on torch's defaults."""
    found = []
    for name, call in calls(ast.parse(source)):
        given = {keyword.arg for keyword in call.keywords}
        if any(keyword.arg is None and ast.unparse(keyword.value) == "factory" for keyword in call.keywords):
            given |= {"dtype", "device"}  # of a layer: see nn/drawing.py
        missing = [f"{word}=" for word in ("dtype", "device") if name in FACTORIES and word not in given]
        if name == "Generator" and not call.args:
            missing = ["a device"]
        if name == "where" and all(isinstance(arg, (ast.Constant, ast.UnaryOp)) for arg in call.args[1:]):
            missing = ["a tensor among the two values"]
        if missing:
            found.append(f"{call.lineno}: torch.{name} lacks {' and '.join(missing)}")
    return found


def test_every_allocation_names_its_dtype_and_device():
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found += [f"{path.relative_to(ROOT)}:{where}" for where in ambient(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "torch.empty(3)",
        "torch.empty(3, dtype=torch.int8)",
        "torch.arange(3, device='cpu')",
        "torch.tensor([1.0])",
        "torch.where(mask, 0.0, -1.0)",
        "torch.Generator().manual_seed(0)",
    ],
)
def test_the_rule_sees_what_depends_on_the_defaults(source):
    assert ambient(source)


def test_the_rule_lets_pass_what_does_not():
    kept = "torch.empty(3, dtype=x.dtype, device=x.device); x.new_empty(3); torch.empty_like(x); torch.where(m, 0.0, x)"
    assert ambient(kept) == []
    assert {"empty", "zeros", "arange", "tensor", "randn", "full", "eye", "linspace"} <= FACTORIES
