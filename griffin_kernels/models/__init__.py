"""Hawk, Griffin and the MQA Transformer as modules over the tuned operations.

``preset`` and ``GriffinConfig`` need no PyTorch; ``Griffin`` and the checkpoint loaders are imported at first use.
"""

from griffin_kernels.models.config import GriffinConfig as GriffinConfig
from griffin_kernels.models.presets import PRESETS as PRESETS
from griffin_kernels.models.presets import preset as preset
