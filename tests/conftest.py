"""Set before Triton is imported: without a GPU its kernels run in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none, and say so; nothing else is ever skipped."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU that torch can use")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
