"""Whether a registry's entry may be used here, and whether it is stale.

*Validity* decides: the device must be the one that was measured, the kernel's source the same, the configuration one
that the tuner tries. *Provenance* only tells: an entry that was measured with another driver, power limit or library
is stale; it is used, and every command that shows it says what differs.

A prediction is made from a datasheet, which does not know to the byte what a driver will report. It holds for a device
of the same SKU: same kind, architecture and units, and a name that the SKU's datasheet lists.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from griffin_kernels import catalog, errors
from griffin_kernels import device as devices
from griffin_kernels.contract import Variant
from griffin_kernels.device import Device
from griffin_kernels.records import Entry, RegistryFile
from griffin_kernels.registry_files import same_sku as same_sku

DEVICE_FACTS: Mapping[str, str] = {"driver": "driver", "rocm": "ROCm", "power_limit_watts": "power limit (W)"}
"""Provenance that every kernel on a device depends on, and what people call it."""

BACKEND_FACTS: Mapping[str, tuple[str, ...]] = {"triton": ("torch", "triton"), "numba": ("torch", "numba")}
"""Libraries that a backend's kernels depend on: PyTorch, which all call for matrix products or allocation, and more."""

FACTS = (*DEVICE_FACTS, "torch", "triton", "numba")
"""Provenance whose difference makes an entry stale."""


def quoted(value: Any, most: int = 80) -> str:
    """A value out of a file, or an error, for a message: short, and on one line."""
    if value is not None and not isinstance(value, bool | int | float | str | BaseException):
        return f"a {type(value).__name__}"
    text = str(value)
    text = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return text if len(text) <= most else f"{text[:most]}..."


def named(facts: Mapping[str, Any]) -> str:
    """A device in words, from its validity facts."""
    return f"{quoted(facts.get('name', 'unnamed'))}, {quoted(facts.get('arch', '?'))}"


def holds(file: RegistryFile, device: Device) -> Literal["measured", "predicted"] | None:
    """How a file holds for a device: ``measured`` on it (predictions in it count too), ``predicted`` for its SKU."""
    facts = device.validity()
    if file.device.validity == facts:
        return "measured"
    foreseen = bool(file.entries) and all(entry.status == "predicted" for entry in file.entries)
    return "predicted" if foreseen and same_sku(file.device.validity, facts) else None


def kernel(entry: Entry) -> tuple[Variant, Any]:
    """(variant, config) of an entry; RegistryError says in words why it cannot be used.

    A configuration must be one that the tuner tries: every value is the default or on the field's axis. Kernels check
    no more than that, and a block of 0 or of 2**40 steps would be run as it stands.
    """
    try:
        variant = catalog.variant(f"{entry.op}/{entry.variant}")
        for name, value in entry.config.items():
            if not isinstance(value, bool | int | float | str):
                raise errors.ConfigError(f"{variant.key}: config field {quoted(name)} is {quoted(value)}")
        config = variant.parse_config(entry.config)
    except (errors.UnknownOpError, errors.UnknownVariantError, errors.ConfigError) as error:
        raise errors.RegistryError(quoted(error.args[0], 300)) from None
    if entry.source_hash != variant.source_hash:
        raise errors.RegistryError(f"{variant.key} has changed since it was {entry.status}")
    default = variant.config()
    for name, value in entry.config.items():
        allowed = (getattr(default, name), *variant.axes.get(name, ()))
        if value not in allowed:
            known = ", ".join(map(str, dict.fromkeys(allowed)))
            text = f"{variant.key}: config field {name} is {quoted(value)}, expected one of {known}"
            raise errors.RegistryError(text)
    return variant, config


@functools.cache
def _here(device: Device) -> Mapping[str, Any]:
    return devices.provenance(device)


def stale(entry: Entry, file: RegistryFile, device: Device) -> tuple[str, ...]:
    """What differs from when an entry was measured, ``torch 2.11.0 (now 2.13.0)``; empty where it is fresh.

    A fact that one of the two does not know is no difference. Predictions, which rest on no measurement, are not stale.
    """
    if entry.status == "predicted":
        return ()
    before, now = file.device.provenance | entry.provenance, _here(device)
    return tuple(
        f"{DEVICE_FACTS.get(name, name)} {quoted(before[name], 40)} (now {quoted(now[name], 40)})"
        for name in differing(entry.variant, before, now)
    )


def differing(variant: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The facts that a variant's kernels depend on (``FACTS``) and in which two provenances differ."""
    names = (*DEVICE_FACTS, *BACKEND_FACTS.get(variant.partition(".")[0], ("torch",)))
    known = [name for name in names if before.get(name) is not None and now.get(name) is not None]
    return [name for name in known if before[name] != now[name]]


def under(entry: Entry, before: Mapping[str, Any], after: Mapping[str, Any]) -> Entry:
    """An entry that moves into a file of other provenance, so that it keeps what it was measured with.

    before, after: provenance of the file that it leaves and of the file that it enters.
    """
    facts = {name: entry.provenance.get(name, before.get(name)) for name in FACTS}
    own = {name: value for name, value in facts.items() if value != after.get(name)}
    return entry if own == entry.provenance else msgspec.structs.replace(entry, provenance=own)
