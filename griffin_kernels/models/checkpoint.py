"""Models from checkpoints, and checkpoints of models.

A folder is as transformers keeps one: config.json, and safetensors files with or without an index. A model that
transformers' RecurrentGemma can be is kept under its names, so that both libraries read it; another one under ours.
google-deepmind/recurrentgemma's PyTorch code keeps a state dict in one file, and no configuration.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from griffin_kernels import errors
from griffin_kernels.models import checkpoint_files as files
from griffin_kernels.models import checkpoint_layouts as layouts
from griffin_kernels.models import checkpoint_settings as settings
from griffin_kernels.models.checkpoint_layouts import Layout, Rule, StateDict
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.config_files import config_of
from griffin_kernels.models.griffin import Griffin

Device = torch.device | str
Dtype = torch.dtype | str


def load_pretrained(folder: str | Path, *, device: Device | None = None, dtype: Dtype | None = None) -> Griffin:
    """A model from a folder that ``save_pretrained``, ours or transformers' RecurrentGemma's, has written.

    Tensors are read, cast and moved one at a time: host memory beyond that of the result is about one tensor's.
    Prefixes of torch.compile, DDP and FSDP in names, names without ``model.``, and the tied ``lm_head.weight`` there or
    not are all read.

    device: of the parameters; torch's default if None. dtype: of all parameters, a torch.dtype or its name. With None
    or ``"auto"`` embedding and linear layers have the stored embedding's, and the other parameters, which may have
    another one, the dtypes that they are stored in.

    Raises ArgumentError, ShapeError or DtypeError naming the file or the parameters at fault: no safetensors, quantised
    weights, missing or unexpected tensors, settings that the published models do not have.
    """
    entries, stored = files.read_folder(Path(folder))
    config = config_of(entries)
    layout: Layout = "griffin_kernels" if entries.get("model_type") == settings.NATIVE else "transformers"
    return _load(stored, lambda tensor: tensor.read(), config, layout, device or torch.get_default_device(), dtype)


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    max_shard_size: int | str = "50GB",
    state_dict: StateDict | None = None,
    config_entries: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json and safetensors files, which ``load_pretrained`` reads.

    Where transformers' RecurrentGemma can be this model, its ``from_pretrained`` reads them too; another model (no
    scaled embeddings or no softcap, global attention, other gate blocks than heads) is kept under our own names.

    model: a Griffin, also compiled or in DDP. folder: made where it is not there; files of other names stay. Its old
    checkpoint stays whole until the new one is on the disk, so there must be room for both; a full disk or an
    interrupt leaves the old one. max_shard_size: bytes, or text such as "5GB"; where one file would be larger there
    are several and an index. state_dict: in place of the model's own, as gathered from a sharded one.
    config_entries: more entries for config.json, as ``{"eos_token_id": 7}``: transformers takes ids 0, 1 and 2 to be
    padding, end and beginning where nothing is said.

    Raises ArgumentError for parameters that are no plain tensors with values: quantised, sharded, on meta.
    """
    griffin, tensors = _own(model, state_dict)
    config = griffin.config
    layout: Layout = "griffin_kernels" if settings.not_in_transformers(config) else "transformers"
    entries = settings.native_entries(config)
    if layout == "transformers":
        entries = settings.config_to_transformers(config)
    entries["dtype"] = str(tensors["embedding.weight"].dtype).removeprefix("torch.")
    theirs = layouts.to_theirs(tensors, config, layout)
    files.write_folder(Path(folder), entries | dict(config_entries or {}), theirs, files.size_of(max_shard_size))


def load_transformers(
    model: nn.Module | StateDict,
    config: GriffinConfig | None = None,
    *,
    device: Device | None = None,
    dtype: Dtype | None = None,
) -> Griffin:
    """A Griffin with copies of the parameters of a RecurrentGemmaForCausalLM, or of its state dict and a ``config``.

    device: of the copies; that of the given embedding if None. dtype: as in ``load_pretrained``. Raises as
    ``from_transformers``.
    """
    if isinstance(model, nn.Module):
        config = config or settings.config_from_transformers(model.config)
        model = model.state_dict()
    if config is None:
        raise errors.ArgumentError("config is None, expected a GriffinConfig beside a state dict")
    return _load(model, lambda tensor: tensor, config, "transformers", device, dtype)


