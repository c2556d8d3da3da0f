"""gated_gelu/numba_rows.py on the halves, whose rows are two widths apart: one pass, nothing is copied."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from griffin_kernels.ops.gated_gelu import numba_rows as apart
from griffin_kernels.ops.geglu.op import Call, halves


def run(call: Call, config: apart.Config) -> tuple[Tensor]:
    return apart.run(halves(call.x), config)


VARIANT = dataclasses.replace(apart.VARIANT, op="geglu", run=run)
