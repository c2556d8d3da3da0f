"""Registries of devices that are not there: which entry speaks for a case, and that torch is not needed to say so."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import msgspec
import pytest

from griffin_kernels import catalog, errors, kernel_sources, registry_files
from griffin_kernels.datasheet import datasheet
from griffin_kernels.models import preset
from griffin_kernels.nearness import Nearness
from griffin_kernels.ops.recurrent_block_step.cost import cost, make_case
from griffin_kernels.records import SCHEMA_VERSION, DeviceRecord, Entry, RegistryFile
from roofline.ceilings import Ceilings
from roofline.kernel_shares import SkuKernels, rule_of, tuned
from roofline.training_work import train_parts
from roofline.work import part_kernels

pytestmark = pytest.mark.unit

H100 = datasheet("nvidia-h100-sxm")
FACTS = {"kind": "cuda", "name": "NVIDIA H100 80GB HBM3", "arch": "sm_90", "units": 132, "mig": False}
OP, VARIANT = "recurrent_block_step", "triton.fused"


def case(batch=1, width=4096, dtype="bfloat16"):
    return make_case(batch, width, 16, 4, dtype)


def floor_s(at):
    return max(Ceilings.from_datasheet(H100).slow(cost(at), at.dtype, launches=0).values())


def entry(at=None, share=0.5, **facts):
    """An entry that reaches a share of its floor."""
    at = at or case()
    made = Entry(
        op=OP, case=at.plain(), variant=VARIANT, config={}, status="predicted", date="2026-11-28T00:00:00+00:00",
        source_hash=kernel_sources.source_hash(OP, VARIANT), reason="test", candidates=1,
        predicted_s=floor_s(at) / share,
    )  # fmt: skip
    return msgspec.structs.replace(made, **facts)


def measured(at=None, share=0.5):
    at = at or case()
    return entry(at, status="measured", predicted_s=None, median_s=floor_s(at) / share)


def write(folder, *entries, name="nvidia-h100-80gb-hbm3", **facts):
    folder.mkdir(parents=True, exist_ok=True)
    file = RegistryFile(schema_version=SCHEMA_VERSION, device=DeviceRecord(FACTS | facts, {}), entries=list(entries))
    (folder / f"{name}.json").write_bytes(msgspec.json.encode(file))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(named, user's, shipped) folders, all empty."""
    found = tmp_path / "named", tmp_path / "data" / "griffin-kernels" / "registry", tmp_path / "shipped"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(registry_files, "user_folder", lambda: found[1])
    monkeypatch.setattr(registry_files, "SHIPPED", found[2])
    return found


def known(at=None):
    return SkuKernels(H100, Ceilings.from_datasheet(H100))(at or case(), OP)


def test_a_measured_entry_goes_before_any_predicted_one(folders, monkeypatch):
    named, mine, shipped = folders
    assert known() is None
    write(shipped, entry(share=0.2))
    assert (known().status, known().share) == ("predicted", pytest.approx(0.2))
    write(mine, entry(share=0.3))
    assert known().share == pytest.approx(0.3)
    write(shipped, entry(share=0.2), measured(case(width=2560), share=0.4))
    assert (known().status, known().share) == ("measured", pytest.approx(0.4))
    write(named, measured(share=0.6))
    monkeypatch.setenv(registry_files.ENVIRONMENT_VARIABLE, str(named))
    assert known().share == pytest.approx(0.6)
    assert known().why == f"triton.fused, measured at 60% of its floor ({case().key})"


def test_beyond_the_limit_of_look_up_a_share_is_a_guess(folders):
    write(folders[2], entry(case(batch=8), share=0.25))
    assert known(case(batch=32)).status == "predicted"
    far = known(case(batch=33))
    assert (far.status, far.share) == ("guessed", pytest.approx(0.25))
    assert known(case(dtype="float32")) is None


