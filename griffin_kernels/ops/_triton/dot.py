"""Matrix products of Triton tiles that the interpreter takes too: its own ``tl.dot`` reads bfloat16 as integers."""

from __future__ import annotations

import triton
import triton.language as tl


def compiled(_semantic=None):
    """Whether the kernel is being compiled; False in the interpreter, where nothing passes ``_semantic``."""
    return tl.constexpr(_semantic is not None)


compiled.__triton_builtin__ = True  # type: ignore[attr-defined]  # the compiler then passes _semantic


@triton.jit
def dot(left, right, acc=None):
    """left @ right, plus ``acc`` where given, in float32; products of float32 data are not rounded to TF32."""
    if not compiled():
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, acc, input_precision="ieee")
