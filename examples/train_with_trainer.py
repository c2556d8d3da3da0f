"""transformers' Trainer on an accelerated RecurrentGemma: packed documents, weight decay by what a parameter is.

Rows hold several documents; `position_ids` begin anew with each, and the accelerated model keeps them apart in its
recurrence and convolution too. The text is made here: a letter, and then the letters after it.

    python examples/train_with_trainer.py
"""

from __future__ import annotations

import argparse
import random
import tempfile
from typing import Any

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM, Trainer, TrainingArguments

from griffin_kernels import training
from griffin_kernels.integrations.transformers import accelerate

LETTERS = 26


def documents(count: int, seed: int) -> list[list[int]]:
    """Of 4 to 20 letters each, as numbers from 1 on: the first is drawn, the others follow in the alphabet."""
    draw = random.Random(seed)
    starts = [(draw.randrange(LETTERS), draw.randint(4, 20)) for _ in range(count)]
    return [[1 + (first + step) % LETTERS for step in range(length)] for first, length in starts]


def rows(count: int, length: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Packed rows as the model takes them: transformers shifts labels itself, so a document's first has none."""
    found = []
    for batch in training.pack(documents(count, seed), length=length, batch=1, split=False, drop_last=True):
        tokens, _, positions = (tensor[0] for tensor in batch)
        labels = torch.where((positions == 0) | (tokens == 0), -100, tokens)
        found.append({"input_ids": tokens, "position_ids": positions, "labels": labels})
    return found


class Decaying(Trainer):
    """Trainer goes by names, and would decay `recurrent_param`; these groups go by what a parameter is."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = training.parameter_groups(self.model, weight_decay=self.args.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate)
        return self.optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="40 steps")
    options = parser.parse_args()
    steps, most = (40, 1.5) if options.quick else (options.steps, 0.3)

    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        vocab_size=LETTERS + 1, hidden_size=64, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, attention_window_size=32, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = RecurrentGemmaForCausalLM(config)
    training.initialise(model)  # the paper's, where transformers' own gates begin with a hundredth of the variance
    accelerate(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-2, weight_decay=0.1, use_cpu=True,
            warmup_steps=5, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", seed=0,
        )  # fmt: skip
        trainer = Decaying(model, arguments, train_dataset=rows(400, 64, seed=1), eval_dataset=rows(40, 64, seed=2))
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    print(f"loss on other documents: {before:.2f} nats a letter at first, {after:.3f} after {steps} steps")
    if after > most:
        raise SystemExit(f"expected at most {most}")


if __name__ == "__main__":
    main()
