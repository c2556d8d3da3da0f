"""Which options of linear_scan a variant does, in words for those that it does not."""

from __future__ import annotations

from griffin_kernels.case import Case

_WITHOUT = {
    "log": "takes gates, not their logarithms",
    "convex": "does not multiply x by 1 - a",
    "constant": "takes a gate for every step",
    "wide": "takes gates in x's dtype",
    "a_prod": "does not give the product of the gates",
}


def lacks(case: Case, *done: str) -> str | None:
    """Why a variant cannot do a case's options; ``done``: the flags of those that it does."""
    return next((words for flag, words in _WITHOUT.items() if flag in case.flags and flag not in done), None)
