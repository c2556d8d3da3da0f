"""The public recurrent_block_step: one token of decoding through a recurrent block, by the tuned kernels."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.functional import _bridge
from griffin_kernels.functional.rg_lru import RGLRUWeights, checked

_step = _bridge.InPlace("recurrent_block_step", instead="recurrent_block")


def recurrent_block_step(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weights: RGLRUWeights,
    conv_state: Tensor,
    h: Tensor,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """One token of ``recurrent_block``: convolution, RG-LRU and gelu gate; both states are changed in place.

        out = rg_lru_step(temporal_conv1d_step(x)) * gelu(y)

    x, y: [B, D], the two branches, float32, bfloat16, float16 or float64, any strides; all weights in that dtype.
    conv_weight: [K, D]. conv_bias: [D]. weights: RGLRUWeights.
    conv_state: [P, K-1, D] in x's dtype, oldest input first. h: [P, D], float32 (float64 for float64). P = B without
        slots.
    positions: int64 or int32 [B], each token's position in its document: 0 begins a new one, which reads neither state.
        None: every document goes on.
    slots: int64 or int32 [B], which row of both states belongs to which row of the batch, each at most once; a negative
        one marks a row that only pads: no state is touched and its output is 0. On a GPU values are not checked, as
        that would wait for the device: there a slot of P or more pads too.

    Returns out [B, D] in x's dtype. Sums, gates' exponentials and the state are float32 or better. Reads no value on
    the host and allocates nothing of varying size, so that it can be captured in a CUDA graph; works under
    torch.compile. B = 0 gives an empty output.

    Numerics: as temporal_conv1d_step and rg_lru_step; the convolution's output may be rounded to x's dtype before
    the gate products. gelu is float32 in fused kernels; out is rounded once. Error against float64, the worst
    variant on normal inputs, as norm of the error over norm of the result: float32 1e-07, bfloat16 5e-03, float16
    4e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault, and leaves both
    states as they were. It has no gradient: in grad mode, tensors that require one raise ArgumentError.
    Source: arXiv 2402.19427, sections 2.3 and 2.4.
    """
    gates = checked("recurrent_block_step", weights)
    index = (_bridge.whole(positions), _bridge.whole(slots))
    out: Tensor = _step(x, y, conv_weight, conv_bias, *gates, conv_state, h, *index)
    return out
