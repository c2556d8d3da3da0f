"""Models that tests of checkpoints write and read."""

from __future__ import annotations

import torch

from griffin_kernels.models import Griffin, GriffinConfig

R, A = "recurrent", "local_attention"
# a RecurrentGemma with heads of their own size: 3 x 8 of a width of 40
CONFIG = GriffinConfig(
    vocab_size=97,
    width=40,
    mlp_width=56,
    block_types=(R, R, A, R),
    num_heads=3,
    head_dim=8,
    lru_width=48,
    gate_blocks=3,
    window=8,
    rope_base=500.0,
    scale_embeddings=True,
    logits_softcap=11.0,
)
SHARDS = {"single": "50GB", "sharded": "30KB"}


def model_of(config=CONFIG, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = Griffin(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):  # drawn as zeros
                parameter.normal_(0.0, 0.2)
    return model


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def assert_equal(got, want):
    assert got.config == want.config
    got, want = got.state_dict(), want.state_dict()
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name
