"""What a launch compiles to depends on, as a digest: kernels with equal digests have equal machine code.

That is the syntax of the kernel and of every function under ``triton.jit`` or ``bundling`` that it calls, the constants
that they read, the kinds of the arguments, compile-time values, options and target. Docstrings, comments and the place
of a function in its file do not count, nor does the code that makes the launch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from triton.language.core import constexpr
from triton.runtime.jit import JITCallable, JITFunction

from griffin_kernels.launch import Launch
from tuning.static.describe import compile_key
from tuning.static.targets import Target

TOLD = ("noinline", "do_not_specialize", "do_not_specialize_on_alignment", "debug")
"""What a decorator may be told of a function."""


def digest(launch: Launch, target: Target) -> str:
    """16 hex digits. What is claimed of the launch counts too, since its report says which claims are broken."""
    facts = (compile_key(launch), sorted(launch.options.items()), target.name, launch.tile, launch.claims)
    return hashlib.sha256(f"{facts}\0{syntax(launch.kernel)}".encode()).hexdigest()[:16]


@functools.cache
def syntax(kernel: JITFunction) -> str:
    """Digest of a kernel, of the functions that it calls and of the constants that they read."""
    found: dict[str, str] = {}
    waiting: list[Any] = [kernel]
    seen = {id(kernel)}
    while waiting:
        function = waiting.pop()
        (body,) = ast.parse(function.src).body
        assert isinstance(body, ast.FunctionDef)
        if ast.get_docstring(body, clean=False) is not None:
            body.body = body.body[1:]
        told = repr([getattr(function, name, None) for name in TOLD])
        found[function.__name__] = found.get(function.__name__, "") + ast.dump(body) + told
        for name, value in _references(body, function.__globals__):
            if isinstance(value, JITCallable):
                if id(value) not in seen:
                    seen.add(id(value))
                    waiting.append(value)
            elif isinstance(value, constexpr):
                found[f"{function.__name__}.{name}"] = repr(value.value)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _references(body: ast.FunctionDef, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name as written, value) of every global that a function names, also as an attribute of a module."""
    for node in ast.walk(body):
        if isinstance(node, ast.Name) and node.id in names:
            yield node.id, names[node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = names.get(node.value.id)
            if isinstance(module, ModuleType) and not module.__name__.startswith("triton"):
                yield f"{node.value.id}.{node.attr}", getattr(module, node.attr, None)
