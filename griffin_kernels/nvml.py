"""Questions to NVML about one GPU, one by one: what a driver refuses is one answer missing, and no more than that.

A virtual machine may hide the power limit, and a MIG slice its clocks, while everything else is told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

Handle = Callable[[], Any]
"""Gives NVML's handle of the GPU; raises NVMLError where NVML does not know it."""

Question = Callable[[Handle], Any]


def ask(index: int, questions: Mapping[str, Question]) -> tuple[dict[str, Any], dict[str, str]]:
    """(answers, refusals in NVML's words), by name; every question is in one of them. index: as torch counts."""
    import pynvml

    @functools.cache
    def handle() -> Any:
        # NVML counts physical GPUs, torch counts visible ones: match them by UUID
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")

    answers: dict[str, Any] = {}
    refusals: dict[str, str] = {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {}, dict.fromkeys(questions, str(error))
    for name, question in questions.items():
        try:
            answers[name] = question(handle)
        except pynvml.NVMLError as error:
            refusals[name] = str(error)
    return answers, refusals
