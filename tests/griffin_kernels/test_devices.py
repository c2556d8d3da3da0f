"""Datasheets: each figure has a source and agrees with what the others imply; nothing is copied from a neighbour."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from griffin_kernels import datasheet, errors
from griffin_kernels.datasheet import Datasheet, TensorTflops

pytestmark = pytest.mark.unit

SKUS = datasheet.skus()

# FLOP of one unit in one clock, a fused multiply-add being two. Vector float32 is 2 x lanes: SMs of sm_70, sm_75 and
# sm_80 and CUs of gfx90a have 64 lanes, later SMs 128, CUs of CDNA 3 and 4 issue two on each of 64.
VECTOR = {
    "sm_70": 128,
    "sm_75": 128,
    "sm_80": 128,
    "sm_86": 256,
    "sm_89": 256,
    "sm_90": 256,
    "sm_100": 256,
    "sm_120": 256,
    "gfx90a": 128,
    "gfx942": 256,
    "gfx950": 256,
}
# Dense 16-bit products. SMs: tensor cores x FMA x 2, so 8 x 64 x 2 for sm_70 and sm_75, 4 x 256 x 2 for sm_80,
# 4 x 128 x 2 for sm_86 and sm_89, then twice sm_80 in sm_90 and twice that in sm_100. CUs: 4 matrix cores, 256 FLOP
# each in gfx90a, doubling with each generation. TPU cores: MXUs (2 in v3, 4 in v5e) x 128 x 128 x 2.
TENSOR = {
    "sm_70": 1024,
    "sm_75": 1024,
    "sm_80": 2048,
    "sm_86": 1024,
    "sm_89": 1024,
    "sm_90": 4096,
    "sm_100": 8192,
    "sm_120": 1024,
    "gfx90a": 1024,
    "gfx942": 2048,
    "gfx950": 4096,
    "tpu-v3": 65536,
    "tpu-v5e": 131072,
}
NO_BFLOAT16 = {"sm_70", "sm_75"}
NO_FP8 = {"sm_70", "sm_75", "sm_80", "sm_86", "gfx90a", "tpu-v3", "tpu-v5e"}

# Vendors print two or three digits: 8.1 for 8.14 is off by 0.5%, and 362 for the L40S, whose boost clock gives 366,
# by 1.1%. The errors that this catches are factors: two for sparsity or for the accumulator, or another chip's rate.
TOLERANCE = 0.02

# Where a vendor states no clock, the figure implies one. Parts of these families boost to between 0.94 GHz (TPU v3)
# and 2.6 GHz; a quantity that is wrong by two leaves that range or contradicts the other figure.
CLOCK_GHZ = (0.9, 2.8)
# H100 and B200 state tensor peaks at a clock 8% and 12% below that of their vector peaks.
CLOCK_SPREAD = 0.15

RANGES = {
    "memory_gb": (16, 288),
    "dram_gb_per_s": (300, 8000),
    "l2_mb": (4, 126),
    "infinity_cache_mb": (256, 256),
    "units": (1, 304),
    "boost_clock_mhz": (1300, 2600),
    "tensor_clock_mhz": (1300, 2600),
    "memory_bus_bits": (192, 8192),
    "memory_gbit_per_s_per_pin": (1, 30),
    "fp32_tflops": (3, 200),
    "special_per_unit_per_clock": (16, 16),
    "link_gb_per_s": (300, 1800),
    "tdp_w": (70, 1400),
    "dram_latency_ns": (200, 800),
    "event_overhead_us": (2, 15),
    "graph_node_us": (0.5, 4),
    "stream_kernel_us": (1, 8),
    "l2_bytes_per_clock": (10, 64),
}
ACHIEVED = ("achieved_dram_gb_per_s", *(f"achieved_{dtype}_tflops" for dtype in ("bfloat16", "float16", "float32")))
# FLOP per byte in 16-bit: 76 for the RTX 3090, whose tensor units are halved, to 419 for the L40S on GDDR6.
RIDGE = (60, 500)

# Equal in vector and tensor peak, bandwidth and capacity, because the vendor's own tables say so.
SAME_BUT_FOR = {
    ("nvidia-a100-40gb-pcie", "nvidia-a100-40gb-sxm"): "one chip and memory on two boards, of 250 and 400 W",
}

# The FLOP per byte of 16-bit products in the survey of vendors' figures that the files were written from.
RIDGES = {
    "nvidia-a100-40gb-sxm": 201,
    "nvidia-a100-80gb-sxm": 153,
    "nvidia-a100-80gb-pcie": 161,
    "nvidia-h100-sxm": 295,
    "nvidia-h100-pcie": 371,
    "nvidia-h100-nvl": 214,
    "nvidia-h200-sxm": 206,
    "nvidia-b200": 293,
    "nvidia-gb200": 312,
    "nvidia-l4": 403,
    "nvidia-l40s": 419,
    "nvidia-a10": 208,
    "nvidia-t4": 203,
    "nvidia-v100-16gb-sxm2": 139,
    "nvidia-v100-32gb-sxm2": 139,
    "nvidia-rtx-3090": 76,
    "nvidia-rtx-4090": 164,
    "nvidia-rtx-5090": 117,
    "amd-mi250x-gcd": 117,
    "amd-mi300x": 247,
    "amd-mi325x": 218,
    "amd-mi355x": 314,
    "google-tpu-v3": 137,
    "google-tpu-v5e": 241,
}


def near(value: float, expected: float, tolerance: float = TOLERANCE) -> bool:
    return abs(value / expected - 1) <= tolerance


def sixteen_bit(sheet: Datasheet) -> float:
    peak = sheet.tensor_tflops.bfloat16 or sheet.tensor_tflops.float16
    assert peak is not None, sheet.sku
    return peak


def range_problems(sheet: Datasheet) -> list[str]:
    problems = []
    for name, (low, high) in RANGES.items():
        value = getattr(sheet, name)
        if value is not None and not low <= value <= high:
            problems.append(f"{name} {value} is not in {low} to {high}")
    ridge = sixteen_bit(sheet) * 1e3 / sheet.dram_gb_per_s
    if not RIDGE[0] <= ridge <= RIDGE[1]:
        problems.append(f"dram_gb_per_s: {ridge:.0f} FLOP per byte is not in {RIDGE[0]} to {RIDGE[1]}")
    return problems


def rate_problems(sheet: Datasheet) -> list[str]:
    """units x rate x clock, with the vendor's clock or with the clock that the figure implies."""
    if sheet.units is None:
        return []
    # GeForce tensor units accumulate in float32 at half the rate of those on boards for data centres.
    tensor_rate = TENSOR[sheet.arch] / (2 if "GeForce" in sheet.name else 1)
    figures = [("tensor_tflops", sixteen_bit(sheet), tensor_rate, sheet.tensor_clock_mhz or sheet.boost_clock_mhz)]
    if sheet.fp32_tflops is not None and sheet.arch in VECTOR:
        figures.append(("fp32_tflops", sheet.fp32_tflops, VECTOR[sheet.arch], sheet.boost_clock_mhz))
    problems, implied = [], []
    for name, tflops, rate, clock_mhz in figures:
        implied.append(tflops * 1e3 / (sheet.units * rate))
        if clock_mhz is not None and not near(implied[-1] * 1e3, clock_mhz):
            problems.append(f"{name} {tflops} implies a clock of {implied[-1]:.2f} GHz, it is {clock_mhz} MHz")
        if not CLOCK_GHZ[0] <= implied[-1] <= CLOCK_GHZ[1]:
            problems.append(f"{name} {tflops} implies a clock of {implied[-1]:.2f} GHz")
    if max(implied) > min(implied) * (1 + CLOCK_SPREAD):
        problems.append(f"fp32_tflops and tensor_tflops imply clocks of {implied} GHz")
    return problems