def load_deepmind(
    file: str | Path, config: GriffinConfig | None = None, *, device: Device | None = None, dtype: Dtype | None = None
) -> Griffin:
    """A Griffin from a file of google-deepmind/recurrentgemma's PyTorch code: a state dict by ``torch.save``.

    Only tensors are unpickled. config: the file holds none; sizes are then those of its tensors, and window, scaled
    embeddings and softcap those of both released sizes. device, dtype: as in ``load_pretrained``. Raises as it does.
    """
    file = Path(file)
    if not file.is_file():
        raise errors.ArgumentError(f"there is no file {file}")
    try:
        # torch's older format cannot be mapped
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).partition("\n")[0]
        raise errors.ArgumentError(f"{file} cannot be read as a PyTorch state dict: {first}") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise errors.ArgumentError(f"{file} holds something else than a state dict, which has only tensors by name")
    if config is None:
        shapes = {plain: found[given].shape for plain, given in layouts.plain_names(found, "deepmind").items()}
        config = settings.config_from_deepmind_shapes(shapes)
    return _load(found, lambda tensor: tensor, config, "deepmind", device or torch.get_default_device(), dtype)


def save_deepmind(model: nn.Module, file: str | Path, *, state_dict: StateDict | None = None) -> None:
    """Write a file that google-deepmind/recurrentgemma's PyTorch code reads; as a whole, or the old one stays.

    Its GriffinConfig's ``attention_window_size`` is our window less 1. Raises as ``save_pretrained``.
    """
    griffin, tensors = _own(model, state_dict)
    theirs = layouts.to_deepmind(tensors, griffin.config)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace(file.parent, {file.name: lambda opened: torch.save(theirs, opened)}, file.name)


def _load(
    stored: Mapping[str, Any],
    read: Callable[[Any], Tensor],
    config: GriffinConfig,
    layout: Layout,
    device: Device | None,
    dtype: Dtype | None,
) -> Griffin:
    """stored: name -> what has a shape and what ``read`` makes the tensor from."""
    chosen = _dtype(dtype)
    found = {plain: stored[given] for plain, given in layouts.plain_names(stored, layout).items()}
    if layout == "transformers" and (head := found.pop(layouts.HEAD, None)) is not None:
        layouts.check_tied(read(head), read(found[layouts.EMBEDDING]))
    rules = layouts.check({name: tensor.shape for name, tensor in found.items()}, config, layout)
    model = Griffin(config, device="meta")
    return _fill(model, rules, lambda name: read(found[name]), device, chosen)


def _fill(
    model: Griffin, rules: Mapping[str, Rule], read: Callable[[str], Tensor], device: Device | None, dtype: Any
) -> Griffin:
    empty = model.state_dict()
    filled: dict[str, Tensor] = {}
    shared: torch.dtype | None = None
    # the embedding's dtype is that of others; the largest are read while little else is in memory
    for name in sorted(empty, key=lambda name: (name != "embedding.weight", -empty[name].numel())):
        given = rules[name].join(*[read(part) for part in rules[name].theirs])
        if not given.is_floating_point():
            raise errors.DtypeError(f"{name} is of {given.dtype}, expected floating-point weights, not quantised ones")
        shared, device = shared or given.dtype, device or given.device
        mixes = not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear | nn.Embedding)
        wanted = dtype or (given.dtype if mixes else shared)
        filled[name] = torch.empty(given.shape, dtype=wanted, device=device).copy_(given.detach())
        del given
    model.load_state_dict(filled, assign=True)
    return model


def _dtype(dtype: Dtype | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in files.DTYPES.values())
        raise errors.DtypeError(f"dtype is {dtype!r}, expected one of {names}")
    return found


def _own(model: nn.Module, state_dict: StateDict | None) -> tuple[Griffin, dict[str, Tensor]]:
    """The Griffin inside wrappers, and its tensors by name, all of which can be written."""
    inner: Any = model
    while isinstance(inner, nn.Module) and not isinstance(inner, Griffin):
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
    if not isinstance(inner, Griffin):
        raise errors.ArgumentError(f"model is a {type(model).__name__}, expected a Griffin")
    given = inner.state_dict() if state_dict is None else state_dict
    tensors = {plain: given[name] for plain, name in layouts.plain_names(given, "griffin_kernels").items()}
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, nn.Parameter)
        if not plain or tensor.is_meta or tensor.dtype not in files.DTYPES.values():
            kind = f"of {tensor.dtype}" if plain and not tensor.is_meta else f"a {type(tensor).__name__}"
            kind = "on meta" if tensor.is_meta else kind
            raise errors.ArgumentError(f"{name} is {kind}; only whole floating-point tensors with values are written")
    layouts.check({name: tensor.shape for name, tensor in tensors.items()}, inner.config, "griffin_kernels")
    return inner, tensors
