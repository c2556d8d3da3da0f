"""Whole models on the CPU: transformers' RecurrentGemma before and after `accelerate`, and decoding by weight dtype."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from griffin_kernels import device
from griffin_kernels.models import Griffin, preset
from griffin_kernels.nn import int8_linears_
from roofline import model_bench
from roofline.console import output
from roofline.model_bench_cli import show as show_bench
from roofline.model_bench_records import ModelBench, PhaseRecord
from tests.benchmarks._compare import race, show

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

SECONDS = 25.0
"""Of each phase."""


def raced(dtype: torch.dtype, prompt: int, **sizes: int) -> dict[str, PhaseRecord]:
    """A preset's width or another, three layers, each phase in turn with and without ``accelerate``."""
    found: ModelBench = model_bench.bench(
        model_bench.Settings(
            name="recurrentgemma-2b", config=model_bench.configuration("recurrentgemma-2b", 3, 8192, **sizes),
            dtype=dtype, batch=1, prompt=prompt, new_tokens=64, phases=("prefill", "generate", "train"), memory=False,
        ),
        device.cpu(), SECONDS, "make benchmark", lambda text: None,
    )  # fmt: skip
    show_bench(output(), found)
    return {phase.phase: phase for phase in found.phases}


@pytest.mark.parametrize(("dtype", "between"), [(torch.float32, 8.0), (torch.bfloat16, 10.0)], ids=["fp32", "bf16"])
def test_accelerated_recurrentgemma_at_2b_width(dtype: torch.dtype, between: float) -> None:
    """Between the linear layers of recurrent blocks many times as fast; whole phases never slower."""
    phases = raced(dtype, 2048)
    recurrence = phases["prefill"].part_ratio("recurrence")
    assert recurrence is not None and recurrence >= between
    assert all(phase.interval[1] >= 1 for phase in phases.values())


def test_accelerated_recurrentgemma_of_width_256() -> None:
    """Where overhead decides, prefill and generate take half the time or less."""
    phases = raced(torch.float32, 512, hidden_size=256, lru_width=256, intermediate_size=1536, num_attention_heads=2)
    assert phases["prefill"].interval[1] >= 2 and phases["generate"].interval[1] >= 2


def test_decoding_reads_weights() -> None:
    """One token at B = 1 takes as long as reading the weights: half in bfloat16, a quarter in int8."""
    config = dataclasses.replace(preset("recurrentgemma-2b"), vocab_size=1024, block_types=("recurrent",) * 3)
    models = {"float32": Griffin(config).eval()}
    models["bfloat16"] = copy.deepcopy(models["float32"]).bfloat16()
    models["torchao int8"] = copy.deepcopy(models["bfloat16"])
    quantize_(models["torchao int8"], Int8WeightOnlyConfig())
    models["torchao int8, int8_linears_"] = int8_linears_(copy.deepcopy(models["torchao int8"]))
    token = torch.ones(1, 1, dtype=torch.int64)
    with torch.inference_mode():
        caches = {name: model(torch.ones(1, 8, dtype=torch.int64))[1] for name, model in models.items()}
        calls = {
            name: lambda model=model, name=name: model(token, cache=caches[name]) for name, model in models.items()
        }
        rows = race(calls, rounds=41)
    show("decode of one token, 3 recurrent layers of 2B width", rows)
    assert rows["bfloat16"].low <= 1 / 1.8
    assert rows["torchao int8, int8_linears_"].low <= 1 / 3
