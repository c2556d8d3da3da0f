"""flash-linear-attention's recurrent HGRN kernel; see _peer.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _peer

MODULE = "fla.ops.hgrn.fused_recurrent"

VARIANT = _peer.log_gate_variant("recurrent", MODULE, "fused_recurrent_hgrn", "recurrent HGRN kernel")
