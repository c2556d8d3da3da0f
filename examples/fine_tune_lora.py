"""LoRA on an accelerated RecurrentGemma with peft: adapters on linear layers, frozen kernels' weights between them.

The task is made up: the text after a number is the number again. Losses of the plain model are the same, to rounding.

    python examples/fine_tune_lora.py
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from griffin_kernels.integrations.transformers import accelerate

TARGETS = ["linear_x", "linear_y", "linear_out", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
"""peft knows no default for RecurrentGemma. The recurrence's own weights are no linear layers and stay as they are."""


def batch(rows: int, digits: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens [rows, 2 digits + 1]: digits, a mark, the digits again; labels count the second half only."""
    number = torch.randint(1, 11, (rows, digits), generator=generator)
    tokens = torch.cat([number, torch.full((rows, 1), 11), number], dim=1)
    labels = tokens.clone()
    labels[:, : digits + 1] = -100
    return tokens, labels


def train(model: torch.nn.Module, steps: int, rows: int) -> tuple[list[float], float]:
    """Losses of each step, and seconds."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    generator, losses = torch.Generator().manual_seed(1), []
    model.train()
    begin = time.perf_counter()
    for _ in range(steps):
        tokens, labels = batch(rows, 8, generator)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--quick", action="store_true", help="20 steps")
    options = parser.parse_args()
    steps = 20 if options.quick else options.steps

    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        vocab_size=12, hidden_size=64, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, attention_window_size=32, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    base = RecurrentGemmaForCausalLM(config)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    plain = get_peft_model(copy.deepcopy(base), lora)
    ours = get_peft_model(base, lora)
    ours.load_state_dict(plain.state_dict())  # adapters are drawn at random
    accelerate(ours)
    ours.print_trainable_parameters()

    expected, before = train(plain, min(steps, 20), rows=16)
    losses, after = train(ours, steps, rows=16)
    furthest = max(abs(a - b) / b for a, b in zip(losses, expected, strict=False))
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} steps")
    print(f"{len(expected)} steps of the plain model: losses differ by {furthest:.1e} at most, relatively")
    print(f"a step: {1e3 * before / len(expected):.0f} ms plain, {1e3 * after / steps:.0f} ms accelerated")
    if furthest > 1e-3 or losses[-1] >= losses[0]:
        raise SystemExit("fine-tuning went another way than the plain model's")


if __name__ == "__main__":
    main()
