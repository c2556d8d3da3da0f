"""recurrent_block_step as ``eager.unfused`` composes it of PyTorch's kernels: what fusing saves. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost, Pass
from griffin_kernels.ops.recurrent_block_step.cost import GELU_FLOPS, GELU_SPECIALS


def passes(case: Case) -> tuple[Pass, ...]:
    """The convolution over the kept inputs, two batched products, elementwise steps in float32, states written back."""
    channels, width, taps = case["B"] * case["D"], case["D"], case["K"]
    size = case.bytes_per_element()
    narrow = size < 4
    gates = case["H"] * case["n"] * case["n"]

    def step(streams_in: int, vector: int = 1, special: int = 0, count: int = 1) -> Pass:
        return Pass.elementwise(channels, 4 * streams_in, 4, vector, special, count)

    product = Cost((channels + gates) * size, channels * size, tensor_flops=2 * channels * case["n"])
    convolution = (
        Pass.elementwise(taps * channels, size, size),  # the kept inputs and the new one
        Pass.elementwise(taps, 0, 8),
        Pass.elementwise(case["B"] * taps, 8, 1, vector=1),
        Pass.elementwise(taps * channels, size, size, count=2),  # what an earlier document left
        *([Pass.elementwise(taps * channels, size, 4), Pass.elementwise(taps * width, size, 4)] if narrow else []),
        Pass.elementwise(taps * channels, 4, 4, vector=1),
        Pass(Cost(4 * taps * channels, 4 * channels, vector_flops=taps * channels)),
        step(1),  # bias
        Pass.elementwise((taps - 1) * channels, size, size),
        *([Pass.elementwise(channels, 4, size)] if narrow else []),
    )
    recurrence = (
        Pass(product, 2),
        *([Pass.elementwise(channels, size, size, count=2)] if case["B"] > 1 else []),  # [H, B, n] back to [B, D]
        *([Pass.elementwise(channels, size, 4, count=2), Pass.elementwise(width, size, 4, count=3)] if narrow else []),
        step(1, count=2),  # biases
        step(1, vector=0, special=1, count=2),  # sigmoid
        Pass.elementwise(width, 4, 4, vector=1, special=1),  # softplus
        Pass.elementwise(width, 4, 4, vector=1),
        step(1, count=3),  # log a, 2 log a, negation
        step(1, vector=0, special=1, count=3),  # a, expm1, sqrt
        Pass.elementwise(case["B"], 8, 1, vector=1),
        step(1, count=2),  # a and the multiplier where a document begins
        Pass.elementwise(channels, 4 + size, 4, vector=1),  # i x
        step(2),  # times the multiplier
        step(3, vector=2),
        step(1, vector=0),  # the state written back
        *([Pass.elementwise(channels, 4, size)] if narrow else []),
    )
    gate = (
        Pass.elementwise(channels, size, size, vector=GELU_FLOPS, special=GELU_SPECIALS),
        Pass.elementwise(channels, 2 * size, size, vector=1),
    )
    return (*convolution, *recurrence, *gate)
