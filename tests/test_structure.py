"""What keeps sources readable: in kernels few parameters and short calls, everywhere one name for one thing.

Arguments that belong together travel in a bundle.
"""

from __future__ import annotations

import ast
import collections
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import griffin_kernels
from tests import ROOT

pytestmark = pytest.mark.unit

OPS = Path(griffin_kernels.__file__).parent / "ops"
PACKAGES = ("griffin_kernels", "tuning", "roofline", "reports")
OF_EVERY_OP = {"op.py", "cost.py", "unfused.py"}
OF_EVERY_FAMILY = {"Call", "Config", "Fields"}
"""What an op, a variant and a family of native functions each has one of."""
MOST_PARAMETERS = 16
LONGEST_CALL = 6
"""Lines of a call within a kernel."""


@functools.cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """(file, node) of all syntax of the ops."""
    return [(file, node) for file in sorted(OPS.rglob("*.py")) for node in ast.walk(ast.parse(file.read_text("utf-8")))]


def jit_functions(decorators: tuple[str, ...] = ("triton.jit", "bundling")) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(where, function) of every function of the ops that Triton compiles."""
    for file, node in nodes():
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(d).startswith(decorators) for d in node.decorator_list
        ):
            yield f"{file.relative_to(OPS)}:{node.lineno} {node.name}", node


def returns(function: ast.FunctionDef) -> list[ast.Return]:
    return [node for node in ast.walk(function) if isinstance(node, ast.Return)]


def given(value: ast.expr | None) -> Iterator[ast.expr | None]:
    """What an expression may be, and what is in a tuple that it may be."""
    if isinstance(value, ast.IfExp):
        yield from (*given(value.body), *given(value.orelse))
    elif isinstance(value, ast.Tuple):
        yield from (inner for element in value.elts for inner in given(element))
    else:
        yield value


def makes_bundles(function: ast.FunctionDef, makers: set[str]) -> bool:
    """Whether a function returns None, or what one of ``makers`` gives."""
    made = {
        name.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and called(node.value) in makers
        for target in node.targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    return any(
        (isinstance(value, ast.Constant) and value.value is None)
        or (isinstance(value, ast.Call) and called(value) in makers)
        or (isinstance(value, ast.Name) and value.id in made)
        for node in returns(function)
        for value in given(node.value)
    )


def called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def test_there_are_kernels_to_look_at():
    assert len(list(jit_functions())) > 100


def test_no_kernel_takes_more_than_16_parameters():
    counts = {where: len(node.args.args) + len(node.args.kwonlyargs) for where, node in jit_functions()}
    assert not {where: count for where, count in counts.items() if count > MOST_PARAMETERS}


def test_no_call_in_a_kernel_spans_more_than_6_lines():
    long = [
        f"{where}: {ast.unparse(call.func)} on line {call.lineno}"
        for where, node in jit_functions()
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and (call.end_lineno or call.lineno) - call.lineno >= LONGEST_CALL
    ]
    assert not long


def test_what_returns_a_bundle_or_none_is_decorated_for_it():
    classes = {n.name for _, n in nodes() if isinstance(n, ast.ClassDef) and "NamedTuple" in map(ast.unparse, n.bases)}
    functions = {node.name for _, node in jit_functions(("bundling",))}
    assert len(classes) > 10 and len(functions) > 10
    plain = [where for where, node in jit_functions(("triton.jit",)) if makes_bundles(node, classes | functions)]
    assert not plain


def test_what_makes_a_bundle_returns_once_and_last():
    several = [where for where, node in jit_functions(("bundling",)) if returns(node) != [node.body[-1]]]
    assert not several


@pytest.mark.parametrize(
    "source",
    ["return None", "return Rows(x, 1)", "return None if x is None else later(x)", "y = later(x)\n return x, y"],
)
def test_a_bundle_that_is_returned_is_seen(source):
    (function,) = ast.parse(f"def f(x):\n {source}").body
    assert makes_bundles(function, {"Rows", "later"})
    assert not makes_bundles(function, {"Other"}) or "None" in source


def test_no_two_modules_share_a_name():
    """But for what every op has, and variants, whose files are named as the variants are."""
    found = collections.Counter(
        path.name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not re.match(r"(eager|compiled|numba|triton|peer)_", path.name)
        if path.name not in OF_EVERY_OP | {"__init__.py", "__main__.py", "cli.py"}
    )
    assert len(found) > 100 and not [name for name, count in found.items() if count > 1]


def test_no_class_is_defined_twice():
    found = collections.Counter(
        node.name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name not in OF_EVERY_FAMILY
    )
    assert len(found) > 100 and not [name for name, count in found.items() if count > 1]
