"""Whole models computed with google-deepmind/recurrentgemma 1.0.1 (PyTorch, float32); see tests/data."""

from __future__ import annotations

import ast

import numpy
import pytest
import torch
from torch.nn.functional import cross_entropy

from griffin_kernels import catalog, models
from tests import ROOT
from tests.everywhere import running, runs_somewhere

DATA = ROOT / "tests" / "data"

# Their numbers are float32: each of some ten roundings a layer, over 3 or 5 layers, moves the largest element by up to
# 2^-24 times a sum's root length, 8 to 14 here: 5 * 10 * 14 * 2^-24 = 4e-5 at worst, a tenth of it where signs differ.
LOGITS, GRADIENTS = 1e-5, 4e-5

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


@pytest.fixture(scope="module", params=["griffin_softcap", "hawk_plain"])
def golden(request):
    with numpy.load(DATA / f"{request.param}.npz") as file:
        settings = ast.literal_eval(str(file["config"]))
        return {"config": settings} | {name: torch.from_numpy(file[name]) for name in file if name != "config"}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def model(request, golden):
    config = models.config_from_deepmind(golden["config"])
    model = models.Griffin(config, dtype=request.param)
    model.load_state_dict(models.from_deepmind(named(golden, "param/"), config))
    return model


def named(golden, prefix):
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def error(got, want):
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


@pytest.mark.parametrize("layout", ["single", "packed"])
def test_logits(model, golden, layout):
    logits, _ = model(golden["tokens"], golden[f"segment_pos_{layout}"])
    assert error(logits, golden[f"logits_{layout}"]) < LOGITS


def test_positions_are_counted_when_none_are_given(model, golden):
    logits, _ = model(golden["tokens"])
    assert error(logits, golden["logits_single"]) < LOGITS


@torch.no_grad()
def test_prefill_then_decode(model, golden):
    tokens, first = golden["tokens"], int(golden["prefill_length"])
    logits, cache = model(tokens[:, :first])
    assert error(logits, golden["logits_prefill"]) < LOGITS
    decoded = []
    for step in range(first, tokens.shape[1]):
        logits, cache = model(tokens[:, step : step + 1], cache=cache)
        decoded.append(logits)
    assert error(torch.cat(decoded, dim=1), golden["logits_decode"]) < LOGITS


def test_loss_and_every_gradient(model, golden):
    tokens = golden["tokens"]
    logits, _ = model(tokens, golden["segment_pos_single"], return_cache=False)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert error(loss.detach(), golden["loss"]) < LOGITS
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    got, want = models.to_deepmind(gradients, model.config), named(golden, "grad/")
    assert got.keys() == want.keys()
    errors = {name: error(got[name], want[name]) for name in want}
    worst = max(errors, key=errors.get)
    assert errors[worst] < GRADIENTS, f"{worst}: {errors[worst]:.1e}"


def of_layers(*suffixes):
    names = [f"{op}{suffix}" for op in ("recurrent_block", "local_attention") for suffix in suffixes]
    found = [v for name in names for v in catalog.variants(name).values() if runs_somewhere(v, "float32")]
    return pytest.mark.parametrize("variant", found, ids=lambda v: v.key)


@pytest.fixture(scope="module")
def griffin():
    """Recurrent and attention blocks, documents and a softcap: the published numbers and a float32 model."""
    with numpy.load(DATA / "griffin_softcap.npz") as file:
        golden = {name: torch.from_numpy(file[name]) for name in file if name != "config"}
        config = models.config_from_deepmind(ast.literal_eval(str(file["config"])))
    model = models.Griffin(config, dtype=torch.float32)
    model.load_state_dict(models.from_deepmind(named(golden, "param/"), config))
    return model, golden


@of_layers("")
def test_logits_by_every_variant(griffin, variant):
    model, golden = griffin
    with running(variant), torch.no_grad():
        logits, _ = model(golden["tokens"], golden["segment_pos_packed"])
    assert error(logits, golden["logits_packed"]) < LOGITS


@of_layers("_step")
def test_decode_by_every_variant(griffin, variant):
    model, golden = griffin
    tokens, first = golden["tokens"], int(golden["prefill_length"])
    decoded, steps = [], 4
    with torch.no_grad():
        _, cache = model(tokens[:, :first])
        with running(variant):
            for step in range(first, first + steps):
                logits, cache = model(tokens[:, step : step + 1], cache=cache)
                decoded.append(logits)
    assert error(torch.cat(decoded, dim=1), golden["logits_decode"][:, :steps]) < LOGITS


@of_layers("_bwd")
def test_gradients_by_every_variant(griffin, variant):
    model, golden = griffin
    tokens = golden["tokens"]
    logits, _ = model(tokens, golden["segment_pos_single"], return_cache=False)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    with running(variant):
        found = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    got = models.to_deepmind(dict(zip(names, found, strict=True)), model.config)
    want = named(golden, "grad/")
    errors = {name: error(got[name], want[name]) for name in want}
    worst = max(errors, key=errors.get)
    assert errors[worst] < GRADIENTS, f"{worst}: {errors[worst]:.1e}"
