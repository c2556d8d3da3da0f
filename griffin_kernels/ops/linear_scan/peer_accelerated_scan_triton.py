"""accelerated-scan's Triton kernel; see _scan_peers.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_peers

MODULE = "accelerated_scan.scalar"

VARIANT = _scan_peers.time_last_variant("triton", MODULE, "Triton kernel", _scan_peers.problem)
