"""Other projects' kernels as baselines, by stand-ins for their packages; what of a baseline is timed."""

from __future__ import annotations

import dataclasses
import sys

import msgspec
import pytest
import torch

from griffin_kernels import catalog, device, errors, poison, verify
from griffin_kernels.contract import Adapter, NoConfig, Variant
from griffin_kernels.device import Device
from tests import ROOT
from tests.everywhere import INTERPRETER
from tuning.plan import planner
from tuning.plan.planner import Planned
from tuning.workers import executor
from tuning.workers.messages import Load

STAND_INS = ROOT / "tests" / "peers"
H100 = Device("cuda", "NVIDIA H100 80GB HBM3", "sm_90", 132, 80 * 2**30, 50 * 2**20, 32)


@pytest.fixture(scope="module")
def peers():
    """Every peer by key, its package installed."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STAND_INS)
        catalog._load.cache_clear()
        yield {v.key: v for op in catalog.ops() for v in catalog.variants(op).values() if v.backend == "peer"}
    catalog._load.cache_clear()
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("accelerated_scan", "fla", "causal_conv1d"):
            del sys.modules[name]


def test_what_is_not_installed_is_listed_with_the_reason():
    catalog._load.cache_clear()
    absent = {f"{op}/{name}": why for op in catalog.ops() for name, why in catalog.unavailable(op).items()}
    assert absent["linear_scan/peer.fla_hgrn_chunk"] == "flash-linear-attention is not installed"
    assert absent["temporal_conv1d_bwd/peer.causal_conv1d"] == "causal-conv1d is not installed"
    with pytest.raises(errors.UnknownVariantError, match="cannot be used: accelerated-scan is not installed"):
        catalog.variant("linear_scan/peer.accelerated_scan_warp")


def test_every_peer_is_a_baseline_behind_an_adapter_and_wants_a_gpu(peers):
    assert len(peers) == 10 and {v.op for v in peers.values()} == {
        "linear_scan",
        "linear_scan_bwd",
        "temporal_conv1d",
        "temporal_conv1d_bwd",
    }
    for variant in peers.values():
        assert variant.baseline and variant.adapter is not None and variant.package in catalog.PEERS
        case = catalog.op(variant.op).cases_tagged("bench")[0]
        assert "needs an NVIDIA GPU" in str(variant.reject(case, device.cpu(), NoConfig()))
        assert "needs an NVIDIA GPU" in str(variant.reject(case, INTERPRETER, NoConfig()))


def test_every_peer_runs_a_bench_case_of_each_of_its_ops_on_a_gpu(peers):
    for variant in peers.values():
        cases = planner.bench_cases(catalog.op(variant.op), H100)
        assert any(variant.reject(case, H100, NoConfig()) is None for case in cases), variant.key


def test_causal_conv1d_adds_no_residual(peers):
    peer, cases = peers["temporal_conv1d/peer.causal_conv1d"], catalog.op("temporal_conv1d").cases_tagged("bench")
    case = next(case for case in cases if "residual" in case.flags and case.half)
    assert peer.reject(case, H100, NoConfig()) == "adds no residual"


def accepted(variant: Variant):
    """Small cases that it takes on a GPU; a power of two of steps is made where it wants one."""
    for case in catalog.op(variant.op).cases_tagged("smoke", "edge"):
        for steps in (case["T"], 64):
            dims = {name: steps if name == "T" else size for name, size in case.dims.items()}
            asked = msgspec.structs.replace(case, dims=dims)
            if variant.reject(asked, H100, NoConfig()) is None:
                yield asked
                break


def test_every_peer_meets_the_contract(peers):
    for variant in peers.values():
        op, cases = catalog.op(variant.op), list(accepted(variant))
        assert len({case.dtype for case in cases}) >= 2 or len(cases) >= 3, variant.key
        for case in cases:
            inputs = op.make_inputs(case, torch.device("cpu"), 0)
            assert verify.check(op, variant, case, NoConfig(), inputs).problem is None, (variant.key, case.key)


def test_a_peer_that_carries_in_the_datas_dtype_may_be_off_by_more(peers):
    warp = peers["linear_scan/peer.accelerated_scan_warp"]
    op = catalog.op("linear_scan")
    case = next(case for case in accepted(warp) if case.dtype == "bfloat16")
    inputs = op.make_inputs(case, torch.device("cpu"), 0)
    off = dataclasses.replace(
        warp, run=lambda call, config: tuple(out if out is None else 1.05 * out for out in warp.run(call, config))
    )
    assert verify.check(op, off, case, NoConfig(), inputs).ok
    strict = dataclasses.replace(off, slack=1.0)
    assert "is wrong" in str(verify.check(op, strict, case, NoConfig(), inputs).problem)


@pytest.mark.parametrize("fact", [{"slack": 2.0}, {"adapter": Adapter(dict, dict, lambda found, inputs: found)}])
def test_only_a_baseline_is_timed_or_judged_otherwise(fact):
    with pytest.raises(errors.CatalogError, match="only a baseline"):
        Variant("linear_scan", "eager.x", "", lambda: (), NoConfig, **fact)


ADAPTED = [v for op in catalog.ops() for v in catalog.variants(op).values() if v.adapter is not None]


@pytest.mark.parametrize("variant", ADAPTED, ids=lambda v: v.key)
def test_samples_call_what_is_theirs_alone(variant, monkeypatch):
    op = catalog.op(variant.op)
    case = next((c for c in op.cases_tagged("smoke") if variant.reject(c, device.cpu(), NoConfig()) is None), None)
    if case is None:
        assert variant.key == "local_attention_bwd/compiled.flex_attention"  # which a CPU has not
        return
    counts = dict.fromkeys(("prepare", "call", "finish"), 0)

    def counted(name):
        def step(*args, **given):
            counts[name] += 1
            return getattr(variant.adapter, name)(*args, **given)

        return step

    watched = dataclasses.replace(variant, adapter=Adapter(*map(counted, counts)))
    own = executor.InProcessExecutor(device.cpu())
    own.load(Load(op.name, case.plain(), []))
    monkeypatch.setattr(executor.timing, "MOST_COPIES", {"cpu": 3})
    with poison.outside():
        sample = own.sampler(Planned(watched, NoConfig()))
        prepared, before = counts["prepare"], counts["call"]
        assert prepared == 3 and before
        first = sample()
        assert first > 0 and counts == {"prepare": 3, "call": counts["call"], "finish": 0} and counts["call"] > before
    own.close()
