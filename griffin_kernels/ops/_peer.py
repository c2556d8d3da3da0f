"""What the peers share: other projects' kernels behind the ops' contracts, raced as baselines where they are installed.

They are called by the names that their own code has; where a release has moved one, the candidate fails and says so.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.case import Case
from griffin_kernels.device import Device


class Saved:
    """The context of a torch.autograd.Function whose forward pass has run.

    Its ``backward`` is called with this, without the engine, so that a gradient can be timed alone and in a CUDA graph.
    """

    def __init__(self, *tensors: Tensor | None, **facts: Any) -> None:
        self.saved_tensors = tensors
        self.__dict__.update(facts)


def problem(case: Case, device: Device, dtypes: tuple[str, ...], *, amd: bool = False) -> str | None:
    """Why a peer for NVIDIA GPUs, or AMD's too, cannot run here."""
    if device.kind != "cuda" and not (amd and device.kind == "hip"):
        return "needs an NVIDIA GPU" + (" or AMD's" if amd else "")
    return None if case.dtype in dtypes else f"has kernels for {', '.join(dtypes)} only"
