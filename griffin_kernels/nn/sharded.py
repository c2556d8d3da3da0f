"""Parameters that are cut over ranks: the part that is here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

CUT: tuple[type[Any], ...] = ()
"""DTensor, once ``griffin_kernels.models.parallel`` is imported, which makes them; importing it takes its time."""


def local(parameter: Tensor) -> Tensor:
    """The part of a DTensor that this rank has, differentiable; any other tensor is returned as it is."""
    return parameter.to_local() if isinstance(parameter, CUT) else parameter
