"""Search strategies: what a space is, what each strategy promises, and how the default fares on large spaces."""

from __future__ import annotations

import itertools
import math
import random
from importlib import metadata

import pytest

from griffin_kernels import device as devices
from griffin_kernels import errors
from griffin_kernels.contract import config_dict
from tuning.decide.case_search import space_of
from tuning.plan import planner
from tuning.replay import packed
from tuning.search import strategies
from tuning.search.space import Point, Space
from tuning.search.strategies import STRATEGIES, foresee
from tuning.search.strategies import named as named_strategy

pytestmark = pytest.mark.unit

AXES = {
    "block_t": (8, 16, 32, 64, 128),
    "block_d": (32, 64, 128, 256, 512),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4),
}


def synthetic(seed: int, variants: int = 3, told: float | None = None) -> tuple[Space, list[float | None]]:
    """A space of GPU size that was made up (no measurement), and its seconds.

    Each variant has a bowl over some of its axes and none over others, pairs of axes that depend on each other, a cliff
    where registers would spill, holes that cannot run and points that fail. told: noise of a static model's logarithm.
    """
    rng = random.Random(f"synthetic {seed}")
    points: list[Point] = []
    seconds: list[float | None] = []
    for number in range(variants):
        level = 1e-4 * math.exp(rng.choice((0.0, 0.05, 0.3, 0.8)) if number else 0.0)
        best = {field: rng.uniform(0, len(values) - 1) for field, values in AXES.items()}
        curve = {field: rng.choice((0.0, 0.005, 0.03, 0.08)) for field in AXES}
        pairs = [(a, b, rng.gauss(0, 0.02)) for a, b in itertools.combinations(AXES, 2)]
        for values in itertools.product(*AXES.values()):
            config = dict(zip(AXES, values, strict=True))
            at = {field: AXES[field].index(value) for field, value in config.items()}
            away = {field: at[field] - best[field] for field in AXES}
            cost = sum(curve[f] * away[f] ** 2 for f in AXES) + sum(g * away[a] * away[b] for a, b, g in pairs)
            pressure = at["block_t"] + at["block_d"] + at["num_stages"] - at["num_warps"]
            if pressure > 8:
                continue
            cost += 0.2 * max(0, pressure - 5) + rng.gauss(0, 0.01)
            points.append(Point(f"triton.made_up_{number}", tuple(config.items())))
            seconds.append(None if pressure == 8 else level * math.exp(cost))
    timed = sorted((s, i) for i, s in enumerate(seconds) if s is not None)
    default = timed[len(timed) // 2][1]
    model = tuple(None if s is None or told is None else s * math.exp(rng.gauss(0, told)) for s in seconds)
    return Space(tuple(points), (default,), model if told else (), f"synthetic/{seed}"), seconds


def run(space: Space, seconds: list[float | None], name: str, evaluations: int) -> list[int]:
    """The points that a strategy tries, in order; each must be there and new."""
    seen: dict[int, float | None] = {}
    while len(seen) < evaluations:
        index = STRATEGIES[name].next(space, seen, evaluations - len(seen))
        if index is None:
            break
        assert 0 <= index < len(space) and index not in seen
        seen[index] = seconds[index]
    return list(seen)


def reached(seconds: list[float | None], tried: list[int]) -> float:
    """Share of the optimum that was found."""
    found = min((s for s in (seconds[i] for i in tried) if s is not None), default=math.inf)
    return min(s for s in seconds if s is not None) / found


def grid(*, hole: tuple[int, bool, str] | None = None) -> Space:
    """3 x 2 x 3 points of one variant (size, flag, kind), with one left out, and a variant without axes."""
    whole = itertools.product((16, 4, 64), (False, True), ("x", "y", "z"))
    points = [Point("eager.a", (("size", s), ("flag", f), ("kind", k))) for s, f, k in whole if (s, f, k) != hole]
    points.append(Point("eager.b", ()))
    return Space(tuple(points), (0,), key="grid")


def named(space: Space, indices: list[int]) -> set[tuple[object, ...]]:
    return {tuple(value for _, value in space.points[i].config) for i in indices}


def test_neighbours_step_along_one_axis():
    space = grid()
    assert space.axes["eager.a"]["size"] == (4, 16, 64), "numbers are in order whatever order points come in"
    middle = space.index[Point("eager.a", (("size", 16), ("flag", False), ("kind", "x")))]
    assert named(space, space.neighbours(middle)) == {
        (4, False, "x"),
        (64, False, "x"),
        (16, True, "x"),
        (16, False, "y"),
        (16, False, "z"),
    }
    end = space.index[Point("eager.a", (("size", 4), ("flag", False), ("kind", "x")))]
    assert (64, False, "x") not in named(space, space.neighbours(end))
    assert space.neighbours(len(space) - 1) == []


def test_neighbours_step_over_what_cannot_run():
    space = grid(hole=(16, False, "x"))
    end = space.index[Point("eager.a", (("size", 4), ("flag", False), ("kind", "x")))]
    assert (64, False, "x") in named(space, space.neighbours(end))


def test_a_default_off_the_grid_has_neighbours():
    points = [Point("v", (("a", a), ("b", b))) for a in (1, 2, 4) for b in (1, 2, 4)] + [
        Point("v", (("a", 3), ("b", 3)))
    ]
    space = Space(tuple(points), (9,))
    assert named(space, space.neighbours(9)) == {(2, 2), (2, 4), (4, 2), (4, 4)}


@pytest.fixture(scope="module")
def job() -> planner.Job:
    here = devices.cpu()
    options = planner.Options(("linear_scan",), ("B1-T2048-D2560-float32",), budget="thorough", device="cpu")
    return planner.make(options, here)[0]


def test_space_of_a_job(job):
    able = job.competitors
    space = space_of(job, devices.cpu())
    assert len(space) == len(able) == len(set(space.points)) > 30
    for point, planned in zip(space.points, able, strict=True):
        assert (point.variant, dict(point.config)) == (planned.variant.name, config_dict(planned.config))
        assert not planned.variant.baseline and planned.reason is None
    assert [able[i] for i in space.seeds] == [job.default]
    assert space.predicted_s == () and job.op.name in space.key and job.case.key in space.key


def test_seeds_of_a_job_in_order(job):
    able = job.competitors
    known = [(able[i].variant.name, config_dict(able[i].config)) for i in (7, 3)]
    gone = ("numba.sequential", {"block_d": 3})
    order = {id(p): 1e-3 * ((i * 7) % len(able) + 1) for i, p in enumerate(able)}
    space = space_of(job, devices.cpu(), incumbents=[known[0], gone, known[1]], predicted=order)
    fastest = sorted(range(len(able)), key=lambda i: order[id(able[i])])[:8]
    default = able.index(job.default)
    assert space.seeds == tuple(dict.fromkeys([default, 7, 3, *fastest]))
    assert space.predicted_s == tuple(order[id(p)] for p in able)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_tries_new_points_until_all_are_tried(name):
    space = grid()
    seconds: list[float | None] = [1.0 + (i * 5 % 7) for i in range(len(space))]
    seconds[3] = seconds[8] = None
    tried = run(space, seconds, name, len(space) + 5)
    assert sorted(tried) == list(range(len(space)))
    assert tried[0] == 0, "the seed is first"
    assert STRATEGIES[name].next(space, {}, 0) is None


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_resumed_search_goes_on_as_an_unbroken_one(name):
    space, seconds = synthetic(1, variants=1)
    whole = run(space, seconds, name, 24)
    again, _ = synthetic(1, variants=1)  # another process has other objects
    for done in range(0, 24, 5):
        seen = {i: seconds[i] for i in whole[:done]}
        assert STRATEGIES[name].next(again, seen, 24 - done) == whole[done]


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_what_is_foreseen_is_what_is_tried_where_nothing_surprises(name):
    space, _ = synthetic(1, variants=1)
    seconds: list[float | None] = [1e-4] * len(space)
    whole = run(space, seconds, name, 24)
    for done in (1, 5, 12):
        seen = {i: seconds[i] for i in whole[:done]}
        pending = whole[done : done + 2]
        coming = foresee(STRATEGIES[name], space, seen, 24 - done, pending)
        seen.clear()  # it was looked at when it was given
        assert list(coming) == whole[done + 2 :]


def test_what_is_foreseen_before_anything_is_timed_follows_the_static_model():
    space, _ = synthetic(0, variants=2, told=0.1)
    told: list[float | None] = list(space.predicted_s)
    tried = run(space, told, "seeded", 30)
    assert list(foresee(STRATEGIES["seeded"], space, {}, 30)) == tried
    assert list(foresee(STRATEGIES["seeded"], space, {}, 1, tried[:1])) == []


def test_most_points_of_a_search_are_foreseen_while_the_one_before_them_is_timed():
    """Recorded spaces, four points foreseen and compiled during each evaluation."""
    foreseen = asked = 0
    for journal in packed.shipped():
        strategy, space, most = STRATEGIES["seeded"], journal.space, math.ceil(len(journal.points) / 4)
        seen: dict[int, float | None] = {}
        compiled: set[int] = set()
        while len(seen) < most and (index := strategy.next(space, seen, most - len(seen))) is not None:
            if seen:
                asked, foreseen = asked + 1, foreseen + (index in compiled)
            compiled.add(index)
            new = (i for i in foresee(strategy, space, seen, most - len(seen), [index]) if i not in compiled)
            compiled.update(itertools.islice(new, 4))
            seen[index] = journal.seconds[index]
    print(f"{foreseen} of {asked} points were foreseen")
    assert foreseen >= 0.8 * asked


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_where_everything_fails_the_search_still_ends(name):
    space = grid()
    assert sorted(run(space, [None] * len(space), name, 100)) == list(range(len(space)))


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_one_point_is_a_space(name):
    space = Space((Point("eager.b", ()),), (), key="one")
    assert run(space, [1.0], name, 5) == [0]


def test_latin_hypercube_hits_every_variant_and_every_value():
    space, _ = synthetic(2, variants=4)
    first = strategies.spread(space, 40)[:40]
    assert {space.points[i].variant for i in first} == set(space.members)
    for variant, members in space.members.items():
        mine = [i for i in first if space.points[i].variant == variant]
        share = len(members) / len(space)
        assert abs(len(mine) - 40 * share) <= 1
        for field, values in space.axes[variant].items():
            hit = {dict(space.points[i].config)[field] for i in mine}
            assert len(hit) >= len(values) - 1, f"{variant} {field}: {hit} of {values}"
    assert sorted(strategies.spread(space, 40)) == list(range(len(space)))


def test_default_on_spaces_of_gpu_size_that_were_made_up():
    """Synthetic: spaces of 385 to 1540 points; with 60 evaluations the default reaches 98% of five in six."""
    found, yardstick = [], []
    for seed, variants in enumerate((1, 2, 3, 4, 2, 3)):
        space, seconds = synthetic(seed, variants)
        assert 300 < len(space) < 1600
        found.append(reached(seconds, run(space, seconds, "seeded", 60)))
        yardstick.append(reached(seconds, run(space, seconds, "random", 60)))
    text = f"seeded {[f'{x:.1%}' for x in found]}, random {[f'{x:.1%}' for x in yardstick]}"
    print(text)
    assert sum(x >= 0.98 for x in found) >= 5, text
    assert min(found) >= 0.95, text
    assert sum(found) > sum(yardstick) + 0.1, text


def test_predictions_of_a_static_model_help():
    """Synthetic: with 25 evaluations, a model that errs by 15% brings the default strategy further than none."""
    without, with_model = [], []
    for seed in range(4):
        space, seconds = synthetic(seed, variants=3)
        without.append(reached(seconds, run(space, seconds, "seeded", 25)))
        told, again = synthetic(seed, variants=3, told=0.15)
        with_model.append(reached(again, run(told, again, "seeded", 25)))
    assert sum(with_model) > sum(without), (with_model, without)
    assert min(with_model) > 0.93, with_model


def test_a_variant_far_behind_gets_few_points():
    points = [Point(v, (("a", a), ("b", b))) for v in ("good", "bad") for a in range(6) for b in range(6)]
    space = Space(tuple(points), (0,), key="behind")
    seconds: list[float | None] = [
        (1 if p.variant == "good" else 9) * (1 + 0.1 * abs(dict(p.config)["a"] - 4)) for p in points
    ]
    tried = run(space, seconds, "seeded", 18)
    assert sum(points[i].variant == "bad" for i in tried) <= 4
    assert reached(seconds, tried) == 1.0


def test_strategies_by_name():
    assert named_strategy(strategies.DEFAULT).name == "seeded"
    assert named_strategy("local").name == "local"
    with pytest.raises(
        errors.ArgumentError, match="no strategy 'genetic'; there are seeded, exhaustive, random, lhs, local"
    ):
        named_strategy("genetic")


class Backwards:
    """A plug-in of the tests: the last point first."""

    name = "backwards"

    def next(self, space, seen, left):
        return next((i for i in reversed(range(len(space))) if i not in seen), None)


NOT_ONE = object()


@pytest.fixture
def plugins(monkeypatch):
    """Entry points of three packages, as if they were installed."""
    offered = [
        metadata.EntryPoint(name, value, strategies.ENTRY_POINTS)
        for name, value in (
            ("backwards", "tests.tuning.test_search:Backwards"),
            ("broken", "tests.no_such_module:Strategy"),
            ("empty", "tests.tuning.test_search:NOT_ONE"),
        )
    ]
    monkeypatch.setattr(
        strategies.metadata, "entry_points", lambda group: offered if group == strategies.ENTRY_POINTS else []
    )


def test_plugins(plugins):
    space = grid()
    assert strategies.names()[-3:] == ["backwards", "broken", "empty"]
    assert named_strategy("backwards").next(space, {}, 3) == len(space) - 1
    with pytest.raises(errors.ArgumentError, match=r"'broken' .* cannot be loaded: ModuleNotFoundError"):
        named_strategy("broken")
    with pytest.raises(errors.ArgumentError, match=r"'empty' .* has no name or no next"):
        named_strategy("empty")
    with pytest.raises(errors.ArgumentError, match=r"there are seeded, .*, backwards, broken, empty"):
        named_strategy("genetic")
