"""What the record of a training step says beside that of any pass. Needs no PyTorch."""

from __future__ import annotations

from typing import Literal

import msgspec

from roofline.training_work import OptimizerName, Recompute

StepStage = Literal["forward", "recomputation", "backward", "optimizer"]
"""A stage of a step as times are told: what is computed again apart from the backward pass, in which it runs."""


class TrainingFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one training step.

    predicted_by_stage_s: seconds. gradient_bytes, optimizer_bytes: held beside the weights. kept_bytes: activations
    from the forward to the backward pass by kind of part. worst: when most memory is held.
    model_flops: three forward passes. hardware_flops: all that is computed, again or not.
    peak_flops_per_s: what both utilisations divide by; peak_is: that in words.
    """

    recompute: Recompute
    optimizer: OptimizerName
    predicted_by_stage_s: dict[StepStage, float]
    gradient_bytes: int
    optimizer_bytes: int
    kept_bytes: dict[str, int]
    worst: str
    model_flops: int
    hardware_flops: int
    peak_flops_per_s: float
    peak_is: str

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation of a step that takes ``seconds``; 1 is the peak."""
        return self.model_flops / seconds / self.peak_flops_per_s

    def hfu(self, seconds: float) -> float:
        """Hardware FLOPs utilisation: what is computed again counts too."""
        return self.hardware_flops / seconds / self.peak_flops_per_s
