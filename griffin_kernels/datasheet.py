"""Datasheets: what the vendor says an accelerator can do, one TOML file per exact SKU in ``devices/``.

Figures are peaks for dense arithmetic, in the unit that the field's name ends in, and what others measured and
published; every figure has a source. A figure that no source confirms is absent and reads as None, and it is never
filled in from a neighbouring SKU. Peaks are upper bounds: what a machine reaches is measured, not read here.

A CPU has no datasheet, since cores, clocks and memory channels differ from machine to machine: ``device.cpu()``
describes the CPU there is, from what the machine itself says.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from griffin_kernels import errors
from griffin_kernels.texts import shortened, unmarked

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]

FOLDER = Path(__file__).parent / "devices"

DRAM_LATENCY_S = 0.7e-6
"""From the issue of a load from DRAM to its use with full queues: 1.0 us on an A100 and 0.8 us on a GH200 that read at
full bandwidth, by Little's law (RRZE-HPC gpu-benches, gpu-stream). What hosts of kernels size their chunks by; the
latency of an idle device is ``Datasheet.dram_latency_ns``."""

MAX_NEAR = 4
"""How many near SKUs the message about an unknown one lists."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where figures come from.

    fields: names of the fields that it speaks for. date: year and month of the version that was read, else of reading
    it. note: how a figure follows from the source where it does not stand there as such.
    """

    fields: tuple[str, ...]
    title: str
    date: str
    url: str | None = None
    note: str | None = None


class TensorTflops(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dense matrix-unit peaks by input dtype, TFLOP/s; a dtype that the device lacks, or that is unknown, is absent."""

    tf32: Positive | None = None
    bfloat16: Positive | None = None
    float16: Positive | None = None
    fp8: Positive | None = None


class Datasheet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator as software sees it; fields are as in the file, properties are in SI units.

    sku: the file's name. driver_names: what ``torch.cuda.get_device_name()`` (JAX: ``device_kind``) reports for this
    SKU and no other.
    arch: ``sm_90``, ``gfx942``, ``tpu-v3``. units: SMs, CUs or TPU cores.
    memory_gb: capacity as the vendor prints it, 1 GB = 10^9 bytes. Drivers mostly report a little more.
    dram_gb_per_s: peak bandwidth of the device memory.
    memory_bus_bits, memory_gbit_per_s_per_pin: width and data rate of the memory bus, whose product is that bandwidth.
    l2_mb, infinity_cache_mb: caches as the vendor prints them, 1 MB = 2^20 bytes, as caches are counted.
    boost_clock_mhz: the clock behind ``fp32_tflops``. tensor_clock_mhz: the clock behind ``tensor_tflops`` where the
    vendor uses another one.
    fp32_tflops: vector float32, a fused multiply-add being two operations.
    tensor_accumulate: the accumulator that ``tensor_tflops`` is for, where the rate depends on it.
    special_per_unit_per_clock: exp2, log2, reciprocal, rsqrt, tanh results of one unit in one clock.
    link_gb_per_s: all links to other accelerators together, in the sense of ``link_direction``: ``duplex`` is both
    directions added up.
    tdp_w: board power.

    What somebody measured and published, absent where nobody did; ``roofline.reached`` says what is assumed then:

    achieved_bfloat16_tflops, achieved_float16_tflops, achieved_float32_tflops: large matrix products; float32 in full,
    without tf32. A board whose power limit holds its clocks down reaches far less than its peaks.
    achieved_dram_gb_per_s: kernels that stream, bytes read and written together.
    dram_latency_ns: from the issue of a load from idle device memory to its use, one pointer after the other.
    event_overhead_us: the a of t = a + bytes / b, for one cold kernel that streams, timed by events.
    graph_node_us, stream_kernel_us: from the start of one of many small kernels to that of the next, in a CUDA or HIP
    graph and on a stream; the kernel is included.
    l2_bytes_per_clock: from the second-level cache into one unit, of large transfers by all units together.
    """

    sku: str
    vendor: Literal["NVIDIA", "AMD", "Google"]
    name: str
    driver_names: tuple[str, ...]
    arch: str
    memory_gb: Positive
    dram_gb_per_s: Positive
    sources: Annotated[tuple[Source, ...], msgspec.Meta(min_length=1)]
    tensor_tflops: TensorTflops
    tensor_accumulate: Literal["float32", "float16"] | None = None
    fp32_tflops: Positive | None = None
    units: Count | None = None
    boost_clock_mhz: Positive | None = None
    tensor_clock_mhz: Positive | None = None
    special_per_unit_per_clock: Positive | None = None
    memory_bus_bits: Count | None = None
    memory_gbit_per_s_per_pin: Positive | None = None
    l2_mb: Positive | None = None
    infinity_cache_mb: Positive | None = None
    link_gb_per_s: Positive | None = None
    link_direction: Literal["duplex"] | None = None
    tdp_w: Positive | None = None
    achieved_bfloat16_tflops: Positive | None = None
    achieved_float16_tflops: Positive | None = None
    achieved_float32_tflops: Positive | None = None
    achieved_dram_gb_per_s: Positive | None = None
    dram_latency_ns: Positive | None = None
    event_overhead_us: Positive | None = None
    graph_node_us: Positive | None = None
    stream_kernel_us: Positive | None = None
    l2_bytes_per_clock: Positive | None = None

    @property
    def memory_bytes(self) -> int:
        """Device memory, bytes."""
        return round(self.memory_gb * 1e9)

    @property
    def dram_bytes_per_s(self) -> float:
        """Peak bandwidth of the device memory, bytes per second."""
        return self.dram_gb_per_s * 1e9

    @property
    def last_level_cache_bytes(self) -> int | None:
        """The cache next to memory, bytes: AMD's Infinity Cache where there is one, else L2; None if unknown."""
        size = self.infinity_cache_mb or self.l2_mb
        return None if size is None else round(size * 2**20)

    @property
    def vector_flops_per_s(self) -> float | None:
        """Peak of the vector units in float32, FLOP per second: the roof of scans and elementwise work."""
        return None if self.fp32_tflops is None else self.fp32_tflops * 1e12

    @property
    def special_ops_per_s(self) -> float | None:
        """Peak of the special function units, results per second: units x rate x clock, None if one is unknown."""
        if self.units is None or self.special_per_unit_per_clock is None or self.boost_clock_mhz is None:
            return None
        return self.units * self.special_per_unit_per_clock * self.boost_clock_mhz * 1e6

    def tensor_flops_per_s(self, dtype: str) -> float | None:
        """Dense peak of a matrix product in ``dtype``, FLOP per second; None if the device lacks it or it is unknown.

        dtype: ``bfloat16``, ``float16``, ``fp8`` (or a torch float8 name), ``tf32``, ``float32``. ``float32`` means
        full float32 products, which run at the vector rate: tf32 rounds its inputs, PyTorch does not use it unless
        told to, and whoever does use it asks for ``tf32``.
        """
        if dtype == "float32":
            return self.vector_flops_per_s
        if dtype.startswith("float8"):
            dtype = "fp8"
        if dtype not in TensorTflops.__struct_fields__:
            return None
        peak: float | None = getattr(self.tensor_tflops, dtype)
        return None if peak is None else peak * 1e12


