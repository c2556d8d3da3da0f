"""Arguments of the Triton kernels of gated_gelu and its gradient, and what both refuse."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.tensors import rows


def launch(kernel: Any, inputs: dict[str, Tensor], outputs: dict[str, Tensor], config: Any) -> Launch:
    """A kernel over tensors [B,T,D] by the names of its parameters, a program per ``block_t`` steps and block."""
    batch, time, _ = next(iter(inputs.values())).shape
    args = {name: rows(tensor) for name, tensor in (inputs | outputs).items()} | {"T": time}
    wide = {"ACC": host.wide(next(iter(inputs.values())).dtype)}
    programs = batch * -(-time // config.block_t)
    return host.channel_launch(kernel, programs, list(inputs.values()), config, args, wide)


def unfit(case: Case, device: Device, config: Any) -> str | None:
    """Why a kernel cannot run, or would only waste threads. Widths below a block are too small to matter."""
    if reason := host.not_here(device):
        return reason
    threads = config.num_warps * (device.warp_size or 32)
    if config.block_d < threads:
        return f"block_d={config.block_d} leaves threads without a channel: there are {threads}"
    return None
