"""A registry file may hold anything: whatever does, calls are right, nothing is raised, and at most one warning comes.

``GRIFFIN_TEST_FUZZ`` sets how many mutated files are tried; ``make soak`` tries ten thousand. A failure names the
number of the file, which makes the same file again.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from collections import Counter

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, registry
from griffin_kernels.contract import config_dict
from griffin_kernels.ops.linear_scan.cost import make_case
from griffin_kernels.records import Entry

FILES = int(os.environ.get("GRIFFIN_TEST_FUZZ", "300"))

HERE = device.cpu()
SIZES = (2, 40, 48)
CASE = make_case(*SIZES)

RAW = {
    "@nan": "NaN",
    "@infinity": "-Infinity",
    "@1e999": "1e999",
    "@huge": "1" + "0" * 400,
    "@longer": "9" * 5000,
    "@deep": "[" * 3000 + "]" * 3000,
    "@nested": '{"a":' * 400 + "1" + "}" * 400,
    "@900": "[" * 900 + "]" * 900,
    "@surrogate": '"\\ud800"',
    "@zero": '"\\u0000\\u001b[31m"',
    "@comment": "/* 1 */ 1",
}
"""What Python's JSON would not write: put in place of a string."""

VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 7, 16, 1000, -(2**31), 2**31, 2**40, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308,
    5e-324, 640.0, "", "0", "640", "linear_scan", "rg_lru", "eager.sequential", "eager.loop", "triton.chunked",
    "../../x", "measured", "predicted", "x" * 20000, "\u202e\ufeff", "[bold]", [], {}, [1], [[]], {"": 1},
    {"block_d": 640},
    *RAW,
]  # fmt: skip


def entry(variant: str, sizes: tuple[int, int, int] = SIZES, **config: object) -> Entry:
    found = catalog.variant(f"linear_scan/{variant}")
    return Entry(
        op="linear_scan",
        case=make_case(*sizes).plain(),
        variant=variant,
        config=config_dict(found.parse_config(config)),
        status="measured",
        source_hash=found.source_hash,
        date="2026-01-01T00:00:00+00:00",
        reason="fuzz",
        candidates=1,
        median_s=1e-3,
        interval_s=(0.9e-3, 1.1e-3),
    )


ENTRIES = [
    entry("eager.chunked", chunk=16),
    entry("numba.chunked", (2, 41, 48), block_d=640, chunk=16),
    entry("numba.sequential", (2, 44, 48)),
    entry("eager.blocked_diagonal", (2, 60, 48)),
    entry("eager.sequential", (2, 80, 48)),
]


