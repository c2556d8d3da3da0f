"""The layers of Griffin, Hawk and the MQA Transformer as modules for networks of one's own.

Source: arXiv 2402.19427, section 2. Sizes are plain arguments. ``device`` and ``dtype`` are those of the parameters,
torch's defaults if None. Parameters are drawn as in the published code, by ``reset_parameters`` again; with
``draw=False`` they are only allocated, for whoever loads or draws them next.

What mixes time takes ``segment_pos`` or ``cu_seqlens``, which tell packed documents apart, and states to go on from.
"""

from griffin_kernels.nn.attention_layers import LocalAttention as LocalAttention
from griffin_kernels.nn.feedforward import GatedMLP as GatedMLP
from griffin_kernels.nn.feedforward import RMSNorm as RMSNorm
from griffin_kernels.nn.int8_linear import Int8Linear as Int8Linear
from griffin_kernels.nn.int8_linear import int8_linears_ as int8_linears_
from griffin_kernels.nn.recurrent_layers import RGLRU as RGLRU
from griffin_kernels.nn.recurrent_layers import RecurrentBlock as RecurrentBlock
from griffin_kernels.nn.recurrent_layers import TemporalConv1D as TemporalConv1D

__all__ = [
    "RGLRU",
    "GatedMLP",
    "Int8Linear",
    "LocalAttention",
    "RMSNorm",
    "RecurrentBlock",
    "TemporalConv1D",
    "int8_linears_",
]
