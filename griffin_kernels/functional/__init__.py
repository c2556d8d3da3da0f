"""The public operations. Importing this registers ``torch.ops.griffin_kernels.*``, all of them.

Those on whole sequences are differentiable; those that decode or extend change states in place.
"""

from griffin_kernels.functional import _bridge, _compile_caches
from griffin_kernels.functional._attention import local_attention as local_attention
from griffin_kernels.functional._attention import local_attention_extend as local_attention_extend
from griffin_kernels.functional._attention import local_attention_step as local_attention_step
from griffin_kernels.functional._common import RGLRUWeights as RGLRUWeights
from griffin_kernels.functional._complex import complex_rg_lru as complex_rg_lru
from griffin_kernels.functional._complex import complex_scan as complex_scan
from griffin_kernels.functional._documents import segment_positions as segment_positions
from griffin_kernels.functional._extend import last_tokens as last_tokens
from griffin_kernels.functional._extend import linear_scan_extend as linear_scan_extend
from griffin_kernels.functional._extend import recurrent_block_extend as recurrent_block_extend
from griffin_kernels.functional._extend import rg_lru_extend as rg_lru_extend
from griffin_kernels.functional._extend import temporal_conv1d_extend as temporal_conv1d_extend
from griffin_kernels.functional._feedforward import gated_gelu as gated_gelu
from griffin_kernels.functional._feedforward import geglu as geglu
from griffin_kernels.functional._norms import rms_norm as rms_norm
from griffin_kernels.functional._recurrent import recurrent_block as recurrent_block
from griffin_kernels.functional._recurrent import recurrent_block_step as recurrent_block_step
from griffin_kernels.functional._recurrent import rg_lru as rg_lru
from griffin_kernels.functional._recurrent import rg_lru_gated as rg_lru_gated
from griffin_kernels.functional._recurrent import rg_lru_step as rg_lru_step
from griffin_kernels.functional._recurrent import temporal_conv1d as temporal_conv1d
from griffin_kernels.functional._recurrent import temporal_conv1d_step as temporal_conv1d_step
from griffin_kernels.functional._scans import block_diagonal_scan as block_diagonal_scan
from griffin_kernels.functional._scans import linear_scan as linear_scan
from griffin_kernels.functional._scans import linear_scan_step as linear_scan_step

_compile_caches.mark(f"{name}{schema}" for name, schema in _bridge.SCHEMAS.items())
