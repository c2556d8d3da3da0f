"""Amounts as people type them: what they come to, and what is refused by the flag's name."""

from __future__ import annotations

import pytest

from griffin_kernels import errors
from roofline import units

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("2048", 2048), ("2k", 2048), ("32K", 32768), ("1M", 2**20), (" 1.5 k ", 1536), ("2g", 2**31)],
)
def test_counts(text, value):
    assert units.count(text, "--seq") == value


def test_several_counts():
    assert units.counts("1, 8,2k,", "--seqs") == (1, 8, 2048)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8GiB", 2**33), ("8", 2**33), ("80 GB", 80 * 10**9), ("512mib", 2**29), ("1.5GiB", 3 * 2**29), ("7B", 7)],
)
def test_sizes(text, value):
    assert units.size(text, "--memory") == value


@pytest.mark.parametrize(
    ("text", "value"), [("50ms", 0.05), ("2 s", 2.0), (".5s", 0.5), ("100us", 1e-4), ("3µs", 3e-6), ("1h", 3600.0)]
)
def test_durations(text, value):
    assert units.duration(text, "--latency") == pytest.approx(value, rel=1e-15)


def test_prices():
    assert units.amounts("2.5, 1", "--price") == (2.5, 1.0)


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (units.count, "2.5", "expected a whole number such as"),
        (units.count, "1e9", "expected a whole number such as"),
        (units.count, "2 kk", "expected a whole number such as"),
        (units.count, "2x", "expected a whole number such as"),
        (units.count, "", "expected a whole number such as"),
        (units.count, "0", "is 0, expected at least 1"),
        (units.count, "-3", "is -3, expected at least 1"),
        (units.count, "9" * 5000, "expected a whole number such as"),
        (units.counts, ",", "expected whole numbers such as"),
        (units.counts, "1,x", "is 'x', expected a whole number"),
        (units.size, "8X", "expected a size such as"),
        (units.size, "-1", "is -1, expected a size from 1 B up"),
        (units.size, "nan", "expected a size such as"),
        (units.duration, "50", "expected a time with its unit such as 50ms"),
        (units.duration, "inf", "expected a time with its unit"),
        (units.duration, "0ms", "is 0ms, expected more than 0"),
        (units.amounts, "2,", "expected numbers above 0"),
        (units.amounts, "0", "expected numbers above 0"),
        (units.amounts, "3$", "expected numbers above 0"),
    ],
)
def test_what_is_refused_names_the_flag_and_what_would_do(read, text, words):
    with pytest.raises(errors.ArgumentError) as caught:
        read(text, "--flag")
    told = str(caught.value)
    assert told.startswith("--flag is ") and words in told and len(told) <= 200


def test_more_than_the_most_is_refused():
    with pytest.raises(errors.ArgumentError, match="--seq is 3k, expected at most 3000"):
        units.count("3k", "--seq", 3000)
