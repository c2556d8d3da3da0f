"""RecurrentGemma of Hugging Face transformers on these kernels, and right where it is not.

    from griffin_kernels.integrations.transformers import accelerate

    model = accelerate(AutoModelForCausalLM.from_pretrained("google/recurrentgemma-2b"))

See docs/transformers.md. Works with transformers 5.23 and 5.24.
"""

from __future__ import annotations

from griffin_kernels.integrations.transformers._hf_swap import accelerate, restore

__all__ = ["accelerate", "restore"]