def dtype_problems(sheet: Datasheet) -> list[str]:
    """Matrix units take half as many numbers of twice the width; some dtypes came with a generation."""
    tensor, problems = sheet.tensor_tflops, []
    if tensor.tf32 is not None and not near(tensor.tf32 * 2, sixteen_bit(sheet)):
        problems.append(f"tensor_tflops.tf32 {tensor.tf32} is not half of {sixteen_bit(sheet)}")
    # 733 is 2.02 x 362 in NVIDIA's table of the L40S.
    if tensor.fp8 is not None and not near(tensor.fp8, 2 * sixteen_bit(sheet), 0.03):
        problems.append(f"tensor_tflops.fp8 {tensor.fp8} is not twice {sixteen_bit(sheet)}")
    if tensor.bfloat16 is not None and tensor.float16 is not None and tensor.bfloat16 != tensor.float16:
        problems.append(f"tensor_tflops.bfloat16 {tensor.bfloat16} is not that of float16, {tensor.float16}")
    if tensor.bfloat16 is not None and sheet.arch in NO_BFLOAT16:
        problems.append(f"tensor_tflops.bfloat16: {sheet.arch} has none")
    if tensor.fp8 is not None and sheet.arch in NO_FP8:
        problems.append(f"tensor_tflops.fp8: {sheet.arch} has none")
    if ("GeForce" in sheet.name) != (sheet.tensor_accumulate == "float32"):
        problems.append("tensor_accumulate is for GeForce boards, and needed there")
    # Matrix products reach half to nine tenths of the peak, and down to a quarter on boards of 70 W.
    least = 0.25 if sheet.tdp_w is not None and sheet.tdp_w < 100 else 0.45
    for dtype in ("bfloat16", "float16", "float32"):
        achieved, peak = getattr(sheet, f"achieved_{dtype}_tflops"), sheet.tensor_flops_per_s(dtype)
        if achieved is not None and (peak is None or not least <= achieved * 1e12 / peak <= 0.95):
            problems.append(f"achieved_{dtype}_tflops {achieved} of {peak}")
    return problems


