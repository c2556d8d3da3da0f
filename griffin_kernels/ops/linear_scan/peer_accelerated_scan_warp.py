"""accelerated-scan's CUDA kernel of warps; see _peer.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _peer

MODULE = "accelerated_scan.warp"

VARIANT = _peer.time_last_variant(
    "warp", MODULE, "CUDA kernel of warps", lambda case, device, config: _peer.warp_problem(case, device)
)
