"""A model's configuration by what people call it: a preset, a folder, a config.json, an id in the hub's cache.

Needs no PyTorch and no network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from griffin_kernels import errors
from griffin_kernels.models import checkpoint_settings as settings
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import PRESETS
from griffin_kernels.texts import did_you_mean, shortened

CONFIG = "config.json"


def read_json(file: Path) -> dict[str, Any]:
    """The object that a file holds; ArgumentError says in one sentence why there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise errors.ArgumentError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise errors.ArgumentError(f"{file} holds a {type(found).__name__}, expected an object")
    return found


def quantised_by(entries: Mapping[str, Any]) -> str | None:
    """How the weights beside a config.json are quantised, as it says; None where they are not."""
    if (found := entries.get("quantization_config")) is None:
        return None
    return str(found.get("quant_method", "?") if isinstance(found, Mapping) else found)


def config_of(entries: Mapping[str, Any]) -> GriffinConfig:
    """Our configuration from the entries of a config.json, of our own layout or transformers'; raises ArgumentError."""
    native = entries.get("model_type") == settings.NATIVE
    return settings.native_config(entries) if native else settings.config_from_transformers(entries)


def find_config(model: str) -> tuple[str, GriffinConfig]:
    """(name to show, configuration) of a model.

    model: a preset, a folder with a config.json, such a file, or the id of a model in the hub's cache, in this order.
    Raises UnknownModelError naming those that are spelt alike, and ArgumentError for a file that describes no model
    of this package's or quantised weights.
    """
    if model in PRESETS:
        return model, PRESETS[model]
    given = Path(model).expanduser() if model else Path(os.devnull)
    if _is(given, "dir"):
        return given.resolve().name, _read(given / CONFIG)
    if _is(given, "file"):
        return (given.resolve().parent.name if given.name == CONFIG else given.stem), _read(given)
    cached = cached_models()
    if model in cached:
        return model, _read(cached[model])
    # of an id that is not there, a preset may have the name
    meant = did_you_mean(model, [*PRESETS, *cached]) or did_you_mean(model.rpartition("/")[2], PRESETS)
    meant = meant or f"; `griffin roofline list` shows all {len(PRESETS)} presets"
    raise errors.UnknownModelError(
        f"no model {shortened(model)}: it is no preset, folder, {CONFIG} or id in the hub's cache{meant}"
    )


def hub_cache() -> Path:
    """The folder of models that huggingface_hub has downloaded, by the same environment variables."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if found := os.environ.get(name):
            return Path(os.path.expandvars(found)).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def cached_models() -> dict[str, Path]:
    """config.json of each model in the hub's cache, by id: of the revision ``main``, else of the newest there is."""
    found = {}
    for folder in sorted(hub_cache().glob("models--*")):
        files = [file for file in folder.glob(f"snapshots/*/{CONFIG}") if _is(file, "file")]
        if not files:
            continue
        main = folder / "refs" / "main"
        commit = main.read_text(encoding="utf-8", errors="replace").strip() if _is(main, "file") else ""
        named = [file for file in files if file.parent.name == commit]
        identity = folder.name.removeprefix("models--").replace("--", "/", 1)
        found[identity] = named[0] if named else max(files, key=lambda file: file.stat().st_mtime)
    return found


def _read(file: Path) -> GriffinConfig:
    if not _is(file, "file"):
        raise errors.ArgumentError(f"{shortened(str(file.parent), 120)} has no {CONFIG}, so it is no checkpoint folder")
    entries = read_json(file)
    if (method := quantised_by(entries)) is not None:
        remedy = "take quantization_config out and say what holds them with --weights"
        raise errors.ArgumentError(f"{file}: weights are quantised by {method}, in a layout not known here; {remedy}")
    try:
        return config_of(entries)
    except errors.ArgumentError as error:
        raise errors.ArgumentError(f"{file}: {error}") from None


def _is(path: Path, kind: str) -> bool:
    """Whether there is a file or folder of that name, which may be too long for one."""
    try:
        return path.is_dir() if kind == "dir" else path.is_file()
    except OSError:
        return False
