"""``make quick``: what can be said of a change in a minute. ``python -m tests.quick``.

1. ruff on the Python files that differ from ``main`` (from HEAD where there is no such branch), untracked ones included
2. smoke cases of the variants whose source differs, one of each variant in turn, as many as the time allows; how many
   were left out is said
3. every test marked ``unit``: Python only, as tests/purity.py enforces

Loaded as a pytest plugin, this module chooses the tests of steps 2 and 3.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import ROOT

OPS = ROOT / "griffin_kernels" / "ops"
BRANCHES = ("main", "origin/main")
SMOKE_S = 15
"""Seconds after its first from which a test process begins no further smoke case: a change may affect hundreds."""

UNIT = re.compile(r"^(pytestmark = .*|@)pytest\.mark\.unit\b", re.MULTILINE)


def git(*arguments: str) -> list[str]:
    """Lines that git prints; empty where it cannot answer."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def base() -> str:
    """The commit that changes are counted from: where this branch left main, or HEAD."""
    return next((found[0] for branch in BRANCHES if (found := git("merge-base", "HEAD", branch))), "HEAD")


def changed() -> list[Path]:
    """Files that differ from ``base()`` and exist."""
    names = [*git("diff", "--name-only", "--relative", base()), *git("ls-files", "--others", "--exclude-standard")]
    return [path for path in map(ROOT.joinpath, dict.fromkeys(names)) if path.is_file()]


def unit_files() -> list[Path]:
    """Files with tests marked ``unit``."""
    return [path for path in sorted(ROOT.glob("tests/**/test_*.py")) if UNIT.search(path.read_text())]


@functools.cache
def imported(path: Path) -> frozenset[Path]:
    """Files under ``ops/`` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("griffin_kernels.ops"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {ROOT / f"{name.replace('.', '/')}.py" for name in names}
    return frozenset(file for file in found if file.is_file())


@functools.cache
def sources(op: str, variant: str) -> frozenset[Path]:
    """What a variant's results depend on under ``ops/``: its file, its contract, and what they import."""
    folder = OPS / op
    found: set[Path] = set()
    waiting = [folder / f"{variant.replace('.', '_')}.py", folder / "op.py"]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += imported(path)
    return frozenset(found)


def in_turn(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items, taking one of each variant in turn."""
    of_variant: dict[str, list[pytest.Item]] = {}
    for item in items:
        of_variant.setdefault(item.callspec.params["variant"].key, []).append(item)  # type: ignore[attr-defined]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*of_variant.values()))
    return [item for item in turns if item is not None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep smoke cases of affected variants, those of changed ops first, then tests that are ``unit``."""
    from tests.conftest import is_unit

    files = set(changed())

    def concerned(item: pytest.Item) -> bool:
        if item.get_closest_marker("smoke") is None:
            return False
        variant = item.callspec.params["variant"]  # type: ignore[attr-defined]
        return not files.isdisjoint(sources(variant.op, variant.name))

    def elsewhere(item: pytest.Item) -> bool:
        folder = OPS / item.callspec.params["op"].name  # type: ignore[attr-defined]
        return not any(folder in path.parents for path in files)

    kept = [*sorted(in_turn(filter(concerned, items)), key=elsewhere), *filter(is_unit, items)]
    left = set(items) - set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = kept


@functools.cache
def _first_smoke() -> float:
    return time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip smoke cases that the time is over for; they are counted in the summary."""
    if item.get_closest_marker("smoke") is not None and time.monotonic() - _first_smoke() > SMOKE_S:
        pytest.skip(f"not begun after {SMOKE_S} s; `make test` runs it")


def main() -> int:
    """Run the three steps and say which failed; 0 if none did."""
    files = changed()
    python = [str(path.relative_to(ROOT)) for path in files if path.suffix == ".py"]
    print(f"quick: {len(files)} files differ from {base()[:10]}, {len(python)} of them Python", flush=True)
    ruff = str(Path(sys.executable).parent / "ruff")
    steps = [[ruff, "check", *python], [ruff, "format", "--check", *python]] if python else []
    tests = [str(path.relative_to(ROOT)) for path in unit_files()]
    if any("griffin_kernels/ops/" in name for name in python):
        tests.append("tests/griffin_kernels/ops/test_variants.py")
    steps.append([sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "tests.quick", *tests])
    failed = [step for step in steps if subprocess.run(step, cwd=ROOT, check=False).returncode != 0]
    for step in failed:
        print(f"quick: failed: {' '.join(step[:3])}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