def memory_problems(sheet: Datasheet) -> list[str]:
    problems = []
    achieved = sheet.achieved_dram_gb_per_s
    if achieved is not None and not 0.7 <= achieved / sheet.dram_gb_per_s <= 0.95:
        problems.append(f"achieved_dram_gb_per_s {achieved} of {sheet.dram_gb_per_s}")
    if sheet.memory_bus_bits is not None:
        # A bus of HBM is made of stacks of 1024 bits, any other of chips of 32: a wide bus is HBM. Either comes in
        # powers of two gigabytes, twice as many chips where two share the pins.
        pieces = sheet.memory_bus_bits / (1024 if sheet.memory_bus_bits >= 4096 else 32)
        if not math.log2(sheet.memory_gb / pieces).is_integer():
            problems.append(f"memory_gb {sheet.memory_gb} does not come in {pieces:g} stacks or chips")
        if sheet.memory_gbit_per_s_per_pin is not None:
            rate = sheet.memory_bus_bits / 8 * sheet.memory_gbit_per_s_per_pin
            # NVIDIA prints 900 for the 897 GB/s of the V100's memory clock.
            if not near(sheet.dram_gb_per_s, rate, 0.005):
                problems.append(f"dram_gb_per_s {sheet.dram_gb_per_s} is not bus x data rate, {rate:.0f}")
    for text in (sheet.sku, sheet.name, *sheet.driver_names):
        for size in re.findall(r"(\d+) ?GB", text, re.IGNORECASE):
            if int(size) != sheet.memory_gb:
                problems.append(f"memory_gb {sheet.memory_gb} is not that of {text!r}")
    return problems


