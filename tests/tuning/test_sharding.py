"""A plan that is shared out: every case in exactly one shard, by weight, and one sentence for what cannot be."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from griffin_kernels import device, errors
from reports.cli import app
from tuning.plan import planner
from tuning.plan.sharding import Shard, share, weight

OPS = ("rg_lru_step", "local_attention_step", "recurrent_block_step", "temporal_conv1d")


@pytest.fixture(scope="module")
def jobs():
    return planner.make(planner.Options(ops=OPS), device.cpu())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_case_is_in_one_shard(jobs, count):
    parts = [share(jobs, Shard(index, count)) for index in range(1, count + 1)]
    places = [job.place for part in parts for job in part]
    assert sorted(places) == sorted(job.place for job in jobs)
    order = [job.place for job in jobs]
    assert all([order.index(job.place) for job in part] == sorted(order.index(j.place) for j in part) for part in parts)
    loads = [sum(map(weight, part)) for part in parts]
    assert max(loads) - min(loads) <= max(map(weight, jobs))


def test_the_plan_has_the_shard_alone(jobs):
    options = planner.Options(ops=OPS, shard=Shard(2, 2))
    assert [job.place for job in planner.make(options, device.cpu())] == [j.place for j in share(jobs, Shard(2, 2))]
    assert not planner.Options(shard=Shard(1, 2)).whole and planner.Options().whole


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(errors.ArgumentError, match="expected I/N with I from 1 to N"):
        Shard.of(text)


def test_a_shard_without_a_case_says_so(jobs):
    with pytest.raises(errors.ArgumentError, match=f"has no case: there are {len(jobs)} for 999 shards"):
        share(jobs, Shard(999, 999))


def test_a_shard_wants_its_own_folder():
    found = CliRunner().invoke(app, ["tune", "--shard", "1/2", "--ops", "linear_scan"])
    assert found.exit_code == 2 and "--shard 1/2 needs an --out of its own" in found.output
