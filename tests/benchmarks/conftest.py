"""Benchmarks run only when they are named: ``pytest tests/benchmarks -s``. A plain ``pytest`` asserts no speed."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = (Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args)
    if collection_path.suffix == ".py" and not any(path.is_relative_to(_HERE) for path in named):
        return True
    return None
