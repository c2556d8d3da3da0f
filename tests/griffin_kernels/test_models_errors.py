"""What the models say about arguments that they cannot take."""

from __future__ import annotations

import pytest
import torch

from griffin_kernels import errors
from griffin_kernels.models import Griffin, preset

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tokens": torch.tensor([[1, 256]])}, errors.ArgumentError, "tokens: id 256, expected 0 to 255"),
        ({"tokens": torch.tensor([[-1, 2]])}, errors.ArgumentError, "tokens: id -1"),
        ({"tokens": torch.tensor([1, 2])}, errors.ShapeError, r"tokens: shape \[2\], expected \[B, T\]"),
        ({"tokens": torch.tensor([[1.0]])}, errors.DtypeError, "tokens: dtype torch.float32, expected int64 or int32"),
        ({"tokens": [[1, 2]]}, errors.ArgumentError, "tokens is a list, expected a tensor"),
        ({"tokens": torch.ones(1, 2, dtype=torch.int64, device="meta")}, errors.DeviceMismatchError, "tokens: on meta"),
        ({"segment_pos": torch.zeros(1, 3, dtype=torch.int64)}, errors.ShapeError, r"segment_pos: shape \[1, 3\]"),
        ({"segment_pos": torch.zeros(1, 2)}, errors.DtypeError, "segment_pos: dtype torch.float32"),
        ({"segment_pos": torch.tensor([[0, 2]])}, errors.ArgumentError, "must be 0 or one more"),
        ({"segment_pos": torch.tensor([[-1, 0]])}, errors.ArgumentError, "must be 0 or one more"),
        ({"segment_pos": torch.tensor([[3, 4]])}, errors.ArgumentError, r"begin at \[3\], but there is no cache"),
        ({"cache": "mine"}, errors.ArgumentError, "cache is a str"),
    ],
)
def test_arguments_at_fault_are_named(change, error, words):
    model = Griffin(preset("griffin-tiny"))
    with pytest.raises(error, match=words):
        model(**({"tokens": torch.tensor([[1, 2]])} | change))


@torch.no_grad()
def test_a_cache_that_does_not_fit_is_refused():
    model, tokens = Griffin(preset("griffin-tiny")), torch.tensor([[1, 2]])
    _, cache = model(tokens)
    with pytest.raises(errors.ShapeError, match="cache: made for 1 rows, but tokens have 2"):
        model(tokens.repeat(2, 1), cache=cache)
    with pytest.raises(errors.ArgumentError, match="another configuration"):
        Griffin(preset("hawk-tiny"))(tokens, cache=cache)
    with pytest.raises(errors.DtypeError, match=r"cache: of torch.float32, but the parameters are torch.bfloat16"):
        Griffin(preset("griffin-tiny"), dtype=torch.bfloat16)(tokens, cache=cache)
    with pytest.raises(errors.DeviceMismatchError, match="cache: on meta, but tokens are on cpu"):
        model(tokens, cache=Griffin(model.config, device="meta").init_cache(1))
    with pytest.raises(errors.ArgumentError, match=r"rows begin at \[5\], expected 0 or where the cache ends, \[2\]"):
        model(tokens, torch.tensor([[5, 6]]), cache)
    assert cache.tokens == 2


def test_a_row_may_begin_in_a_document_for_its_logits_alone():
    model = Griffin(preset("griffin-tiny"))
    logits, _ = model(torch.tensor([[1, 2]]), torch.tensor([[3, 4]]), return_cache=False)
    assert logits.shape == (1, 2, 256)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 1, "temperature": -0.5}, "temperature is -0.5"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature is nan"),
        ({"max_new_tokens": 1, "tokens": torch.zeros(1, 0, dtype=torch.int64)}, "a prompt of 0 tokens"),
    ],
)
def test_generate_names_options_at_fault(options, words):
    with pytest.raises(errors.ArgumentError, match=words):
        Griffin(preset("hawk-tiny")).generate(**({"tokens": torch.tensor([[1]])} | options))
