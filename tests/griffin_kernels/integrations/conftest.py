"""Models here are so small that threads would only wait for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def in_one_thread(one_thread: None) -> None:
    """What the other models' tests ask for by name."""
