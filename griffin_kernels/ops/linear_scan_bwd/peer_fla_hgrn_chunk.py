"""The gradient of flash-linear-attention's chunked HGRN kernels; see linear_scan/_peer.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _peer
from griffin_kernels.ops.linear_scan import peer_fla_hgrn_chunk as forward

VARIANT = _peer.log_gate_gradient(forward.VARIANT, forward.MODULE, "ChunkHGRNFunction")
