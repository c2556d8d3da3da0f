"""What a training loop of one's own needs around Hawk and Griffin; there is no trainer here.

``parameter_groups`` and ``initialise`` work by what a module is, also on transformers' RecurrentGemma and on networks
made of ``griffin_kernels.nn``. ``pack`` makes batches of documents. ``checkpoint_blocks`` trades memory for time,
``flops_per_step`` and ``mfu`` say how well the device is used.
"""

from griffin_kernels.training.packing import PackedBatch as PackedBatch
from griffin_kernels.training.packing import pack as pack
from griffin_kernels.training.parameter_roles import float32_modules as float32_modules
from griffin_kernels.training.parameter_roles import initialise as initialise
from griffin_kernels.training.parameter_roles import parameter_groups as parameter_groups
from griffin_kernels.training.recomputation import checkpoint_blocks as checkpoint_blocks
from griffin_kernels.training.recomputation import checkpoint_contexts as checkpoint_contexts
from griffin_kernels.training.recomputation import save_ops as save_ops
from griffin_kernels.training.step_flops import flops_per_step as flops_per_step
from griffin_kernels.training.step_flops import mfu as mfu

__all__ = [
    "PackedBatch",
    "checkpoint_blocks",
    "checkpoint_contexts",
    "float32_modules",
    "flops_per_step",
    "initialise",
    "mfu",
    "pack",
    "parameter_groups",
    "save_ops",
]
