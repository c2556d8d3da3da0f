"""gated_gelu/triton_rows.py on the halves, whose rows are two widths apart: one launch, nothing is copied."""

from __future__ import annotations

import dataclasses
from typing import Any

from griffin_kernels.contract import from_parts
from griffin_kernels.launch import Launch
from griffin_kernels.ops.gated_gelu import triton_rows as apart
from griffin_kernels.ops.geglu.op import Call, halves


def launches(call: Call, outputs: dict[str, Any], config: apart.Config) -> list[Launch]:
    """The only launch; allocates out."""
    return apart.launches(halves(call.x), outputs, config)


VARIANT = dataclasses.replace(apart.VARIANT, op="geglu", run=from_parts, launches=launches)
