"""Which files of ``ops/`` a kernel is made of, and their digest. Needs no PyTorch: nothing is imported.

The contracts (``op.py``, ``cost.py``, ``unfused.py``) do not count: a new case does not change a kernel.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_OPS = "griffin_kernels.ops."
_CONTRACTS = (".op", ".cost", ".unfused")


@functools.cache
def _file(module: str) -> Path | None:
    """The file of a module; None where there is none, as for a function that is imported from one."""
    if not module.startswith(_OPS):
        return Path(str(sys.modules[module].__file__)) if module in sys.modules else None
    below = _ROOT.joinpath(*module.split("."))
    return next((path for path in (below.with_suffix(".py"), below / "__init__.py") if path.is_file()), None)


def _source(module: str) -> bytes:
    path = _file(module)
    assert path is not None, f"{module} has no file"
    return path.read_bytes()


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    """Modules of ``ops/`` that a module imports, but no contract."""
    found: list[str] = []
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return tuple(n for n in found if n.startswith(_OPS) and not n.endswith(_CONTRACTS) and _file(n) is not None)


def kernel_modules(module: str) -> set[str]:
    """``module`` and the modules under griffin_kernels.ops it imports, directly or not, but no contract."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += _imported(name)
    return found


def home(op: str, variant: str) -> str:
    """The module of a variant: of ``linear_scan`` and ``triton.chunked``, ops.linear_scan.triton_chunked."""
    return f"{_OPS}{op}.{variant.replace('.', '_')}"


def digest(modules: Iterable[str]) -> str:
    """SHA-256 (16 hex digits) of modules' names and sources."""
    made = hashlib.sha256()
    for name in sorted(modules):
        made.update(name.encode() + b"\0" + _source(name) + b"\0")
    return made.hexdigest()[:16]


@functools.cache
def source_hash(op: str, variant: str) -> str | None:
    """The digest of a variant's file and of what it imports of ``ops/``; None where there is no such variant."""
    module = home(op, variant)
    return None if _file(module) is None else digest(kernel_modules(module))
