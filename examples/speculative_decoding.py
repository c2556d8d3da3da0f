"""Speculative decoding: a model that writes several tokens a call, and says exactly what it would say without.

Trains a Griffin and a smaller Hawk on the characters of a text that is made here, then has the Griffin write with
drafts from its own text (prompt lookup) and from the Hawk (an assistant).

    python examples/speculative_decoding.py
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy

from griffin_kernels import models

NAMES = ("Ada", "Bela", "Chen", "Dora", "Emil", "Fatu")
THINGS = ("apples", "bread", "a candle", "dates", "eggs", "figs")


def text(sentences: int, seed: int) -> str:
    """Sentences about a few people, in which little comes as a surprise."""
    draw = random.Random(seed)
    lines = []
    for _ in range(sentences):
        name, other = draw.sample(NAMES, 2)
        thing = draw.choice(THINGS)
        lines.append(f"{name} buys {thing} and gives {thing} to {other}. {other} thanks {name}.")
    return " ".join(lines)


CHARACTERS = sorted(set(text(500, seed=0)))


def encode(string: str) -> torch.Tensor:
    return torch.tensor([[CHARACTERS.index(character) for character in string]])


def decode(tokens: torch.Tensor) -> str:
    return "".join(CHARACTERS[token] for token in tokens.tolist())


def train(config: models.GriffinConfig, steps: int) -> models.Griffin:
    """A model of the text's characters, with its last loss printed, in bits a character."""
    torch.manual_seed(0)
    model = models.Griffin(config)
    tokens = encode(text(500, seed=0))[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 65, (16, 1))
        batch = tokens[starts + torch.arange(65)]
        logits, _ = model(batch[:, :-1], return_cache=False)
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{config.family}: {size:,} parameters, {loss.item() / 0.6931:.2f} bits a character")
    return model.eval()


def main() -> None:
    base = replace(models.preset("griffin-tiny"), vocab_size=len(CHARACTERS), window=32)
    model = train(replace(base, width=64, lru_width=96, mlp_width=128), steps=80)
    assistant = train(replace(base, block_types=("recurrent",), width=32, lru_width=48, mlp_width=64), steps=80)

    # two prompts of different lengths, padded on the left
    prompts = ["Chen buys figs and", "Ada buys bread and gives bread to Emil. Emil"]
    width = max(map(len, prompts))
    tokens = torch.cat([encode(prompt.rjust(width)) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    plain = model.generate(tokens, 120, attention_mask=mask)
    print(f"\n{decode(plain[1])}\n")
    for name, drafts in (
        ("no drafts", {}),
        ("prompt lookup", {"prompt_lookup": 4, "draft_tokens": 6}),
        ("assistant", {"assistant": assistant, "draft_tokens": 6}),
    ):
        models.generate(model, tokens, 20, attention_mask=mask, **drafts)  # kernels are compiled at their first call
        start = time.perf_counter()
        made = models.generate(model, tokens, 120, attention_mask=mask, **drafts)
        seconds = time.perf_counter() - start
        assert torch.equal(made.tokens, plain), "drafts change no token"
        seen = made.acceptance
        rate = "" if seen is None or seen.rate is None else f", {seen.rate:.0%} of the drafts accepted"
        calls = 120 if seen is None else seen.calls
        print(f"{name:>13}: {calls} calls of the model, {seconds:.2f} s{rate}")

    # drawn tokens: another text, but as likely as without drafts
    generator = torch.Generator().manual_seed(1)
    drawn = models.generate(
        model, tokens, 80, attention_mask=mask, temperature=0.8, top_p=0.95, generator=generator, assistant=assistant
    )
    print(f"\n{decode(drawn.tokens[1])}")


if __name__ == "__main__":
    main()