def source_problems(sheet: Datasheet) -> list[str]:
    """Every figure, and every name by which a device is recognised, has a source; no source is of something absent."""
    stated = {
        name for name in (*RANGES, *ACHIEVED, "tensor_tflops", "driver_names") if getattr(sheet, name) not in (None, ())
    }
    sourced = {name for source in sheet.sources for name in source.fields}
    problems = [f"{name} has no source" for name in sorted(stated - sourced)]
    problems += [f"a source is of {name}, which is absent" for name in sorted(sourced - stated)]
    problems += [
        f"date {s.date!r} is not year-month" for s in sheet.sources if not re.fullmatch(r"20\d\d-\d\d", s.date)
    ]
    if (sheet.link_gb_per_s is None) != (sheet.link_direction is None):
        problems.append("link_gb_per_s and link_direction go together")
    return problems


def problems(sheet: Datasheet) -> list[str]:
    checks = (range_problems, rate_problems, dtype_problems, memory_problems, source_problems)
    return [problem for check in checks for problem in check(sheet)]


def copies(sheets: list[Datasheet]) -> list[tuple[str, str]]:
    """Pairs of SKUs with the same figures."""

    def figures(sheet: Datasheet) -> tuple[float | None, ...]:
        return sheet.fp32_tflops, sixteen_bit(sheet), sheet.dram_gb_per_s, sheet.memory_gb

    return [(a.sku, b.sku) for a, b in itertools.combinations(sheets, 2) if figures(a) == figures(b)]


def changed(sku: str, **fields: object) -> Datasheet:
    return msgspec.structs.replace(datasheet.datasheet(sku), **fields)


def tensor(sku: str, **peaks: float) -> TensorTflops:
    return msgspec.structs.replace(datasheet.datasheet(sku).tensor_tflops, **peaks)


@pytest.mark.parametrize("sku", SKUS)
def test_figures_are_plausible_and_have_sources(sku: str) -> None:
    assert problems(datasheet.datasheet(sku)) == []


def test_no_two_skus_are_alike() -> None:
    assert copies([datasheet.datasheet(sku) for sku in SKUS]) == list(SAME_BUT_FOR)


def test_arch_tables_cover_every_sku() -> None:
    assert {datasheet.datasheet(sku).arch for sku in SKUS} == set(TENSOR)


def ridge(sheet: datasheet.Datasheet, dtype: str) -> float | None:
    """FLOP per byte of memory traffic from which a matrix product in ``dtype`` is bound by arithmetic."""
    peak = sheet.tensor_flops_per_s(dtype)
    return None if peak is None else peak / sheet.dram_bytes_per_s


@pytest.mark.parametrize("sku", RIDGES)
def test_ridge_points_are_those_of_the_survey(sku: str) -> None:
    sheet = datasheet.datasheet(sku)
    assert (ridge(sheet, "bfloat16") or ridge(sheet, "float16")) == pytest.approx(RIDGES[sku], rel=0.02)


