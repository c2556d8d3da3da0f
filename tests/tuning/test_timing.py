"""Samplers: which inputs a call gets, how many calls make a sample, what is kept out of the timing."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from griffin_kernels import device
from tuning.measure import timing

pytestmark = pytest.mark.unit

HERE = dataclasses.replace(device.cpu(), last_level_cache_bytes=2**20)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what kernels add to it."""

    class Clock:
        now = 0.0

    def seconds_of(work, where):
        began = Clock.now
        work()
        return Clock.now - began

    monkeypatch.setattr(timing, "seconds_of", seconds_of)
    return Clock


def numbered(count):
    return timing.Rotation(range(count))


def test_copies_exceed_twice_the_cache_and_keep_strides():
    inputs = {"x": torch.rand(300, 100).T, "n": 3, "none": None}
    made = timing.copies(inputs, HERE)
    assert made[0]["x"] is inputs["x"]
    assert 2 * HERE.last_level_cache_bytes <= len(made) * timing.bytes_of(inputs) < 2.1 * HERE.last_level_cache_bytes
    assert len({each["x"].data_ptr() for each in made}) == len(made)
    assert {each["x"].stride() for each in made} == {inputs["x"].stride()}
    assert all(torch.equal(each["x"], inputs["x"]) and each["n"] == 3 for each in made)
    assert len(timing.copies({"x": torch.rand(2**20)}, HERE)) == 1
    assert len(timing.copies({"x": torch.rand(1)}, HERE)) == timing.MOST_COPIES["cpu"]


def test_gpu_caches_that_the_driver_does_not_report_are_swept_too():
    amd = device.Device("hip", "made up", "gfx942", 304, 1, 4 * 2**20)
    assert timing.cold_bytes(amd) == 512 * 2**20
    nvidia = device.Device("cuda", "made up", "sm_90", 132, 1, 50 * 2**20)
    assert timing.cold_bytes(nvidia) == 100 * 2**20


def test_samplers_that_alternate_never_get_the_same_copy_in_a_row(clock):
    seen = []

    def run(i):
        seen.append(i)
        clock.now += 1.0

    rotation = numbered(3)
    samplers = [timing.sampler(run, rotation, HERE) for _ in range(2)]
    seen.clear()
    assert [samplers[turn]() for turn in (0, 1, 1, 0, 1, 0)] == [1.0] * 6
    assert all(a != b for a, b in itertools.pairwise(seen))
    assert sorted(set(seen)) == [0, 1, 2]


def test_short_calls_are_taken_several_to_a_sample(clock):
    calls = []

    def run(i):
        calls.append(i)
        clock.now += 1e-5

    sample = timing.sampler(run, numbered(50), HERE)
    calls.clear()
    assert sample() == pytest.approx(1e-5)
    assert len(calls) == len(set(calls)) == 10


def test_outputs_are_given_up_outside_what_is_timed(clock):
    class Output:
        def __del__(self):
            clock.now += 100.0

    def run(i):
        clock.now += 1.0
        return Output()

    assert timing.sampler(run, numbered(2), HERE)() == 1.0
    assert timing.warm_sampler(run, numbered(2), HERE)() == 1.0


@pytest.mark.parametrize("call_s", [1e-5, 1.0])
def test_warm_samples_follow_calls_on_the_same_inputs(clock, call_s):
    seen = []

    def run(i):
        clock.now += call_s if seen[-1:] == [i] else 5 * call_s
        seen.append(i)

    timing.sampler(run, numbered(3), HERE)
    warm = timing.warm_sampler(run, numbered(3), HERE)
    assert [warm(), warm()] == [pytest.approx(call_s)] * 2


def test_long_calls_are_warmed_up_once(clock):
    calls = []

    def run(i):
        calls.append(i)
        clock.now += 1.0

    sample = timing.sampler(run, numbered(3), HERE)
    assert len(calls) == 1
    assert sample() == 1.0
    assert len(calls) == 2


def test_real_calls_take_time():
    inputs = {"x": torch.rand(10_000)}
    for make in (timing.sampler, timing.warm_sampler):
        assert 0 < make(lambda given: given["x"] + 1, timing.copies(inputs, HERE), HERE)() < 10


def test_inputs_of_a_graph_are_all_different_or_all_the_same():
    a, b, c = {"i": 0}, {"i": 0}, {"i": 0}
    assert timing._different([a, b, c, a, b]) == [a, b, c]
    assert len(timing._different([a, a, a])) == 3
    assert len(timing._different([a])) == 1
