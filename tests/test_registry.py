"""Registry files: published whole or not at all, never trusted when broken, never changed when broken."""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings

import jsonschema
import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, errors, registry
from griffin_kernels.records import SCHEMA_VERSION, CaseRecord, Entry

HERE = device.cpu()
CASE = next(c for c in catalog.op("linear_scan").cases_tagged("bench") if c.where == "cpu")


def entry(variant: str = "eager.sequential", **facts) -> Entry:
    found = catalog.variant(f"linear_scan/{variant}")
    given = {
        "op": "linear_scan",
        "case": CaseRecord.of(CASE),
        "variant": variant,
        "config": {},
        "status": "measured",
        "source_hash": found.source_hash,
        "date": "2026-01-01",
        "reason": "test",
        "candidates": 1,
        "median_s": 1e-3,
    }
    return Entry(**(given | facts))


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    dispatch.refresh()
    yield
    dispatch.refresh()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry.json"


def published(path, *entries):
    registry.publish(path, HERE, entries or [entry()], {})
    return path


def select_with(path, monkeypatch, case=CASE):
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(path))
    dispatch.refresh()
    return griffin_kernels.select("linear_scan", case, HERE)


def test_shipped_schema_is_that_of_the_records_and_accepts_a_published_file(path):
    shipped = (registry.Path(registry.__file__).parent / "registry.schema.json").read_text()
    assert shipped == registry.schema_text(), "write registry.schema_text() to registry.schema.json"
    jsonschema.validate(json.loads(published(path).read_text()), json.loads(shipped))


def test_published_entry_is_selected(path, monkeypatch):
    choice = select_with(published(path), monkeypatch)
    assert (choice.variant.name, choice.origin) == ("eager.sequential", "registry")


def test_publish_merges_by_case_and_replaces_the_same_case(path):
    other = CaseRecord.of(catalog.op("linear_scan").cases_tagged("bench")[1])
    published(path)
    published(path, entry("eager.associative"), entry(case=other))
    assert [e.variant for e in registry.load(path).entries] == ["eager.associative", "eager.sequential"]


def test_near_sizes_match_within_a_factor_of_four(path, monkeypatch):
    published(path)
    sizes = dict(CASE.dims)

    def at(**changed):
        return CASE.__class__(CASE.op, tuple((sizes | changed).items()), CASE.dtype)

    near = select_with(path, monkeypatch, at(T=sizes["T"] * 4, D=sizes["D"] // 2))
    assert near.origin == "registry"
    assert "within a factor 4" in near.reason
    assert select_with(path, monkeypatch, at(T=sizes["T"] * 5)).origin == "default"


@pytest.mark.parametrize("changed", [{"dtype": "bfloat16"}, {"flags": ("reset",)}])
def test_dtype_and_flags_match_exactly(path, monkeypatch, changed):
    case = CASE.__class__(CASE.op, CASE.dims, **({"dtype": CASE.dtype, "flags": CASE.flags} | changed))
    assert select_with(published(path), monkeypatch, case).origin == "default"


BROKEN = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not JSON": lambda text: "hello",
    "binary": lambda text: b"\xff\xfe\x00",
    "of a future schema": lambda text: text.replace(
        f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION + 1}'
    ),
    "of another device": lambda text: text.replace(HERE.name, "Some other CPU"),
    "with a field missing": lambda text: text.replace('"candidates"', '"candidatez"'),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_registry_gives_one_warning_the_default_kernel_and_stays_as_it_was(path, monkeypatch, how):
    broken = BROKEN[how](published(path).read_text())
    broken = broken if isinstance(broken, bytes) else broken.encode()
    path.write_bytes(broken)
    x = torch.randn(2, 5, 3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        choice = select_with(path, monkeypatch)
        griffin_kernels.linear_scan(x, x)
    assert choice.origin == "default"
    messages = [str(w.message) for w in seen if issubclass(w.category, errors.RegistryWarning)]
    assert len(messages) == 1
    assert str(path) in messages[0]
    assert path.read_bytes() == broken


def test_directory_and_missing_file_as_registry_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.warns(errors.RegistryWarning, match="is a directory"):
        assert select_with(folder, monkeypatch).origin == "default"
    with pytest.warns(errors.RegistryWarning, match="cannot be read"):
        assert select_with(tmp_path / "none.json", monkeypatch).origin == "default"


@pytest.mark.parametrize(
    "facts",
    [
        {"source_hash": "0" * 16},
        {"variant": "eager.gone", "source_hash": "x"},
        {"config": {"unknown": 1}},
    ],
    ids=["source changed", "variant gone", "config unknown"],
)
def test_entry_of_another_kernel_is_passed_over_with_a_warning(path, monkeypatch, facts):
    given = entry()
    published(path, Entry(**({f: getattr(given, f) for f in given.__struct_fields__} | facts)))
    with pytest.warns(errors.RegistryWarning, match="griffin tune"):
        assert select_with(path, monkeypatch).origin == "default"


def test_publishing_into_a_broken_or_foreign_file_is_refused_and_leaves_it(path):
    for text in ("half a fi", published(path).read_text().replace(HERE.name, "Some other CPU")):
        path.write_text(text)
        with pytest.raises(errors.RegistryError):
            registry.publish(path, HERE, [entry()], {})
        assert path.read_text() == text


def test_failed_write_leaves_the_old_file_and_no_debris(path, monkeypatch):
    before = published(path).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.OutputFolderError, match="No space left"):
        published(path, entry("eager.associative"))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_interrupted_write_leaves_the_old_file_and_no_debris(path, monkeypatch):
    before = published(path).read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        published(path, entry("eager.associative"))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def publish_one(path, index):
    case = CaseRecord(dict(CASE.dims) | {"T": 100 + index}, CASE.dtype)
    registry.publish(path, HERE, [entry(case=case)], {})


def test_processes_that_publish_at_once_lose_nothing(path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=publish_one, args=(path, i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(registry.load(path).entries) == 4


def test_memory_of_a_cpu_does_not_decide_validity():
    # kernels report RAM a little differently after every update
    import dataclasses

    from griffin_kernels import device as devices

    here = devices.cpu()
    other = dataclasses.replace(here, memory_bytes=here.memory_bytes - 123_456_789)
    assert here.validity() == other.validity() and "memory_bytes" not in here.validity()
    gpu = dataclasses.replace(here, kind="cuda")
    assert gpu.validity() != dataclasses.replace(gpu, memory_bytes=gpu.memory_bytes // 2).validity()
