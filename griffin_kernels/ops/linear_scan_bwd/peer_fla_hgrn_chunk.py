"""The gradient of flash-linear-attention's chunked HGRN kernels; see linear_scan/_scan_peers.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_peers
from griffin_kernels.ops.linear_scan import peer_fla_hgrn_chunk as forward

VARIANT = _scan_peers.log_gate_gradient(forward.VARIANT, forward.MODULE, "ChunkHGRNFunction")
