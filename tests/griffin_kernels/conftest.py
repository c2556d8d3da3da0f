"""What tests of models and public functions share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

OPS = Path(__file__).parent / "ops"


@pytest.fixture(autouse=True)
def compiled_code_is_forgotten(request):
    """torch.compile makes eight graphs of a piece of code at most, and ``forward`` of a model is one piece for all.

    Tests of single operations compile functions of their own.
    """
    before = graphs()
    yield
    if graphs() != before and OPS not in request.path.parents:
        torch.compiler.reset()


def graphs() -> int:
    """That torch.compile has made in this process."""
    dynamo = sys.modules.get("torch._dynamo")
    return 0 if dynamo is None else dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def one_thread():
    """Tiny matrices gain nothing from threads, which wait for each other where tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
