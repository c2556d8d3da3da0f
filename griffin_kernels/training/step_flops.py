"""Operations of a training step, and how much of a device's peak they use."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from griffin_kernels import datasheet, errors
from griffin_kernels.contract import dtype_name
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.griffin import Griffin


def flops_per_step(model: Griffin | GriffinConfig, batch: int, time: int) -> int:
    """Floating-point operations of one forward and backward pass over tokens [batch, time], logits included.

    Three times those of the forward pass, as is usual (arXiv 2204.02311, appendix B): what is computed again in the
    backward pass is not counted, so that checkpointing does not look like speed. The forward pass is counted by
    ``torch.utils.flop_counter`` on meta tensors; a multiply-add is two. Attention counts the keys in its window, as if
    each row were one document.

    For another network, count ``FlopCounterMode`` over a forward pass: it knows the operators of this package.
    Raises ArgumentError for sizes below 1.
    """
    for name, size in (("batch", batch), ("time", time)):
        if size < 1:
            raise errors.ArgumentError(f"{name} is {size}, expected at least 1")
    config = model if isinstance(model, GriffinConfig) else model.config
    counted = Griffin(config, device="meta", dtype=torch.float32)
    tokens = torch.zeros(batch, time, dtype=torch.int64, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        counted(tokens, return_cache=False)
    return 3 * int(counter.get_total_flops())


def mfu(
    flops: float,
    seconds: float,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    peak_flops_per_s: float | None = None,
    devices: int = 1,
) -> float:
    """Model FLOPs utilisation: ``flops / seconds`` as a share of what ``devices`` devices can do; 1 is their peak.

    flops: of one step, all devices together, by ``flops_per_step``. seconds: the time it took.
    device: the GPU, the current one if None; its datasheet has the dense peak of products in ``dtype``.
    peak_flops_per_s: that of one device, where there is no datasheet, as of CPUs.

    Raises ArgumentError for numbers that are not above 0, and DeviceError where no peak is known and none is given.
    """
    for name, value in (("flops", flops), ("seconds", seconds), ("devices", devices)):
        if not 0 < value < float("inf"):
            raise errors.ArgumentError(f"{name} is {value}, expected a finite number above 0")
    peak = _peak(device, dtype) if peak_flops_per_s is None else peak_flops_per_s
    if not 0 < peak < float("inf"):
        raise errors.ArgumentError(f"peak_flops_per_s is {peak}, expected a finite number above 0")
    return flops / seconds / (peak * devices)


def _peak(device: torch.device | str | None, dtype: torch.dtype) -> float:
    """Of one GPU, from its datasheet."""
    where = torch.device("cuda" if device is None else device)
    give = "pass peak_flops_per_s"
    if where.type != "cuda" or not torch.cuda.is_available():
        raise errors.DeviceError(f"no peak is known of {where} on this machine: {give}")
    name = torch.cuda.get_device_name(where)
    sheet = datasheet.find(name)
    peak = None if sheet is None else sheet.tensor_flops_per_s(dtype_name(dtype))
    if peak is None:
        raise errors.DeviceError(f"no peak of {dtype_name(dtype)} is known of {name}: {give}")
    return peak
