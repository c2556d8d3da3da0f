"""select, explain and use: which kernel runs, and why."""

from __future__ import annotations

import threading

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, errors
from griffin_kernels.ops.linear_scan.cost import make_case

pytestmark = pytest.mark.unit

CASE = make_case(1, 64, 32)
X = torch.randn(1, 8, 4)


@pytest.fixture(autouse=True)
def untuned(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    dispatch.refresh()
    yield
    dispatch.refresh()


@pytest.mark.process
def test_untuned_case_runs_the_default_and_warns_once():
    with pytest.warns(errors.UntunedWarning, match="griffin tune") as seen:
        griffin_kernels.linear_scan(X, X)
        griffin_kernels.linear_scan(X[:, :3], X[:, :3])
    assert len(seen) == 1
    assert griffin_kernels.select("linear_scan", CASE, device.cpu()).origin == "default"


def test_explain_names_choice_alternatives_and_refusals():
    text = str(griffin_kernels.explain("linear_scan", {"x": X, "a": X}))
    assert "runs " in text
    assert "eager.sequential" in text
    assert "rejected triton.sequential:" in text


def test_use_overrides_for_one_op_and_is_undone():
    with griffin_kernels.use(variant="linear_scan/eager.chunked", config={"chunk": 16}):
        choice = griffin_kernels.select("linear_scan", CASE)
        assert (choice.variant.name, choice.config.chunk, choice.origin) == ("eager.chunked", 16, "use")
        assert griffin_kernels.select("linear_scan_bwd", make_case(1, 64, 32, op="linear_scan_bwd")).origin == "default"
    assert griffin_kernels.select("linear_scan", CASE).origin == "default"


def test_use_by_bare_name_covers_every_op_that_has_it_and_nests():
    backward = make_case(1, 64, 32, op="linear_scan_bwd")
    with griffin_kernels.use(variant="eager.associative"):
        assert griffin_kernels.select("linear_scan_bwd", backward).variant.name == "eager.associative"
        with griffin_kernels.use(variant="linear_scan_bwd/eager.loop"):
            assert griffin_kernels.select("linear_scan_bwd", backward).variant.name == "eager.loop"
            assert griffin_kernels.select("linear_scan", CASE).variant.name == "eager.associative"


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_use_takes_effect_on_signatures_seen_before(monkeypatch):
    griffin_kernels.linear_scan(X, X)
    ran = []
    variant = catalog.variant("linear_scan/eager.loop")
    with griffin_kernels.use(variant="linear_scan/eager.loop"):
        chosen = dispatch._choose(catalog.op("linear_scan"), CASE, device.cpu())
        assert chosen.variant is variant
        given = {"x": X, "a": X, "h0": None, "reset": None, "cu_seqlens": None, "reverse": False}
        want = variant.on(given, variant.config())
        ran.append(torch.equal(griffin_kernels.linear_scan(X, X)[0], want[0]))
    assert ran == [True]


def test_use_holds_on_other_threads_as_autograd_needs():
    names = []
    with griffin_kernels.use(variant="linear_scan/eager.loop"):
        thread = threading.Thread(target=lambda: names.append(griffin_kernels.select("linear_scan", CASE).variant.name))
        thread.start()
        thread.join()
    assert names == ["eager.loop"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": "linear_scan/eager.none"}, errors.UnknownVariantError, "linear_scan has"),
        ({"variant": "eager.none"}, errors.UnknownVariantError, "no op has a variant"),
        ({"variant": "linear_scan/eager.chunked", "config": {"chonk": 1}}, errors.ConfigError, "no config field"),
        ({"variant": "linear_scan/eager.chunked", "config": {"chunk": "16"}}, errors.ConfigError, "expected int"),
        ({"config": {"chunk": 1}}, errors.ArgumentError, "needs a variant"),
        ({"registry": "/nowhere/registry.json"}, errors.RegistryError, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_override_is_named_at_once(options, error, message):
    with pytest.raises(error, match=message), griffin_kernels.use(**options):
        raise AssertionError("the block must not be entered")


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs here")
def test_variant_that_cannot_run_here_says_why():
    with (
        griffin_kernels.use(variant="linear_scan/triton.sequential"),
        pytest.raises(errors.RejectedError, match="need an NVIDIA or AMD GPU"),
    ):
        griffin_kernels.linear_scan(X, X)


def test_unknown_argument_of_explain_is_named():
    with pytest.raises(errors.ArgumentError, match=r"no argument \['y'\]; it has \['x', 'a'"):
        griffin_kernels.explain("linear_scan", {"y": X})


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (CASE, "belongs to linear_scan, not to rg_lru"),
        (CASE.plain(), "no case of rg_lru, which has B, T, D, H, n, N"),
    ],
)
def test_case_of_another_op_is_refused(case, words):
    with pytest.raises(errors.ArgumentError, match=words):
        griffin_kernels.select("rg_lru", case)


def test_case_of_another_op_of_the_same_sizes_is_refused():
    with pytest.raises(errors.ArgumentError, match="belongs to linear_scan, not to linear_scan_bwd"):
        griffin_kernels.select("linear_scan_bwd", CASE)


def test_default_prefers_what_is_not_a_baseline():
    for op in catalog.ops().values():
        for case in op.cases_tagged("bench"):
            if case.where == "cpu":
                assert not griffin_kernels.select(op.name, case, device.cpu()).variant.baseline


@pytest.mark.parametrize("given", [[[[1.0]]], {"x": 1}, "x"])
def test_something_else_than_a_tensor_is_named(given):
    with pytest.raises(errors.GriffinKernelsError, match="x"):
        griffin_kernels.linear_scan(given, torch.ones(1, 1, 1))
    with pytest.raises(errors.GriffinKernelsError, match="a"):
        griffin_kernels.linear_scan(torch.ones(1, 1, 1), given)
