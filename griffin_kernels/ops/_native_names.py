"""Names of native functions of which there are several: made by one function of Python, for different options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

_njit: Any = numba.njit


def named(name: str) -> Callable[[Any], Any]:
    """Decorator of a function of which there are several: numba's own, under a name that no other of them has.

    Compiled code is called after the qualified name of its function, and how many were compiled before: two of one name
    that come from the cache on disk would be taken for each other.
    """

    def decorated(function: Any) -> Any:
        function.__qualname__ = name
        return _njit(function)

    return decorated
