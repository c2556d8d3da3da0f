"""Registry files: published whole or not at all, never trusted when broken, never changed when broken."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import warnings

import filelock
import jsonschema
import msgspec
import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, errors, records, registry, validity
from griffin_kernels.case import Case
from griffin_kernels.contract import config_dict
from griffin_kernels.records import SCHEMA_VERSION, DeviceRecord, Entry, RegistryFile

pytestmark = pytest.mark.unit

HERE = device.cpu()
CASE = next(c for c in catalog.op("linear_scan").cases_tagged("bench") if c.where == "cpu")


def entry(variant: str = "eager.sequential", **facts) -> Entry:
    found = catalog.variant(f"linear_scan/{variant}")
    given = {
        "op": "linear_scan",
        "case": CASE.plain(),
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
    text = json.dumps(msgspec.json.schema(records.RegistryFile), indent=1, sort_keys=True) + "\n"
    assert shipped == text, f"registry.schema.json should be:\n{text}"
    jsonschema.validate(json.loads(published(path).read_text()), json.loads(shipped))


def test_published_entry_is_selected(path, monkeypatch):
    choice = select_with(published(path), monkeypatch)
    assert (choice.variant.name, choice.origin) == ("eager.sequential", "registry")


def test_publish_merges_by_case_and_replaces_the_same_case(path):
    other = catalog.op("linear_scan").cases_tagged("bench")[1].plain()
    published(path)
    published(path, entry("eager.associative"), entry(case=other))
    assert [e.variant for e in registry.load(path).entries] == ["eager.associative", "eager.sequential"]


def test_near_sizes_match_within_a_factor_of_four(path, monkeypatch):
    published(path)
    sizes = CASE.dims

    def at(**changed):
        return Case(sizes | changed, CASE.dtype)

    near = select_with(path, monkeypatch, at(T=sizes["T"] * 4, D=sizes["D"] // 2))
    assert near.origin == "registry"
    assert "within a factor 4" in near.reason
    assert select_with(path, monkeypatch, at(T=sizes["T"] * 5)).origin == "default"


@pytest.mark.parametrize("changed", [{"dtype": "bfloat16"}, {"flags": ("reset",)}])
def test_dtype_and_flags_match_exactly(path, monkeypatch, changed):
    case = Case(CASE.dims, **({"dtype": CASE.dtype, "flags": CASE.flags} | changed))
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


@pytest.mark.process
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


@pytest.mark.process
def test_processes_that_publish_at_once_lose_nothing(path):
    # processes that have imported what they need already, so that they are at it together
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["griffin_kernels.registry"])
    new = [entry(case=Case(CASE.dims | {"T": 100 + index}, CASE.dtype)) for index in range(32)]
    workers = [context.Process(target=registry.publish, args=(path, HERE, [one], {})) for one in new]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(registry.load(path).entries) == 32
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_memory_of_a_cpu_does_not_decide_validity():
    # kernels report RAM a little differently after every update
    from griffin_kernels import device as devices

    here = devices.cpu()
    other = dataclasses.replace(here, memory_bytes=here.memory_bytes - 123_456_789)
    assert here.validity() == other.validity() and "memory_bytes" not in here.validity()
    gpu = dataclasses.replace(here, kind="cuda")
    assert gpu.validity() != dataclasses.replace(gpu, memory_bytes=gpu.memory_bytes // 2).validity()


def test_distance_at_its_edges():
    op = catalog.op("linear_scan")
    known = Case({"B": 4, "T": 1000, "D": 256, "N": 4}, "float32")

    def far(**changed):
        sizes = {"B": 4, "T": 1000, "D": 256, "N": 4} | changed
        return registry.distance(op, Case(sizes, "float32"), known)

    assert far() == 0
    assert far(T=4000) == far(T=250) == math.log2(registry.MAX_FACTOR)
    assert far(T=4001) is None and far(T=249) is None
    assert far(T=2000, D=64) == 2
    assert far(N=10**6) == 0, "free dims do not count"
    assert far(B=0) is None and far(D=10**400) is None
    huge = Case({"B": 4, "T": 10**400, "D": 256, "N": 4}, "float32")
    case = Case(huge.dims | {"T": 2 * 10**400}, "float32")
    assert registry.distance(op, case, huge) == 1
    steps = catalog.op("local_attention_step")
    exact = next(iter(steps.exact_dims))
    case = steps.cases[0]
    other = Case({n: s + (n == exact) for n, s in case.dims.items()}, case.dtype, case.flags)
    assert registry.distance(steps, other, case.plain()) is None


# provenance: what makes an entry stale

NOW = {"torch": "2.13.0", "triton": "3.7.1", "numba": "0.68.1", "driver": "570.1", "power_limit_watts": 700.0}


@pytest.fixture
def here_is(monkeypatch):
    monkeypatch.setattr(validity, "_here", lambda device: NOW)


@pytest.mark.parametrize(
    ("variant", "before", "differs"),
    [
        ("eager.sequential", {}, ()),
        ("eager.sequential", {"numba": "0.60"}, ()),
        ("eager.sequential", {"torch": "2.12.0"}, ("torch 2.12.0 (now 2.13.0)",)),
        ("numba.sequential", {"numba": "0.60", "triton": "3.0"}, ("numba 0.60 (now 0.68.1)",)),
        ("triton.sequential", {"triton": "3.6.0"}, ("triton 3.6.0 (now 3.7.1)",)),
        ("triton.sequential", {"driver": "550.5", "power_limit_watts": 400.0},
         ("driver 550.5 (now 570.1)", "power limit (W) 400.0 (now 700.0)")),
        ("eager.sequential", {"torch": None}, ()),
        ("eager.sequential", {"torch": ["2.12"]}, ("torch a list (now 2.13.0)",)),
    ],
)  # fmt: skip
def test_entry_is_stale_where_what_its_kernel_depends_on_differs(here_is, variant, before, differs):
    file = RegistryFile(schema_version=2, device=DeviceRecord(HERE.validity(), NOW | before), entries=[entry(variant)])
    assert validity.stale(file.entries[0], file, HERE) == differs


def test_stale_entry_is_used_explained_and_warned_of_once(path, monkeypatch, here_is):
    registry.publish(path, HERE, [entry()], NOW | {"torch": "2.11.0"})
    choice = select_with(path, monkeypatch)
    assert (choice.origin, choice.variant.name) == ("registry", "eager.sequential")
    assert "stale: measured with torch 2.11.0 (now 2.13.0); still used" in str(
        griffin_kernels.explain("linear_scan", CASE, HERE)
    )
    sizes = CASE.dims
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for time in (sizes["T"], sizes["T"] - 1):
            x = torch.zeros(sizes["B"], time, sizes["D"])
            griffin_kernels.linear_scan(x, x)
    assert [w.category for w in seen] == [errors.StaleWarning]
    assert "griffin tune --ops linear_scan" in str(seen[0].message)


def test_entries_keep_what_they_were_measured_with_when_others_are_published(path, here_is):
    other = Case(CASE.dims | {"T": 64}, CASE.dtype)
    registry.publish(path, HERE, [entry()], NOW | {"torch": "2.11.0"})
    registry.publish(path, HERE, [entry(case=other)], NOW)
    registry.publish(path, HERE, [], NOW)
    file = registry.load(path)
    told = {e.case.dims["T"]: validity.stale(e, file, HERE) for e in file.entries}
    assert told == {CASE["T"]: ("torch 2.11.0 (now 2.13.0)",), 64: ()}


def test_files_of_the_first_schema_still_load(path, monkeypatch):
    document = json.loads(published(path).read_text())
    document["schema_version"] = 1
    later = {"warm_median_s", "predicted_s", "noise_floor", "ties", "provenance"}
    document["entries"] = [{k: v for k, v in e.items() if k not in later} for e in document["entries"]]
    path.write_text(json.dumps(document))
    assert select_with(path, monkeypatch).origin == "registry"


# configurations are checked by value


@pytest.mark.parametrize(
    "config",
    [{"chunk": 0}, {"chunk": -16}, {"chunk": 2**40}, {"chunk": 17}, {"chunk": True}, {"chunk": 16.0}, {"chunk": [16]}],
    ids=str,
)
def test_configuration_that_the_tuner_would_not_try_is_not_used(path, monkeypatch, config):
    published(path, entry("eager.chunked", config=config))
    with pytest.warns(errors.RegistryWarning, match="chunk is"):
        assert select_with(path, monkeypatch).origin == "default"


def test_every_configuration_of_every_variant_passes_the_check():
    base = entry()
    for op in catalog.ops():
        for variant in catalog.variants(op).values():
            facts = {"op": op, "variant": variant.name, "source_hash": variant.source_hash}
            for config in itertools.islice(variant.all_configs(), 200):
                good = msgspec.structs.replace(base, **facts, config=config_dict(config))
                assert validity.kernel(good) == (variant, config)


# predictions

SKU = device.Device("cuda", "NVIDIA A100-SXM4-40GB", "sm_80", 108, 40 * 2**30, 40 * 2**20, warp_size=32)
"""As a datasheet describes it."""

REAL = dataclasses.replace(SKU, memory_bytes=42_298_834_944, last_level_cache_bytes=41_943_040, name="A100-SXM4-40GB")
"""As a driver reports it: by another name, with other bytes."""


def predicted(**facts):
    found = catalog.variant("linear_scan/triton.sequential")
    given = {"variant": found.name, "source_hash": found.source_hash, "status": "predicted", "median_s": None}
    return entry(**(given | {"predicted_s": 1e-3} | facts))


def test_prediction_holds_for_the_device_that_a_driver_reports(tmp_path, monkeypatch):
    registry.publish(tmp_path / f"{SKU.slug}.json", SKU, [predicted()], {})
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path))
    opened = registry.Registry.open(REAL)
    (match,) = opened.matches(catalog.op("linear_scan"), CASE)
    assert match.entry.status == "predicted" and not match.stale
    choice = dispatch.Choice(match.variant, match.config, "registry", "", match)
    category, words = choice.caveat()
    assert category is errors.PredictedWarning and "predicted without running" in words


@pytest.mark.parametrize(
    "changed",
    [{"units": 107}, {"arch": "sm_90"}, {"kind": "hip"}, {"name": "NVIDIA A100-SXM4-80GB"},
     {"name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "units": 14}, {"details": (("mig", True),)}],
    ids=lambda changed: str(next(iter(changed.values()))),
)  # fmt: skip
def test_prediction_is_not_used_on_another_device(path, changed):
    registry.publish(path, SKU, [predicted()], {})
    with pytest.raises(errors.RegistryError, match="of another device"):
        registry.load_for(path, dataclasses.replace(REAL, **changed))


def test_file_with_a_measurement_holds_for_its_own_device_only(path):
    registry.publish(path, SKU, [predicted(), entry(case=Case(CASE.dims | {"T": 64}, CASE.dtype))], {})
    assert registry.load_for(path, SKU)
    with pytest.raises(errors.RegistryError, match="of another device"):
        registry.load_for(path, REAL)


def test_measured_entry_goes_before_any_predicted_one():
    far = entry(case=Case(CASE.dims | {"T": CASE["T"] * 3}, CASE.dtype))
    foreseen = entry(status="predicted", variant="eager.sequential")
    record = DeviceRecord(HERE.validity(), {})
    files = [RegistryFile(schema_version=2, device=record, entries=[e]) for e in (foreseen, far)]
    found = registry.Registry(HERE, [("first", files[0]), ("second", files[1])]).matches(
        catalog.op("linear_scan"), CASE
    )
    assert [m.entry.status for m in found] == ["measured", "predicted"]


def test_measuring_takes_the_place_of_predictions_and_not_the_other_way(path):
    other = Case(CASE.dims | {"T": 64}, CASE.dtype)
    registry.publish(path, SKU, [predicted(), predicted(case=other)], {"torch": "1"})
    registry.publish(path, REAL, [entry()], {"torch": "2"})
    file = registry.load(path)
    assert file.device.validity == REAL.validity()
    assert sorted((e.case.dims["T"], e.status) for e in file.entries) == [(64, "predicted"), (CASE["T"], "measured")]
    registry.publish(path, SKU, [predicted(predicted_s=1.0), predicted(case=other, predicted_s=2.0)], {"torch": "3"})
    file = registry.load(path)
    assert (file.device.validity, file.device.provenance) == (REAL.validity(), {"torch": "2"})
    assert sorted((e.case.dims["T"], e.status, e.predicted_s) for e in file.entries) == [
        (64, "predicted", 2.0), (CASE["T"], "measured", None),
    ]  # fmt: skip


def test_predicted_entry_is_warned_of_once(path, monkeypatch):
    sizes = CASE.dims
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        choice = select_with(published(path, entry(status="predicted")), monkeypatch)
        for time in (sizes["T"], sizes["T"] - 1):
            x = torch.zeros(sizes["B"], time, sizes["D"])
            griffin_kernels.linear_scan(x, x)
    assert choice.origin == "registry"
    assert [w.category for w in seen] == [errors.PredictedWarning]


# files and folders that cannot be used as they should


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipe_as_registry_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(errors.RegistryError, match="not a regular file"):
        registry.load(tmp_path / "pipe.json")


def test_file_larger_than_any_registry_is_not_read(tmp_path):
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(registry.MOST_BYTES + 1)
    with pytest.raises(errors.RegistryError, match="64 MiB, more than any registry"):
        registry.load(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied; use a folder that can be"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (OSError(37, "No locks available"), "No locks available"),
        (NotImplementedError(), "its file system has no locks; use a folder on a local disk"),
        (filelock.Timeout("x"), "another process has held"),
    ],
    ids=["permission", "read-only", "NFS without locks", "no flock", "held for ever"],
)
def test_lock_that_cannot_be_had_is_one_sentence(path, monkeypatch, problem, said):
    def refuse(*_, **__):
        raise problem

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(errors.OutputFolderError, match=said):
        published(path)
    assert not path.exists()


def test_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputFolderError, match="cannot be written"):
        published(tmp_path / "file" / "registry.json")


def test_unreadable_home_is_no_reason_to_fail(monkeypatch):
    monkeypatch.setattr(registry, "user_folder", lambda: registry.Path("/proc/1/root/nowhere"))
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "~nobody-of-that-name/registry.json")
    dispatch.refresh()
    with pytest.warns(errors.RegistryWarning, match="cannot be read"):
        assert griffin_kernels.select("linear_scan", CASE, HERE).origin == "default"


@pytest.mark.process
def test_untuned_op_is_not_warned_of_again_where_its_file_was(path, monkeypatch):
    path.write_text("half a fi")
    x = torch.zeros(1, 4, 4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        select_with(path, monkeypatch)
        griffin_kernels.linear_scan(x, x)
    assert [w.category for w in seen] == [errors.RegistryWarning]
