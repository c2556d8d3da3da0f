"""The public rg_lru_step: one token of decoding through the RG-LRU, by the tuned kernels."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.functional import _bridge
from griffin_kernels.functional.rg_lru import RGLRUWeights, checked

_step = _bridge.InPlace("rg_lru_step", instead="rg_lru")


def rg_lru_step(
    x: Tensor,
    weights: RGLRUWeights,
    h: Tensor,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """One token of ``rg_lru``; the state ``h`` is changed in place.

    x: [B, D], float32, bfloat16, float16 or float64; any strides. weights: RGLRUWeights in the same dtype.
    h: [P, D], float32 (float64 for float64); P = B without slots.
    positions: int64 or int32 [B], each token's position in its document. At 0 a document begins: h counts as 0 and
        sqrt(1 - a^2) as 1. None: every document goes on.
    slots: int64 or int32 [B], which row of h belongs to which row of the batch, each at most once; a negative one marks
        a row that only pads: no state is touched and its output is 0. On a GPU values are not checked, as that would
        wait for the device: there a slot of P or more pads too.

    Returns y [B, D], the new states rounded to x's dtype. Gates' exponentials and the state are float32 or better.
    Reads no value on the host and allocates nothing of varying size, so that it can be captured in a CUDA graph; works
    under torch.compile. B = 0 gives an empty output.

    Numerics: gate products are summed in float32; eager code rounds the gates' arguments to x's dtype, fused
    kernels do not. All else, h included, is float32 (float64 for float64 data); y is h rounded once. Error against
    float64, the worst variant on normal inputs, as norm of the error over norm of the result: float32 9e-08,
    bfloat16 4e-03, float16 3e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault, and leaves h as it
    was. It has no gradient: in grad mode, tensors that require one raise ArgumentError.
    Source: arXiv 2402.19427, section 2.4.
    """
    out: Tensor = _step(x, *checked("rg_lru_step", weights), h, _bridge.whole(positions), _bridge.whole(slots))
    return out