def test_without_a_registry_the_nearest_sku_of_the_vendor_is_a_guess(folders):
    def on(sku):
        sheet = datasheet(sku)
        return SkuKernels(sheet, Ceilings.from_datasheet(sheet))(case(), OP)

    write(folders[2], entry(share=0.5))
    assert (on("nvidia-b200").status, on("nvidia-b200").share) == ("guessed", pytest.approx(0.5))
    assert on("nvidia-b200").why.endswith(f"guessed to reach 50% of its floor ({case().key}), on nvidia-h100-sxm")
    assert on("amd-mi300x") is None and on("nvidia-h100-sxm").status == "predicted"
    assert on("nvidia-h200-sxm").share == on("nvidia-l4").share == pytest.approx(0.5)


def test_what_is_of_another_device_or_has_changed_is_not_used(folders):
    write(folders[2], entry(source_hash="0" * 16))
    assert known() is None
    for facts in ({"units": 114}, {"arch": "sm_100"}, {"mig": True}, {"name": "NVIDIA H100 PCIe"}):
        write(folders[2], entry(), **facts)
        assert known() is None
    write(folders[2], entry(predicted_s=None))
    assert known() is None
    write(folders[2], entry())
    assert known() is not None


def test_a_broken_file_gives_one_warning_and_the_next_is_used(folders):
    folders[1].mkdir(parents=True)
    (folders[1] / "nvidia-h100-80gb-hbm3.json").write_text("{")
    write(folders[2], entry())
    where = SkuKernels(H100, Ceilings.from_datasheet(H100))
    with pytest.warns(errors.RegistryWarning, match="not a valid registry") as caught:
        assert where(case(), OP).status == "predicted"
        assert where(case(batch=2), OP).status == "predicted"
    assert len(caught) == 1


def test_no_prediction_beats_the_floor():
    ceilings = Ceilings.from_datasheet(H100)
    assert tuned(entry(share=3.0), ceilings).share == 1.0
    assert tuned(measured(share=3.0), ceilings).share == pytest.approx(3.0)


def test_the_rule_without_torch_is_the_contract():
    configs = [preset(f"{family}-100m") for family in ("hawk", "griffin", "mqa")] + [preset("recurrentgemma-2b")]
    passes = [part_kernels(config, phase, 1, 64, "bfloat16") for config in configs for phase in ("prefill", "decode")]
    steps = [part.kernels for config in configs for part in train_parts(config, 1, 64, "bfloat16", "none", "adamw")]
    kernels = [kernel for found in passes for part in found.values() for kernel in part]
    kernels += [kernel for found in steps for kernel in found]
    asked = {kernel.case.op for kernel in kernels if kernel.case is not None}
    assert {"recurrent_block", "recurrent_block_step", "local_attention", "local_attention_step"} <= asked
    assert {"recurrent_block_bwd", "local_attention_bwd"} <= asked
    for name in asked:
        op = catalog.op(name)
        assert rule_of(name) == Nearness(op.exact_dims, op.free_dims, op.minor_flags)


@pytest.mark.parametrize("op", ["linear_scan", OP, "recurrent_block", "local_attention_step"])
def test_sources_are_told_without_importing_them(op):
    for name, variant in catalog.variants(op).items():
        assert kernel_sources.source_hash(op, name) == variant.source_hash
    assert kernel_sources.source_hash(op, "triton.none") is None


@pytest.mark.process
def test_a_forecast_takes_the_registry_without_torch_and_soon(tmp_path):
    write(tmp_path / "griffin-kernels" / "registry", entry(case(width=5632)))
    code = (
        "import sys, time; from reports.cli import app\n"
        "sys.argv = 'griffin roofline forward --model griffin-7b --device nvidia-h100-sxm --phase decode'.split()\n"
        "try: app()\nexcept SystemExit as end: assert not end.code\n"
        "import json; print(json.dumps([[m for m in ('torch', 'triton', 'numba') if m in sys.modules], "
        "time.process_time()]))"
    )
    where = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=where)
    imported, seconds = json.loads(done.stdout.splitlines()[-1])
    first = done.stdout.splitlines()[0]
    assert imported == [] and seconds < 2
    assert "tokens/s" in first and "in a CUDA graph" in first
    assert f"{OP} predicted" in first and "FlashAttention-3 as published" in first


def test_far_sizes_have_a_finite_distance(folders):
    write(folders[2], entry(case(batch=1)))
    assert known(case(batch=2**40)).status == "guessed"
    assert math.isfinite(known(case(batch=2**40)).share)
