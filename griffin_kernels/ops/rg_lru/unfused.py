"""rg_lru as ``eager.unfused`` composes it of PyTorch's kernels: what fusing saves. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost, Pass


def passes(case: Case) -> tuple[Pass, ...]:
    """Two batched gate products, elementwise steps in float32 one by one, the scan over float32 inputs."""
    elements = case["B"] * case["T"] * case["D"]
    weights = case["H"] * case["n"] * case["n"]
    size = case.bytes_per_element()

    def step(streams_in: int, streams_out: int = 1, vector: int = 1, special: int = 0, count: int = 1) -> Pass:
        return Pass.elementwise(elements, 4 * streams_in, 4 * streams_out, vector, special, count)

    narrow = size < 4
    product = Cost((elements + weights) * size, elements * size, tensor_flops=2 * elements * case["n"])
    gates = [
        Pass(product, 2),
        Pass.elementwise(elements, size, size, count=2),  # [H, B*T, n] back to [B, T, D]
        *([Pass.elementwise(elements, size, 4, count=2)] if narrow else []),
        step(1, count=2),  # biases
        step(1, vector=0, special=1, count=2),  # sigmoid
    ]
    return (
        *gates,
        step(1),  # log a
        step(1),  # 2 log a
        step(1, vector=0, special=1),  # expm1
        step(1),  # negation
        step(1, vector=0, special=1),  # sqrt
        Pass.elementwise(elements, 4 + size, 4, vector=1),  # i x
        step(2),  # times the multiplier
        step(1, vector=0, special=1),  # a
        step(2, vector=2),  # the scan
        *([Pass.elementwise(elements, 4, size)] if narrow else []),
    )
