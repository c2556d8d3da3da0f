"""The gradient in one pass from the last step to the first, in native CPU code; see rg_lru_gated/numba_fused.py.

    g_t = dy_t + a_{t+1} g_{t+1}, then dx, dz_i and dz_r of the step        the equations of rg_lru_bwd/op.py

Eight streams: dy, x, z_i, z_r and y in, dx, dz_i and dz_r out; 32 bytes per element in float32, 16 in bfloat16. Gates
are recomputed. da_param is a sum of sums of 64 steps of each sequence, the same for any number of threads.
"""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.rg_lru_gated import _gated_numba_call
from griffin_kernels.ops.rg_lru_gated.numba_fused import VARIANT as FORWARD

VARIANT = backward_of(
    FORWARD, _gated_numba_call.backward, summary="gates, gradients and scan in one pass in native code"
)
