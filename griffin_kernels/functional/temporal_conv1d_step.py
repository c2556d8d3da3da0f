"""The public temporal_conv1d_step: one token of decoding through the convolution, by the tuned kernels."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.functional import _bridge

_step = _bridge.InPlace("temporal_conv1d_step", instead="temporal_conv1d")


def temporal_conv1d_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    state: Tensor,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """One token of ``temporal_conv1d``; the last K-1 inputs are kept in ``state``, which is changed in place.

    x: [B, D], float32, bfloat16, float16 or float64; any strides. All other tensors but indices: same dtype.
    weight: [K, D]. bias: [D]. state: [P, K-1, D], the inputs before x, oldest first; P = B without slots.
    positions: int64 or int32 [B], each token's position in its document. Tap k > 0 counts only where k <= position, and
        inputs of an earlier document become zeros in the state. None: every document goes on.
    slots: int64 or int32 [B], which row of the state belongs to which row of the batch, each at most once; a negative
        one marks a row that only pads: its state is not touched and its output is 0. On a GPU values are not checked,
        as that would wait for the device: there a slot of P or more pads too.

    Returns y [B, D] in x's dtype; sums in float32 or better. Reads no value on the host and allocates nothing of
    varying size, so that it can be captured in a CUDA graph; works under torch.compile. B = 0 gives an empty output.

    Numerics: taps are multiplied and summed in float32 (float64 for float64 data); y is rounded once. Error against
    float64, the worst variant on normal inputs, as norm of the error over norm of the result: float32 7e-08,
    bfloat16 2e-03, float16 4e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault, and leaves the
    state as it was. It has no gradient: in grad mode, tensors that require one raise ArgumentError.
    Source: arXiv 2402.19427, section 2.3.
    """
    out: Tensor = _step(x, weight, bias, state, _bridge.whole(positions), _bridge.whole(slots))
    return out