def places(node, path=()):
    """Every place in a document: (path of keys and indices)."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(document, path):
    for key in path:
        document = document[key]
    return document


def changed(document, dice: random.Random) -> None:
    """One change to a document in place."""
    path = dice.choice(list(places(document)))
    parent, key = at(document, path[:-1]), path[-1]
    kind = dice.choice(["value", "value", "value", "delete", "add", "swap", "copy", "rename", "nudge"])
    if kind == "value":
        parent[key] = dice.choice(VALUES)
    elif kind == "delete":
        del parent[key]
    elif kind == "add" and isinstance(parent, dict):
        parent[dice.choice(["extra", "", "block_t", "chunk", "T"])] = dice.choice(VALUES)
    elif kind == "swap":
        other = dice.choice(list(places(document)))
        if other[: len(path)] != path and path[: len(other)] != other:
            holder = at(document, other[:-1])
            parent[key], holder[other[-1]] = holder[other[-1]], parent[key]
    elif kind == "copy" and isinstance(parent, list):
        parent.append(json.loads(json.dumps(parent[key])))
    elif kind == "rename" and isinstance(parent, dict):
        parent[f"{key}s"] = parent.pop(key)
    elif kind == "nudge" and isinstance(parent[key], int | float):
        parent[key] += dice.choice([-1, 1, 0.5, 2**33])


def aimed(document, dice: random.Random) -> None:
    """A change to what decides which kernel runs, where a random one seldom hits."""
    chosen = dice.choice(document["entries"])
    kind = dice.choice(["config", "dims", "variant", "device", "provenance", "status"])
    if kind == "config" and chosen["config"]:
        chosen["config"][dice.choice(list(chosen["config"]))] = dice.choice(VALUES)
    elif kind == "dims":
        chosen["case"]["dims"][dice.choice("BTDN")] = dice.choice(VALUES)
    elif kind == "variant":
        other = dice.choice(document["entries"])
        chosen["variant"], chosen["config"] = other["variant"], dice.choice([chosen, other])["config"]
        chosen["source_hash"] = other["source_hash"]
    elif kind == "device":
        facts = document["device"]["validity"]
        facts[dice.choice(list(facts))] = dice.choice(VALUES)
    elif kind == "provenance":
        document["device"]["provenance"][dice.choice(["torch", "numba", "driver"])] = dice.choice(VALUES)
    elif kind == "status":
        chosen["status"] = "predicted"


def repeated_key(text: str, dice: random.Random) -> str:
    """A key of an object given a second time."""
    start = dice.choice([i for i, c in enumerate(text) if c == "{"]) + 1
    return text[:start] + dice.choice(['"T": 3, ', '"variant": "eager.loop", ', '"schema_version": 9, ']) + text[start:]


def torn(raw: bytes, dice: random.Random) -> bytes:
    """Bytes changed, cut, moved or encoded otherwise."""
    place = dice.randrange(len(raw))
    kind = dice.choice(["flip", "flip", "cut", "insert", "remove", "double", "bom", "utf-16", "nothing"])
    if kind == "flip":
        data = bytearray(raw)
        for _ in range(dice.choice([1, 1, 2, 8, 64])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return bytes(data)
    length = dice.choice([1, 2, 50, 5000])
    return {
        "cut": raw[:place],
        "insert": raw[:place] + dice.randbytes(length) + raw[place:],
        "remove": raw[:place] + raw[place + length :],
        "double": raw[:place] + raw[place : place + length] + raw[place:],
        "bom": b"\xef\xbb\xbf" + raw,
        "utf-16": raw.decode().encode("utf-16"),
        "nothing": raw * (dice.random() < 0.5),
    }[kind]


def mutated(base: bytes, number: int) -> bytes:
    """File ``number``: one to three changes of ``base``; always the same."""
    dice = random.Random(number)
    if dice.random() < 0.3:
        return torn(base, dice)
    document = json.loads(base)
    for _ in range(dice.choice([1, 1, 2, 3])):
        # an earlier change may have taken away what this one looks for
        try:
            dice.choice([changed, aimed])(document, dice)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    text = json.dumps(document)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    if dice.random() < 0.1:
        text = repeated_key(text, dice)
    return text.encode()


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "registry.json"
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(path))
    registry.publish(path, HERE, ENTRIES, device.provenance(HERE))
    yield path
    dispatch.refresh()


def test_mutated_files_never_raise_never_choose_a_wrong_kernel_and_warn_once(base):
    generator = torch.Generator().manual_seed(0)
    x, a = torch.randn(SIZES, generator=generator), torch.rand(SIZES, generator=generator)
    op = catalog.op("linear_scan")
    want = op.reference(op.call(x.double(), a.double()))[0]
    whole, outcomes = base.read_bytes(), Counter()
    for number in range(FILES):
        raw = mutated(whole, number)
        base.write_bytes(raw)
        dispatch.refresh()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            h, _ = griffin_kernels.linear_scan(x, a)
            choice = griffin_kernels.select("linear_scan", CASE, HERE)
        text = f"file {number}"
        torch.testing.assert_close(h.double(), want, rtol=1e-5, atol=1e-5, msg=lambda m, text=text: f"{text}: {m}")
        assert choice.config in choice.variant.all_configs(), text
        assert choice.variant.reject(CASE, HERE, choice.config) is None, text
        assert len(seen) <= 1, (text, [str(w.message) for w in seen])
        assert all(len(str(w.message)) < 2000 and "\n" not in str(w.message) for w in seen), text
        assert base.read_bytes() == raw, text
        outcomes[choice.origin, seen[0].category.__name__ if seen else "silent"] += 1
    print(f"\n{FILES} files: {dict(outcomes)}")
    # files that are used in spite of a change, and such that are not, have both been tried
    assert outcomes["registry", "silent"] > FILES / 20
    assert outcomes["default", "RegistryWarning"] > FILES / 5
    assert sum(count for (origin, category), count in outcomes.items() if category == "StaleWarning") > 0
