"""flash-linear-attention's recurrent HGRN kernel; see _scan_peers.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_peers

MODULE = "fla.ops.hgrn.fused_recurrent"

VARIANT = _scan_peers.log_gate_variant("recurrent", MODULE, "fused_recurrent_hgrn", "recurrent HGRN kernel")
