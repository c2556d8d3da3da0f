"""Folders of safetensors files as transformers keeps them: read tensor by tensor, replaced as a whole.

Format: https://github.com/huggingface/safetensors, "Format". Names of files, and that ``model.safetensors`` goes before
an index, are transformers'.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.models.config_files import CONFIG, quantised_by, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model(-\d+)?-\d{5}-of-\d{5}\.safetensors")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: its shape, and its dtype by safetensors' name."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """The tensor, a map of the file: pages that were read count as memory until it is dropped."""
        with _opened(self.file) as opened:  # opened anew each time, as the map lives as long as what was opened
            return opened.get_tensor(self.name)  # type: ignore[no-any-return]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise errors.ArgumentError("reading checkpoints needs safetensors: pip install safetensors") from None
    try:
        with safe_open(file, "pt", device="cpu") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise errors.ArgumentError(f"{file} cannot be read as safetensors: {error}") from None


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The entries of config.json, and what tensors the folder's files hold: none of them is read yet."""
    if not folder.is_dir():
        raise errors.ArgumentError(f"there is no folder {folder}: a checkpoint of a hub must be downloaded first")
    if not (folder / CONFIG).is_file():
        raise errors.ArgumentError(f"{folder} has no {CONFIG}, so it is no checkpoint folder")
    entries = read_json(folder / CONFIG)
    if (method := quantised_by(entries)) is not None:
        raise errors.ArgumentError(f"{folder} holds weights quantised by {method}, expected floating-point weights")
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return entries, _single(folder)
    return entries, _sharded(folder)


def _single(folder: Path) -> dict[str, Stored]:
    if not (folder / SINGLE).is_file():
        pickled = any((folder / f"pytorch_model.bin{end}").is_file() for end in ("", ".index.json"))
        instead = "; it has pytorch_model.bin, which transformers' save_pretrained turns into one" if pickled else ""
        raise errors.ArgumentError(f"{folder} lacks {SINGLE}{instead}")
    return contents(folder / SINGLE)


def _sharded(folder: Path) -> dict[str, Stored]:
    where = read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise errors.ArgumentError(f"{folder / INDEX} has no weight_map from tensors to files")
    found: dict[str, Stored] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise errors.ArgumentError(f"{folder / INDEX} names {name!r}, which is no file of the folder")
        if not (folder / name).is_file():
            raise errors.ArgumentError(f"{folder} lacks {name}")
        inside = contents(folder / name)
        if absent := [tensor for tensor, file in where.items() if file == name and tensor not in inside]:
            raise errors.ArgumentError(f"{folder / name} lacks {absent[0]}, which the index says it holds")
        found |= {tensor: stored for tensor, stored in inside.items() if where.get(tensor) == name}
    return found


def contents(file: Path) -> dict[str, Stored]:
    """What tensors a file holds; raises DtypeError for one that is not floating-point."""
    found = {}
    with _opened(file) as opened:
        for name in opened.keys():
            part = opened.get_slice(name)
            found[name] = Stored(file, name, tuple(part.get_shape()), str(part.get_dtype()))
    if quantised := [stored for stored in found.values() if stored.dtype not in DTYPES]:
        name, dtype = quantised[0].name, quantised[0].dtype
        expected = f"expected one of {', '.join(DTYPES)}: quantised checkpoints are not read"
        raise errors.DtypeError(f"{file}: {name} is stored as {dtype}, {expected}")
    return found


def size_of(text: int | str) -> int:
    """Bytes of ``5_000_000``, ``"5MB"`` or ``"5MiB"``."""
    if isinstance(text, str) and (parts := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)\s*", text, re.IGNORECASE)):
        text = int(float(parts[1]) * UNITS[parts[2].upper()])
    if not isinstance(text, int) or isinstance(text, bool) or text < 1:
        raise errors.ArgumentError(f"max_shard_size is {text!r}, expected bytes, or text such as '5GB' or '200MiB'")
    return text


def write_folder(folder: Path, entries: Mapping[str, Any], tensors: Mapping[str, Tensor], max_shard_size: int) -> None:
    """Replace the checkpoint of a folder; its other files stay.

    Everything is on the disk beside the old checkpoint before the first file of that is replaced. A new shard has
    another name than every old one, so that replacing one file changes the checkpoint as a whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_size)
    writers: dict[str, Callable[[BinaryIO], object]] = {CONFIG: _json_writer(entries)}
    if len(shards) == 1:
        writers[SINGLE] = partial(write_safetensors, tensors=shards[0])
        last = SINGLE
    else:
        names = _free_names(folder, len(shards))
        for name, shard in zip(names, shards, strict=True):
            writers[name] = partial(write_safetensors, tensors=shard)
        total = sum(tensor.nbytes for tensor in tensors.values())
        where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        writers[INDEX] = _json_writer({"metadata": {"total_size": total}, "weight_map": where})
        last = INDEX
    stale = [path for path in folder.iterdir() if SHARD.fullmatch(path.name)]
    replace(folder, writers, last, [folder / (SINGLE if last == INDEX else INDEX), *stale])


def replace(
    folder: Path, writers: Mapping[str, Callable[[BinaryIO], object]], last: str, stale: list[Path] | None = None
) -> None:
    """Write files under other names, then give them theirs, ``last`` last, and delete those that are stale.

    A failure or an interrupt before all are written leaves the folder as it was; a later interrupt is raised when
    everything is in place.
    """
    mark = f".{os.getpid()}.partial"
    made: dict[Path, Path] = {}
    try:
        for name, write in writers.items():
            path = folder / f".{name}{mark}"
            made[path] = folder / name
            with path.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    order = sorted(made.items(), key=lambda pair: pair[1].name == last)
    interrupted: KeyboardInterrupt | None = None
    steps = [partial(_rename, *pair) for pair in order]
    steps += [partial(Path.unlink, path, missing_ok=True) for path in stale or ()]
    while steps:  # each may be done twice
        try:
            steps[0]()
            del steps[0]
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def _rename(before: Path, after: Path) -> None:
    if before.exists():
        before.replace(after)


def _free_names(folder: Path, count: int) -> list[str]:
    """Names of ``count`` shards that no shard in the folder has."""
    series = 1
    while True:
        stem = "model" if series == 1 else f"model-{series}"
        names = [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        if not any((folder / name).exists() for name in names):
            return names
        series += 1


def _shards(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """In their order, each of at most ``most`` bytes or of one tensor."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > most:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def _json_writer(entries: Mapping[str, Any]) -> Callable[[BinaryIO], object]:
    try:
        text = json.dumps(entries, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise errors.ArgumentError(f"entries of {CONFIG} must be what JSON can hold: {error}") from None
    return lambda file: file.write(text.encode())


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """One tensor at a time goes through host memory; safetensors' own writer wants all of them there."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
