"""flash-linear-attention's chunked HGRN kernels; see _scan_peers.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_peers

MODULE = "fla.ops.hgrn.chunk"

VARIANT = _scan_peers.log_gate_variant("chunk", MODULE, "chunk_hgrn", "chunked HGRN kernels")
