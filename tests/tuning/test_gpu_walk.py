"""The whole way on a GPU of stubs: ceilings measured, cases tuned, stopped, resumed, published, and dispatched."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch
from triton.runtime.errors import OutOfResources

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, errors, registry
from griffin_kernels.ops.linear_scan.cost import make_case
from roofline import measure, probes, store
from tests.fake_gpu import BANDWIDTH, LAUNCH_S, fake_gpu
from tests.small_tune import Quiet
from tuning import run as runs
from tuning.decide import decider, history
from tuning.measure import rounds, timing
from tuning.plan import planner
from tuning.plan.planner import Options
from tuning.record import journal
from tuning.record.journal_records import Candidate, CeilingRecord, End, Result, Run

CASES = [make_case(1, steps, 8, where="gpu") for steps in (5, 6)]
OPTIONS = Options(ops=("linear_scan",), budget="quick", in_process=True)
BLOCKS = (64, 32)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Two cases, a kernel of two configurations and a baseline; buffers and graphs that suit an interpreter."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    every, sequential = catalog.variants("linear_scan"), catalog.variant("linear_scan/triton.sequential")
    few = {
        "triton.sequential": dataclasses.replace(sequential, axes={"block_d": BLOCKS}),
        "eager.chunked": dataclasses.replace(every["eager.chunked"], axes={}),
        "eager.loop": every["eager.loop"],
    }
    with fake_gpu(monkeypatch) as made:
        monkeypatch.setattr(catalog, "variants", lambda op: few)
        monkeypatch.setattr(planner, "bench_cases", lambda op, device: CASES)
        monkeypatch.setattr(decider, "UNQUIET", math.inf)
        monkeypatch.setattr(history, "UNQUIET", math.inf)
        monkeypatch.setattr(rounds, "SELF_BYTES", 2**12)
        monkeypatch.setattr(timing, "MOST_COPIES", {"cuda": 2})
        monkeypatch.setattr(timing, "MOST_CALLS", 2)
        monkeypatch.setattr(probes, "roofs", probes.dram)  # Triton's probes are hours in an interpreter
        monkeypatch.setattr(runs, "ceilings_s", lambda budget, minutes: 0.02)
        dispatch.refresh()
        dispatch._STATE.too_large.clear()
        yield made
        dispatch._STATE.too_large.clear()
    dispatch.refresh()


def tuned(gpu, folder, listener=None, resume=False):
    paths = runs.Paths.choose(folder, device.gpu(0))
    outcome = runs.tune(OPTIONS, paths, listener or Quiet(), resume=resume, clock=gpu.clock)
    return outcome, journal.read(paths.journal)


def too_large(*blocks):
    """A problem of launches with so wide a block."""

    def problem(step):
        if step.args["tile"].held.value in blocks:
            raise OutOfResources(86016, 65536, "shared memory")

    return problem


class Stop(Quiet):
    """Ctrl-C while the second case is being tried."""

    def __init__(self):
        self.decided = 0

    def result(self, *words, **facts):
        self.decided += 1

    def candidate(self, record, lane=""):
        if self.decided and record.status == "ok":
            raise KeyboardInterrupt


def test_tune_is_interrupted_publishes_goes_on_and_ends(gpu, tmp_path):
    here = device.gpu(0)
    stopped, found = tuned(gpu, tmp_path, Stop())
    assert stopped.interrupted and (len(stopped.entries), len(stopped.left)) == (1, 1)
    assert journal.unfinished(found) and not isinstance(found[-1], End)
    assert registry.load_for(stopped.paths.registry, here).entries == list(stopped.entries)
    before = dict(gpu.counts)
    assert before["captures"] > 2 and before["replays"] > before["captures"], "kernels this short are timed in graphs"

    outcome, found = tuned(gpu, tmp_path, resume=True)
    assert not outcome.interrupted and outcome.entries[:1] == stopped.entries and isinstance(found[-1], End)
    stored = registry.load_for(outcome.paths.registry, here).entries
    assert [entry.case.key for entry in outcome.entries] == [case.key for case in CASES]
    assert {entry.samples_digest for entry in stored} == {entry.samples_digest for entry in outcome.entries}
    assert all(entry.status == "measured" and entry.median_s and entry.baseline == "eager.loop" for entry in stored)
    tried = [record for record in found if isinstance(record, Candidate)]
    assert max(Counter(record.key for record in tried).values()) == 1, "nothing is measured twice"
    assert {record.status for record in tried} <= {"ok", "slow", "skipped"}
    timed = [record.samples_s for record in tried if record.status != "skipped"]
    assert len(timed) >= 2 * len(BLOCKS) and all(samples and min(samples) > 0 for samples in timed)
    assert [record.resumed for record in found if isinstance(record, Run)] == [False, True]
    assert len([record for record in found if isinstance(record, Result)]) == len(CASES)
    roofs = {record.name: record for record in found if isinstance(record, CeilingRecord)}.values()
    assert len(roofs) == 3 and all(roof.value == pytest.approx(BANDWIDTH, rel=0.01) for roof in roofs)

    for entry in stored:
        with griffin_kernels.use(registry=outcome.paths.registry):
            choice = griffin_kernels.select(entry.op, entry.case, here)
        assert (choice.origin, choice.variant.name) == ("registry", entry.variant)


def test_a_launch_that_does_not_fit_costs_its_candidate_alone(gpu, tmp_path):
    gpu.problems.append(too_large(BLOCKS[-1]))
    outcome, found = tuned(gpu, tmp_path)
    assert len(outcome.entries) == len(CASES)
    tried = [record for record in found if isinstance(record, Candidate)]
    lost = [record for record in tried if record.status not in ("ok", "slow", "skipped")]
    assert lost and {record.config.get("block_d") for record in lost} == {BLOCKS[-1]}
    assert {record.status for record in lost} == {"failed"}
    assert all("needs 86016 of shared memory, the device has 65536" in record.problem for record in lost)
    others = [record for record in tried if record.variant == "triton.sequential" and record not in lost]
    assert others and all(record.samples_s for record in others)


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_a_call_falls_to_the_next_variant_with_one_warning(gpu):
    gpu.problems.append(too_large(*range(1025)))
    x, a = torch.randn(1, 5, 8), torch.rand(1, 5, 8)
    given = {"x": x, "a": a}
    assert griffin_kernels.select("linear_scan", given).variant.name == "triton.sequential"
    with pytest.warns(errors.FallbackWarning, match=r"triton\.sequential .* using eager\.chunked from now on") as seen:
        for _ in range(2):
            h, _ = griffin_kernels.linear_scan(x, a)
    assert len([warning for warning in seen if warning.category is errors.FallbackWarning]) == 1
    assert griffin_kernels.select("linear_scan", given).variant.name == "eager.chunked"
    want = torch.zeros(1, 8, dtype=torch.float64)
    for t in range(5):
        want = a[:, t].double() * want + x[:, t].double()
    torch.testing.assert_close(h[:, -1].double(), want, rtol=1e-5, atol=1e-5)  # five float32 steps of values near 1


def test_ceilings_are_measured_stored_and_read_back(gpu, monkeypatch):
    """But for the three Triton probes: 2112 programs of a long chain are hours in an interpreter."""
    for name in ("cache", "vector", "special"):
        monkeypatch.setattr(probes, name, lambda device: iter(()))
    monkeypatch.setitem(probes.MATMUL_SIZES, "gpu", ((16, 16, 16),))
    for name in ("WEIGHT", "WIDE_WEIGHT"):
        monkeypatch.setattr(probes, name, (16, 16))
    here = device.gpu(0)
    found = measure.measure(here, seconds=0.05)
    path = store.default_path(here)
    store.save(path, here, found, device.provenance(here))
    read = store.load_for(here)
    assert list(read.table) == found and store.load_of(path, here).device.provenance["driver"] == "580.1"
    assert read.value("dram") == pytest.approx(BANDWIDTH, rel=0.01)
    assert read.value("launch") == pytest.approx(LAUNCH_S, rel=0.02)
    assert read.ceiling("launch_graph").value < LAUNCH_S / 100
    assert set(read.tensor_flops_per_s) == {"float32", "float16", "bfloat16"}
    # a product's time is that of its bytes here: left and right once, and the result read and written once
    assert read.tensor_flops_per_s["float32"] == pytest.approx(2 * 16**3 / (4 * 3 * 16 * 16) * BANDWIDTH, rel=0.01)
