"""accelerated-scan's CUDA kernel of warps; see _scan_peers.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_peers

MODULE = "accelerated_scan.warp"

VARIANT = _scan_peers.time_last_variant("warp", MODULE, "CUDA kernel of warps", _scan_peers.warp_problem)
