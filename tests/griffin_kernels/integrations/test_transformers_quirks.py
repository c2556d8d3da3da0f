"""What transformers' RecurrentGemma has wrong is right after ``accelerate``, and as it was after ``restore``."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from griffin_kernels.integrations.transformers import accelerate, restore
from griffin_kernels.integrations.transformers._hf_cache import CACHE
from tests.griffin_kernels.integrations.recurrent_gemmas import (
    CONFIGS,
    FLOAT32,
    alone,
    document,
    dynamic,
    error,
    in_pieces,
    made,
    told,
)

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

LONG, SHORT = document(25), document(14, seed=1)
PADS = 11
"""The shorter document, padded on the left beside the longer one."""


def padded():
    tokens, mask = torch.zeros(2, 25, dtype=torch.int64), torch.ones(2, 25, dtype=torch.int64)
    tokens[0], tokens[1, PADS:], mask[1, :PADS] = LONG, SHORT, 0
    return tokens, mask


def two_caches_in_turn(model):
    caches = dynamic(model), dynamic(model)
    texts = LONG, document(25, seed=2)
    logits = [[], []]
    for at in range(0, 25, 5):
        for row in range(2):
            positions = torch.arange(at, at + 5)[None]
            # a call of several tokens is a fault of its own
            for step in range(at, at + 5) if at else [None]:
                piece = slice(at, at + 5) if step is None else slice(step, step + 1)
                where = positions if step is None else torch.tensor([[step]])
                logits[row].append(told(model, texts[row][:, piece], caches[row], position_ids=where))
    return [(text, torch.cat(parts, 1)) for text, parts in zip(texts, logits, strict=True)]


def one_token_prompt_after_another_text(model):
    in_pieces(model, document(9, seed=3), [7, 1, 1], dynamic(model))
    return [(SHORT, in_pieces(model, SHORT, [1] * 14, dynamic(model)))]


def rows_change_places(model):
    cache = dynamic(model)
    texts = torch.cat([LONG, document(25, seed=2)])
    first = told(model, texts[:, :12], cache, position_ids=torch.arange(12).expand(2, -1))
    cache.reorder_cache(torch.tensor([1, 0]))
    turned = texts.flip(0)
    later = [told(model, turned[:, t : t + 1], cache, position_ids=torch.full((2, 1), t)) for t in range(12, 25)]
    logits = torch.cat([first, torch.cat(later, 1).flip(0)], 1)
    return [(text[None], row[None]) for text, row in zip(texts, logits, strict=True)]


def several_tokens_go_on(model):
    return [(LONG, in_pieces(model, LONG, [9, 7, 2, 6, 1], dynamic(model)))]


def padding_with_positions(model):
    tokens, mask = padded()
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # as generate has them
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return [(LONG, logits[:1]), (SHORT, logits[1:, PADS:])]


def padding_alone(model):
    tokens, mask = padded()
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask, use_cache=False).logits  # as a trainer has it
    return [(LONG, logits[:1]), (SHORT, logits[1:, PADS:])]


def packed(model, **documents):
    with torch.no_grad():
        logits = model(torch.cat([SHORT, LONG], 1), use_cache=False, **documents).logits
    return [(SHORT, logits[:, :14]), (LONG, logits[:, 14:])]


def packed_by_positions(model):
    return packed(model, position_ids=torch.cat([torch.arange(14), torch.arange(25)])[None])


def packed_by_offsets(model):
    return packed(model, cu_seq_lens_q=torch.tensor([0, 14, 39], dtype=torch.int32))


def packed_by_numbers(model):
    return packed(model, seq_idx=torch.tensor([[0] * 14 + [1] * 25], dtype=torch.int32))


def one_token_prompt(model):
    return [(SHORT, in_pieces(model, SHORT, [1] * 14, dynamic(model)))]


def with_a_cache(model):
    return [(SHORT, in_pieces(model, SHORT, [9] + [1] * 5, dynamic(model)))]


ROWS = {
    1: [two_caches_in_turn],
    2: [one_token_prompt_after_another_text],
    3: [rows_change_places],
    4: [several_tokens_go_on],
    6: [padding_with_positions],
    7: [padding_alone],
    8: [packed_by_positions, packed_by_offsets, packed_by_numbers],
    10: [one_token_prompt],
    11: [with_a_cache],
}
"""Each shows a quirk, by its row in docs/transformers.md: documents [1, T], and logits [1, T, V] of them."""

ONLY = {10: ["wide"], 11: ["hawk"]}
"""Configurations that a row is about; all, if not here."""

CASES = [
    pytest.param(run, name, id=f"row{row}-{run.__name__}-{name}")
    for row, runs in ROWS.items()
    for run in runs
    for name in ONLY.get(row, CONFIGS)
]


def worst(shown, model):
    return max(error(logits, alone(model, text)) for text, logits in shown)


@pytest.mark.parametrize("run, name", CASES)
def test_a_quirk_is_gone_and_comes_back(run, name):
    model = made(name)
    states = {key: value.clone() for key, value in model.state_dict().items()}

    def fault():
        try:
            return run(model)
        except (ValueError, RuntimeError) as raised:  # some quirks are errors
            return str(raised)

    before = fault()
    assert isinstance(before, str) or worst(before, model) > 100 * FLOAT32
    try:
        accelerate(model)
        shown = run(model)
    finally:
        restore(model)
    assert worst(shown, model) <= FLOAT32
    after = fault()
    if isinstance(before, str):
        assert after == before
    else:
        for (_, old), (_, new) in zip(before, after, strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=0)
    assert list(model.state_dict()) == list(states)


@pytest.mark.parametrize("run, name", CASES)
def test_in_bfloat16_errors_are_those_of_a_document_alone(run, name):
    """Twice those that the plain model makes in bfloat16 where it is right, in the same documents, and a rounding."""
    model, exact = made(name, torch.bfloat16), copy.deepcopy(made(name)).to(torch.bfloat16).float()
    try:
        shown = run(accelerate(model))
    finally:
        restore(model)
    for text, logits in shown:
        want = alone(exact, text)
        assert error(logits, want) <= 2 * error(alone(model, text), want) + 2**-8


@pytest.mark.parametrize("name", CONFIGS)
def test_row5_the_output_has_its_cache(name):
    model = made(name)
    text = LONG
    with torch.no_grad():
        if name != "hawk":  # which cannot even make one
            assert not hasattr(model(text[:, :9], use_cache=True), CACHE)
        try:
            accelerate(model)
            outputs = model(text[:, :9])
            assert "keys" not in outputs and type(outputs).__name__ == "CausalLMOutput"
            assert list(outputs) == ["logits"]
            logits = [outputs.logits, told(model, text[:, 9:], getattr(outputs, CACHE))]
            base = model.model(text[:, :9])
            assert int(getattr(base, CACHE).get_seq_length()) == 9
            assert not hasattr(model(text, use_cache=False), CACHE)
            assert len(model(text, return_dict=False)) == 1
        finally:
            restore(model)
        if name != "hawk":
            assert not hasattr(model(text[:, :9], use_cache=True), CACHE)
    assert error(torch.cat(logits, 1), alone(model, text)) <= FLOAT32


@pytest.mark.parametrize("name", CONFIGS)
def test_row9_a_model_can_be_copied_after_training(name):
    model = made(name)
    model.train()
    try:
        for accelerated in (False, True, False):
            (accelerate if accelerated else restore)(model)
            model(LONG, labels=LONG, use_cache=False).loss.backward()
            kept = [module.recurrent_states for module in model.modules() if hasattr(module, "recurrent_states")]
            if accelerated:
                assert kept and all(state is None for state in kept)
                other = copy.deepcopy(model)
                assert error(alone(other.eval(), LONG), alone(restore(model).eval(), LONG)) <= FLOAT32
            else:
                # memory of the whole graph
                assert kept and all(state.grad_fn is not None for state in kept)
                with pytest.raises(RuntimeError, match="deepcopy"):
                    copy.deepcopy(model)
    finally:
        with contextlib.suppress(AttributeError):
            restore(model)
        model.eval().zero_grad(set_to_none=True)
        for module in model.modules():
            if hasattr(module, "recurrent_states"):
                module.recurrent_states = None
