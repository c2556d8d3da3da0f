"""Statistics over timing samples."""

from __future__ import annotations

import numpy as np
import pytest

from roofline import stats

pytestmark = pytest.mark.unit


def test_median() -> None:
    assert stats.median([3.0, 1.0, 2.0]) == 2.0
    assert stats.median([4.0, 1.0, 2.0, 3.0]) == 2.5


def test_interval_holds_the_median_and_repeats() -> None:
    samples = np.random.default_rng(1).lognormal(size=101)
    low, high = stats.bootstrap_interval(samples)
    assert samples.min() < low < stats.median(samples) < high < samples.max()
    assert (low, high) == stats.bootstrap_interval(list(samples))
    assert stats.bootstrap_interval(samples, np.mean) != stats.bootstrap_interval(samples, np.mean, seed=1)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        low, high = stats.bootstrap_interval(generator.exponential(size=41), seed=trial)
        hits += low <= np.log(2) <= high
    assert 180 <= hits <= 200


def test_interval_of_another_statistic() -> None:
    low, high = stats.bootstrap_interval([1.0, 2.0, 3.0, 10.0] * 10, np.mean)
    assert low < 4.0 < high


def test_one_sample_has_no_width() -> None:
    assert stats.bootstrap_interval([2.0]) == (2.0, 2.0)


def test_paired_ratio_ignores_drift() -> None:
    drift = np.linspace(1.0, 5.0, 30)
    low, high = stats.paired_ratio_interval(1.5 * drift, drift)
    assert low == pytest.approx(1.5) == high


@pytest.mark.parametrize(
    ("samples", "message"),
    [([], "non-empty"), ([[1.0], [2.0]], "shape"), ([1.0, float("nan")], "finite")],
)
def test_bad_samples(samples: list[float], message: str) -> None:
    for function in (stats.median, stats.bootstrap_interval):
        with pytest.raises(ValueError, match=message):
            function(samples)


def test_bad_pairs() -> None:
    with pytest.raises(ValueError, match="equally many"):
        stats.paired_ratio_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="positive"):
        stats.paired_ratio_interval([1.0], [0.0])
