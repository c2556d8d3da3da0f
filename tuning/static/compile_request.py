"""How the tuner, predictions and the static table say what is to be compiled."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from griffin_kernels.case import Case


class CompileRequest(msgspec.Struct, frozen=True, tag="compile"):
    """One candidate to compile: variant key, case, configuration values, name of the target.

    target: empty for this machine: the variant is called once, for what it compiles then and keeps on disk.
    step: which of the candidate's steps; None for all.
    until: a ``report`` on the machine code, or ``cached`` machine code (of the short form that a candidate is checked
    on, too), or ``lowered`` to LLVM by Triton's own stages, which takes a fraction of the time.
    """

    variant: str
    case: Case
    config: dict[str, Any]
    target: str = ""
    step: int | None = None
    until: Literal["report", "cached", "lowered"] = "report"
