"""A plugin with which vLLM serves RecurrentGemma: it finds ``register`` by its entry point. See docs/serving.md."""

from __future__ import annotations

ARCHITECTURE = "RecurrentGemmaForCausalLM"
"""What checkpoints have in ``architectures`` of their config.json."""

MODEL = "griffin_kernels.integrations.vllm_model:RecurrentGemmaForCausalLM"
"""Where vLLM finds the model's class, once it needs it."""


def register() -> None:
    """Make RecurrentGemma known to vLLM, by name: neither the model nor anything of CUDA is imported.

    vLLM calls it in each of its processes (entry point ``griffin_kernels`` of ``vllm.general_plugins``); calling it
    again changes nothing. Raises ImportError without vLLM.
    """
    try:
        from vllm import ModelRegistry
    except ImportError as error:
        raise ImportError(f"the plugin for vLLM needs vLLM, pip install vllm: {error}") from error
    ModelRegistry.register_model(ARCHITECTURE, MODEL)