def load(path: Path) -> Datasheet:
    """Read one datasheet file; DatasheetError says in one sentence which file and field is wrong."""
    try:
        raw = tomllib.loads(unmarked(path.read_bytes()).decode())
        return msgspec.convert(raw | {"sku": path.stem}, Datasheet)
    except OSError as error:
        raise errors.DatasheetError(f"datasheet {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise errors.DatasheetError(f"datasheet {path} is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise errors.DatasheetError(f"datasheet {path} cannot be used: {error}") from None


@functools.cache
def skus() -> tuple[str, ...]:
    """The SKUs that have a datasheet, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def datasheet(sku: str) -> Datasheet:
    """The datasheet of a SKU, such as ``nvidia-h100-sxm``; UnknownDevice lists the near ones."""
    if sku not in skus():
        near = _near(sku)
        hint = f"near ones are {', '.join(near)}" if near else "none is near"
        listed = f"`griffin roofline list` shows all {len(skus())}"
        raise errors.UnknownDevice(f"no datasheet for device {shortened(sku)}; {hint}; {listed}")
    return _cached(sku)


def find(name: str) -> Datasheet | None:
    """The datasheet of the device whose driver reports exactly ``name``; None where no peak is known.

    There is no guessing: an H100 PCIe is not an H100 SXM, and a MIG slice is neither.
    """
    sku = _driver_names().get(name)
    return None if sku is None else _cached(sku)


@functools.cache
def _cached(sku: str) -> Datasheet:
    return load(FOLDER / f"{sku}.toml")


@functools.cache
def _driver_names() -> dict[str, str]:
    return {name: sku for sku in skus() for name in _cached(sku).driver_names}


def _near(sku: str) -> list[str]:
    """SKUs that ``sku`` may have meant: those that contain it, else those spelled alike."""
    if exact := _driver_names().get(sku):
        return [exact]
    slug = re.sub(r"[^a-z0-9]+", "-", sku.lower()).strip("-")
    if not slug:
        return []
    if containing := [known for known in skus() if slug in known]:
        return containing[:MAX_NEAR]
    # With and without the vendor, which people leave out.
    spellings = {known.split("-", 1)[1]: known for known in skus()} | {known: known for known in skus()}
    alike = difflib.get_close_matches(slug, spellings, n=2 * MAX_NEAR)
    return list(dict.fromkeys(spellings[spelling] for spelling in alike))[:MAX_NEAR]
