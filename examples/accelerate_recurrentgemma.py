"""One line makes transformers' RecurrentGemma fast and right: the same tokens, the time of each, and the way back.

python examples/accelerate_recurrentgemma.py
python examples/accelerate_recurrentgemma.py --checkpoint google/recurrentgemma-2b-it
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from griffin_kernels.integrations.transformers import accelerate, restore


def timed(model: RecurrentGemmaForCausalLM, tokens: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """The greedy continuation of ``count`` tokens, and its seconds; the first call loads kernels and is not timed."""
    model.generate(tokens, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    begin = time.perf_counter()
    text = model.generate(tokens, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return text, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a model of the Hub or a folder; random weights by default")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="fewer tokens")
    options = parser.parse_args()
    count = 24 if options.quick else options.tokens

    torch.manual_seed(0)
    if options.checkpoint:
        model = AutoModelForCausalLM.from_pretrained(options.checkpoint)
    else:
        config = RecurrentGemmaConfig(
            vocab_size=512, hidden_size=256, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=1, attention_window_size=64, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        model = RecurrentGemmaForCausalLM(config)
    model.eval()
    tokens = torch.randint(1, min(model.config.vocab_size, 512), (1, 200))

    plain, before = timed(model, tokens, count)
    accelerate(model)  # the one line
    fast, after = timed(model, tokens, count)
    print(f"{count} tokens after {tokens.shape[1]}: {before:.2f} s by transformers, {after:.2f} s accelerated")
    print(f"speedup {before / after:.1f}x, the same tokens: {torch.equal(plain, fast)}")
    if not torch.equal(plain, fast):
        raise SystemExit("the texts differ")

    # left padding, which plain RecurrentGemma reads as text
    short = tokens[:, -5:]
    mask = torch.cat([torch.zeros_like(tokens[:, :-5]), torch.ones_like(short)], dim=1)
    padded = torch.where(mask.bool(), tokens, 0)
    for name in ("accelerated", "plain"):
        with torch.inference_mode():
            alone = model(short).logits[:, -1]
            beside = model(padded, attention_mask=mask).logits[:, -1]
        print(f"{name}: padding on the left moves logits by {float((alone - beside).abs().max()):.1e}")
        restore(model)
    print(f"restored: {type(model.model.layers[0].temporal_block).__module__}")


if __name__ == "__main__":
    main()
