"""flash-linear-attention's chunked HGRN kernels; see _peer.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _peer

MODULE = "fla.ops.hgrn.chunk"

VARIANT = _peer.log_gate_variant("chunk", MODULE, "chunk_hgrn", "chunked HGRN kernels")
