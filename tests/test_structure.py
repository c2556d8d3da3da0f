"""What keeps kernels readable: few parameters, short calls. Arguments that belong together travel in a bundle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import griffin_kernels

pytestmark = pytest.mark.unit

OPS = Path(griffin_kernels.__file__).parent / "ops"
MOST_PARAMETERS = 16
LONGEST_CALL = 6
"""Lines of a call within a kernel."""


def jit_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """(where, function) of every function of the ops that Triton compiles."""
    for file in sorted(OPS.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d).startswith(("triton.jit", "bundling")) for d in node.decorator_list
            ):
                yield f"{file.relative_to(OPS)}:{node.lineno} {node.name}", node


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
