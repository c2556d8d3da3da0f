"""Train a small Hawk and a small Griffin on characters, to a stated loss, and let them write.

The text is made here: sums in words, `three and four are seven.` Two digits are free in each of them, so that no model
gets below the entropy of drawing them, some 0.18 nats a character; what comes after `are` follows from what was before.

    python examples/train_characters.py           a few minutes on a CPU: the sums are right
    python examples/train_characters.py --quick   seconds: it spells words
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator

import torch

from griffin_kernels import training
from griffin_kernels.models import Griffin, preset

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen"
).split()


def documents(seed: int) -> Iterator[list[int]]:
    """Endless documents of three sums each, as bytes."""
    draw = random.Random(seed)
    while True:
        pairs = [(draw.randrange(10), draw.randrange(10)) for _ in range(3)]
        text = " ".join(f"{WORDS[a]} and {WORDS[b]} are {WORDS[a + b]}." for a, b in pairs)
        yield list(text.encode())


def right(text: str) -> float:
    """The share of sums in a text that are right; what is cut off at its end does not count."""
    sums = [sentence.split() for sentence in text.split(".")[:-1]]
    good = [
        len(words) == 5 and words[0] in WORDS and words[2] in WORDS
        and words[4:] == WORDS[WORDS.index(words[0]) + WORDS.index(words[2]) :][:1]
        for words in sums
    ]  # fmt: skip
    return sum(good) / max(len(good), 1)


def train(name: str, steps: int, peak: float = 1e-2) -> tuple[Griffin, float]:
    """A trained model, and its mean loss over the last tenth of the steps, nats a character."""
    torch.manual_seed(0)
    model = Griffin(preset(name)).train()
    groups = training.parameter_groups(model, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    losses, began = [], time.perf_counter()
    for step, batch in zip(range(steps), training.pack(documents(seed=1), length=128, batch=8), strict=False):
        optimizer.zero_grad()
        loss = model.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % (steps // 5) == 0:
            print(f"{name}: step {step:5}, loss {losses[-1]:.3f}")
    seconds = (time.perf_counter() - began) / steps
    flops = training.flops_per_step(model, 8, 128)
    print(f"{name}: {1e3 * seconds:.0f} ms a step, {flops / seconds / 1e9:.1f} GFLOP/s")
    last = losses[-(steps // 10) :]
    return model.eval(), sum(last) / len(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds in place of minutes, and a higher loss")
    quick = parser.parse_args().quick
    steps, wanted = (40, 0.6) if quick else (1000, 0.22)
    for name in ("hawk-tiny", "griffin-tiny"):
        model, loss = train(name, steps)
        prompt = torch.tensor([list(b"two and five are ")])
        written = model.generate(prompt, 150, temperature=0.5, generator=torch.Generator().manual_seed(0))
        text = bytes(written[0].tolist()).decode(errors="replace")
        print(f"{name}: loss {loss:.3f} nats a character; {right(text):.0%} of these sums are right:\n    {text}\n")
        assert loss < wanted, f"{name}: a loss of {loss:.3f} after {steps} steps, expected less than {wanted}"


if __name__ == "__main__":
    main()
