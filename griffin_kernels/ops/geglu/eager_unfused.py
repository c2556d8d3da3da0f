"""gated_gelu/eager_unfused.py on the halves, in place. Works on every device and dtype."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from griffin_kernels.contract import NoConfig
from griffin_kernels.ops.gated_gelu import eager_unfused as apart
from griffin_kernels.ops.geglu.op import Call, halves


def run(call: Call, config: NoConfig) -> tuple[Tensor]:
    return apart.run(halves(call.x), config)


VARIANT = dataclasses.replace(apart.VARIANT, op="geglu", run=run)
