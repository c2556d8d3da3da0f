"""Registries that ship: one per SKU, compiled once per architecture, bounded, and what a SKU starts from."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import msgspec
import pytest

from griffin_kernels import dispatch, errors, registry, registry_files
from griffin_kernels.contract import config_dict
from griffin_kernels.models import preset
from roofline.kernel_shares import SkuKernels
from roofline.target import of_sku
from roofline.work import part_kernels
from tests.launches import H100, report
from tuning.plan import planner
from tuning.plan.planner import Options
from tuning.predict import ship, time_model
from tuning.workers import compile_farm

H200 = "nvidia-h200-sxm"
REAL = dataclasses.replace(time_model.machine(H100).device, memory_bytes=85_029_158_912)
"""What a driver reports, which no datasheet knows to the byte."""


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The files of two SKUs of one architecture, with machine code made up, and what was asked of the compiler."""
    asked = []

    def compiled(requests, jobs=0, seconds=None):
        for key, request in requests:
            asked.append(key)
            # of a chunked scan, the default spills
            yield key, report(spill_bytes=400 if request.config == DEFAULT else 0, num_warps=4)

    def few(sku, budget, ops=()):
        where = time_model.machine(sku).device
        return planner.make(Options(ops=("linear_scan",), cases=("B8-T2048-D2560-bfloat16",)), where)[:1]

    monkeypatch.setattr(compile_farm, "compile_all", compiled)
    monkeypatch.setattr(ship, "jobs_of", few)
    monkeypatch.setattr(registry_files, "SHIPPED", tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (job,) = few(H100, "quick")
    DEFAULT = config_dict(job.default.config)
    dispatch.refresh()
    yield job, list(ship.ship((H100, H200), tmp_path, budget="default")), asked
    dispatch.refresh()


def test_an_architecture_is_compiled_once_for_all_its_skus(shipped):
    _, made, asked = shipped
    assert [file.path.name for file in made] == ["nvidia-h100-80gb-hbm3.json", "nvidia-h200.json"]
    assert len(asked) == len(set(asked)) > 1
    entries = [registry.load(file.path).entries for file in made]
    assert [len(found) for found in entries] == [file.entries for file in made] == [1, 1]
    # one machine code, two memories
    first, second = (found[0].predicted_s for found in entries)
    assert first > second
    assert all(found[0].status == "predicted" for found in entries)


def test_an_untuned_gpu_starts_from_the_models_choice(shipped):
    job, _, _ = shipped
    choice = dispatch.select("linear_scan", job.case, REAL)
    assert choice.origin == "registry" and choice.match.entry.status == "predicted"
    assert (choice.variant, choice.config) != (job.default.variant, job.default.config)
    other = time_model.machine("nvidia-h100-pcie").device
    assert dispatch.select("linear_scan", job.case, other).origin == "default"


def test_a_measurement_goes_before_what_ships(shipped):
    job, made, _ = shipped
    (found,) = registry.load(made[0].path).entries
    default = job.default
    mine = msgspec.structs.replace(
        found, status="measured", variant=default.variant.name, config=config_dict(default.config), median_s=1.0,
        source_hash=default.variant.source_hash, predicted_s=None,
    )  # fmt: skip
    registry.publish(registry.default_path(REAL), REAL, [mine], {})
    dispatch.refresh()
    choice = dispatch.select("linear_scan", job.case, REAL)
    assert (choice.variant, choice.match.entry.status) == (default.variant, "measured")


def test_a_file_with_measurements_is_left_as_it_is(shipped):
    _, made, _ = shipped
    file = registry.load(made[0].path)
    held = [msgspec.structs.replace(entry, status="measured", median_s=1.0) for entry in file.entries]
    registry.write(made[0].path, msgspec.structs.replace(file, entries=held))
    before = made[0].path.read_bytes()
    with pytest.raises(errors.RegistryError, match="holds measurements; choose another folder with --out"):
        list(ship.ship((H100,), made[0].path.parent))
    assert made[0].path.read_bytes() == before


def test_a_file_is_bounded_and_leaves_out_its_last_entries(shipped, tmp_path):
    _, made, _ = shipped
    (one,) = registry.load(made[0].path).entries
    many = [
        msgspec.structs.replace(one, case=msgspec.structs.replace(one.case, dims=one.case.dims | {"T": size}))
        for size in range(1, 1001)
    ]
    found = ship.write(H100, many, tmp_path)
    assert found.path.stat().st_size <= ship.MOST_BYTES
    assert found.entries + found.left_out == 1000 and 100 < found.entries < 1000
    assert max(entry.case["T"] for entry in registry.load(found.path).entries) == found.entries
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.Registry.open(REAL).matches(dispatch.catalog.op("linear_scan"), many[0].case)


def test_skus_by_architecture():
    found = ship.architectures(())
    assert {H100, H200, "nvidia-h100-pcie"} <= set(found["sm_90"])
    assert {"nvidia-l4", "nvidia-rtx-4090"} <= set(found["sm_89"]) and "amd-mi300x" in found["gfx942"]
    assert not any(sku.startswith(("google", "nvidia-v100")) for skus in found.values() for sku in skus)
    assert ship.architectures([H100]) == {"sm_90": [H100]}
    with pytest.raises(errors.DeviceError, match="is no GPU"):
        ship.architectures(["google-tpu-v3"])
    with pytest.raises(errors.UnknownDevice, match="nvidia-h100-sxm"):
        ship.architectures(["h100"])
    with pytest.raises(errors.ArgumentError, match="no budget 'huge'; there are quick, default, thorough"):
        list(ship.ship((H100,), budget="huge"))


def test_what_is_predicted_for_serves_the_forecasts_of_the_models():
    jobs = ship.jobs_of(H100, "quick")
    places = [job.place for job in jobs]
    assert len(places) == len(set(places))
    for model in ship.MODELS:
        for phase, batch, seq in ship.SHAPES:
            for kernels in part_kernels(preset(model), phase, batch, seq, "bfloat16").values():
                wanted = {(k.case.op, k.case.key) for k in kernels if k.case is not None}
                assert wanted <= set(places)


def test_a_forecast_reads_what_ships(shipped, monkeypatch):
    job, _, _ = shipped
    target = of_sku(H100)
    assert SkuKernels(ship.datasheet.datasheet(H100), target.ceilings).entries[0][1].case == job.case


def test_what_ships_is_bounded_predicted_and_of_a_sku():
    files = sorted((Path(registry_files.__file__).parent / "tuned").glob("*.json"))
    assert files
    for path in files:
        file = registry.load(path)
        assert path.stat().st_size <= ship.MOST_BYTES
        assert file.entries and {entry.status for entry in file.entries} == {"predicted"}
        sku = file.device.provenance["predicted_for"]
        assert path == ship.path_of(sku, path.parent)
        assert registry_files.same_sku(file.device.validity, time_model.machine(sku).device.validity())