# Errors found in the device tables of other tools: sparse for dense, a neighbour's figure, a typing slip.
KNOWN_ERRORS = {
    "H100 sparse bfloat16": (
        changed("nvidia-h100-sxm", tensor_tflops=tensor("nvidia-h100-sxm", bfloat16=1979, float16=1979)),
        "tensor_tflops 1979",
    ),
    "H100 with all its peaks sparse": (
        changed("nvidia-h100-sxm", tensor_tflops=TensorTflops(tf32=989, bfloat16=1979, float16=1979, fp8=3958)),
        "tensor_tflops 1979",
    ),
    "H100 with the A100's tf32": (
        changed("nvidia-h100-sxm", tensor_tflops=tensor("nvidia-h100-sxm", tf32=156)),
        "tensor_tflops.tf32 156",
    ),
    "H100 with tf32 for float32": (changed("nvidia-h100-sxm", fp32_tflops=494), "fp32_tflops 494"),
    "L4 with the H100's bandwidth": (changed("nvidia-l4", dram_gb_per_s=3350), "dram_gb_per_s 3350"),
    "B200 with the H100's peaks": (
        changed("nvidia-b200", fp32_tflops=67, tensor_tflops=datasheet.datasheet("nvidia-h100-sxm").tensor_tflops),
        "tensor_tflops 989",
    ),
    "B200 with fp8 for bfloat16": (
        changed("nvidia-b200", tensor_tflops=tensor("nvidia-b200", bfloat16=4500, float16=4500)),
        "tensor_tflops.fp8 4500",
    ),
    "A10 of 28 GB": (changed("nvidia-a10", memory_gb=28), "memory_gb 28"),
    "V100 of 16 GB with 32": (changed("nvidia-v100-16gb-sxm2", memory_gb=32), "memory_gb 32"),
    "V100 with bfloat16": (
        changed("nvidia-v100-16gb-sxm2", tensor_tflops=TensorTflops(bfloat16=125, float16=125)),
        "tensor_tflops.bfloat16: sm_70",
    ),
    "RTX 3090 at the vector rate": (
        changed("nvidia-rtx-3090", tensor_tflops=TensorTflops(bfloat16=35.6, float16=35.6)),
        "tensor_tflops 35.6",
    ),
    "RTX 4090 with float16 accumulation": (
        changed("nvidia-rtx-4090", tensor_tflops=TensorTflops(tf32=165, bfloat16=330, float16=330, fp8=660)),
        "tensor_tflops 330",
    ),
    "RTX 5090 in other units": (changed("nvidia-rtx-5090", dram_gb_per_s=1792e3), "dram_gb_per_s 1792000"),
    "MI250X as one device": (changed("amd-mi250x-gcd", units=220), "tensor_tflops 191.5"),
    "Infinity Cache of 64 MB": (changed("amd-mi355x", infinity_cache_mb=64), "infinity_cache_mb 64"),
    "H100 with the bandwidth of its writes": (
        changed("nvidia-h100-sxm", achieved_dram_gb_per_s=3300),
        "achieved_dram_gb_per_s 3300",
    ),
    "L4 that reaches its float32 peak": (changed("nvidia-l4", achieved_float32_tflops=30), "achieved_float32_tflops"),
    "a latency in cycles": (changed("nvidia-h100-sxm", dram_latency_ns=1380), "dram_latency_ns 1380"),
    "a figure without a source": (changed("nvidia-l40s", l2_mb=96), "l2_mb has no source"),
}


@pytest.mark.parametrize("error", KNOWN_ERRORS)
def test_known_errors_of_other_tables_are_caught(error: str) -> None:
    sheet, expected = KNOWN_ERRORS[error]
    assert any(problem.startswith(expected) for problem in problems(sheet)), problems(sheet)


def test_a_copied_sheet_is_caught() -> None:
    h100 = datasheet.datasheet("nvidia-h100-sxm")
    assert copies([h100, msgspec.structs.replace(h100, sku="nvidia-b200", units=148)]) == [(h100.sku, "nvidia-b200")]


def test_figures_in_si_units() -> None:
    sheet = datasheet.datasheet("nvidia-a100-80gb-sxm")
    assert sheet.memory_bytes == 80_000_000_000
    assert sheet.dram_bytes_per_s == 2.039e12
    assert sheet.last_level_cache_bytes == 40 * 2**20
    assert sheet.vector_flops_per_s == 19.5e12
    assert sheet.tensor_flops_per_s("bfloat16") == sheet.tensor_flops_per_s("float16") == 312e12
    assert sheet.special_ops_per_s == pytest.approx(108 * 16 * 1.41e9)
    assert ridge(sheet, "bfloat16") == pytest.approx(312e12 / 2.039e12)


def test_float32_is_the_vector_rate_and_tf32_is_asked_for() -> None:
    sheet = datasheet.datasheet("nvidia-h100-sxm")
    assert sheet.tensor_flops_per_s("float32") == sheet.vector_flops_per_s == 67e12
    assert sheet.tensor_flops_per_s("tf32") == 494.5e12
    assert sheet.tensor_flops_per_s("float8_e4m3fn") == sheet.tensor_flops_per_s("fp8") == 1979e12


