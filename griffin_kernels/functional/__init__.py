"""The public operations. Importing this registers ``torch.ops.griffin_kernels.*``, all of them."""

from griffin_kernels.functional.sequences import RGLRUWeights as RGLRUWeights
from griffin_kernels.functional.sequences import block_diagonal_scan as block_diagonal_scan
from griffin_kernels.functional.sequences import linear_scan as linear_scan
from griffin_kernels.functional.sequences import local_attention as local_attention
from griffin_kernels.functional.sequences import recurrent_block as recurrent_block
from griffin_kernels.functional.sequences import rg_lru as rg_lru
from griffin_kernels.functional.sequences import temporal_conv1d as temporal_conv1d
from griffin_kernels.functional.steps import local_attention_step as local_attention_step
from griffin_kernels.functional.steps import recurrent_block_step as recurrent_block_step
from griffin_kernels.functional.steps import rg_lru_step as rg_lru_step
from griffin_kernels.functional.steps import temporal_conv1d_step as temporal_conv1d_step
