"""accelerated-scan's Triton kernel; see _peer.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _peer

MODULE = "accelerated_scan.scalar"

VARIANT = _peer.time_last_variant(
    "triton", MODULE, "Triton kernel", lambda case, device, config: _peer.problem(case, device)
)
