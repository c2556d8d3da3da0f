"""Memory that is NaN before anybody writes to it, by torch's own switches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

Settings = tuple[bool, bool, bool]
"""Of torch: deterministic algorithms, only warn where there is none, fill uninitialized memory."""

_OUTSIDE: list[Settings] = []
"""What was set where ``poisoned`` was entered, innermost last. torch's settings are the whole process's."""


@contextlib.contextmanager
def _set(deterministic: bool, warn_only: bool, fill: bool) -> Iterator[Settings]:
    """Other settings for a while; gives the ones from before."""
    settings: Any = torch.utils.deterministic  # a module with a property, which type checkers do not see
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = torch.are_deterministic_algorithms_enabled(), was_warn_only, settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    settings.fill_uninitialized_memory = fill
    try:
        yield before
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = before[2]


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within it ``torch.empty`` and its kin give NaN (the largest value for integers).

    An element that a kernel forgets to write can then not look right by luck.
    """
    with _set(True, True, True) as before:
        _OUTSIDE.append(before)
        try:
            yield
        finally:
            _OUTSIDE.pop()


def outside() -> contextlib.AbstractContextManager[object]:
    """Within it torch's settings are those outside of ``poisoned``, where that is in force.

    For what torch.compile made: it compiles anew for other settings, and what is checked would not be what is timed.
    """
    return _set(*_OUTSIDE[-1]) if _OUTSIDE else contextlib.nullcontext()