def test_what_is_unknown_is_none() -> None:
    t4, tpu, gb200 = (datasheet.datasheet(sku) for sku in ("nvidia-t4", "google-tpu-v5e", "nvidia-gb200"))
    assert t4.tensor_flops_per_s("bfloat16") is None
    assert ridge(t4, "bfloat16") is None
    assert t4.tensor_flops_per_s("float64") is None
    assert t4.link_gb_per_s is None
    assert tpu.vector_flops_per_s is None
    assert tpu.tensor_flops_per_s("float32") is None
    assert tpu.last_level_cache_bytes is None
    assert gb200.special_ops_per_s is None, "its clock is not published"
    assert gb200.achieved_dram_gb_per_s is None, "nobody published a measurement, and a B200 is another board"


def test_the_last_level_cache_of_an_mi300x_is_its_infinity_cache() -> None:
    assert datasheet.datasheet("amd-mi300x").last_level_cache_bytes == 256 * 2**20


def test_driver_names_find_exactly_their_sku() -> None:
    names = [(name, sku) for sku in SKUS for name in datasheet.datasheet(sku).driver_names]
    assert len({name for name, _ in names}) == len(names)
    for name, sku in names:
        found = datasheet.find(name)
        assert found is not None and found.sku == sku


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA H100",
        "NVIDIA H200 NVL",
        "NVIDIA A10G",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "nvidia-h100-sxm",
        "TPU v3",
    ],
)
def test_a_name_that_no_sku_reports_finds_nothing(name: str) -> None:
    assert datasheet.find(name) is None


@pytest.mark.parametrize(
    ("sku", "near_ones"),
    [
        ("nvidia-h100", ["nvidia-h100-sxm", "nvidia-h100-pcie", "nvidia-h100-nvl"]),
        ("H200", ["nvidia-h200-sxm"]),
        ("nvidia-rtx4090", ["nvidia-rtx-4090"]),
        ("mi300", ["amd-mi300x"]),
        ("Tesla T4", ["nvidia-t4"]),
        ("NVIDIA-H100-SXM", ["nvidia-h100-sxm"]),
        ("../../secrets", ["none is near"]),
        ("", ["none is near"]),
    ],
)
def test_unknown_sku_lists_the_near_ones(sku: str, near_ones: list[str]) -> None:
    with pytest.raises(errors.UnknownDevice) as caught:
        datasheet.datasheet(sku)
    message = str(caught.value)
    assert repr(sku) in message and "griffin roofline list" in message and "\n" not in message
    assert all(near_one in message for near_one in near_ones)
    assert isinstance(caught.value, errors.DeviceError) and isinstance(caught.value, KeyError)


GOOD = (datasheet.FOLDER / "nvidia-t4.toml").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor = ", "is not TOML"),
        (GOOD.replace("memory_gb = 16", 'memory_gb = "16"'), "$.memory_gb"),
        (GOOD.replace("memory_gb = 16", "memory_gb = -16"), "$.memory_gb"),
        (GOOD.replace("memory_gb = 16\n", ""), "memory_gb"),
        (GOOD.replace("memory_gb = 16", "memory_gb = 16\nmemory_gib = 16"), "memory_gib"),
        (GOOD.replace("float16 = 65", "float12 = 65"), "$.tensor_tflops"),
        (GOOD.replace('vendor = "NVIDIA"', 'vendor = "Nvidea"'), "$.vendor"),
    ],
)
def test_a_broken_file_is_named_with_its_field(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "nvidia-t4.toml"
    path.write_text(text)
    with pytest.raises(errors.DatasheetError) as caught:
        datasheet.load(path)
    assert str(path) in str(caught.value) and expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.DatasheetError, match=r"absent\.toml cannot be read"):
        datasheet.load(tmp_path / "absent.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.DatasheetError, match=r"binary\.toml is not TOML"):
        datasheet.load(path)


@pytest.mark.process
def test_datasheets_need_no_torch() -> None:
    code = (
        "import sys; from griffin_kernels import datasheet; datasheet.find('Tesla T4')\n"
        "heavy = {'torch', 'triton', 'numpy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
