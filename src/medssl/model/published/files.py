"""Opens files of weights, by formats that run no code: safetensors, .npz, torch's zip files, TensorFlow's bundles.

Sizes are read from headers and checked before anything of that size is allocated.
"""

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import safe_open
from torch import Tensor

from medssl.model.published import bundle
from medssl.model.published.stored import MAX_FILE_BYTES, Checkpoint, Stored, WeightsError, checked
from medssl.store import file_digest

MAX_PICKLE_BYTES = 64 * 2**20  # of the names and shapes in torch's zip file; the values lie beside it
_STATE = "state_dict"
_SAFETENSORS_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
_ZIP_MAGIC = b"PK\x03\x04"
_RESAVE = (
    "save the weights alone, in a process that trusts the file: torch.save(model.state_dict(), 'weights.pt'), "
    "or as safetensors"
)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a file of weights; of a TensorFlow checkpoint, its .index or the name before that ending.

    Raises:
        WeightsError: The file is missing, damaged, too large or of a format that can run code.
    """
    if prefix := bundle.prefix_of(path):
        return bundle.open_bundle(prefix)
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:
        size = None
    if size is None:
        raise WeightsError(f"{path.name}: no such file; give a file of weights, or the name before TensorFlow's .index")
    if size > MAX_FILE_BYTES:
        raise WeightsError(f"{path.name}: {size} bytes; expected at most {MAX_FILE_BYTES}")
    with path.open("rb") as file:
        start = file.read(len(_ZIP_MAGIC))
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if start == _ZIP_MAGIC:
        return _open_npz(path) if path.suffix == ".npz" else _open_torch(path)
    raise WeightsError(
        f"{path.name}: neither safetensors nor a zip file of NumPy or torch. Older torch files are pickles, "
        f"which can run code and are never opened; {_RESAVE}"
    )


@contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    """Within, whatever a library's parser raises means a damaged file: how they fail on one is not documented."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).replace(str(path), path.name)[:160]
        raise WeightsError(f"{path.name}: damaged or cut short ({reason}); download it again") from None


def _open_safetensors(path: Path) -> Checkpoint:
    with _telling_damage(path):
        file: Any = safe_open(path, framework="pt")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            part = file.get_slice(name)
            dtype = _SAFETENSORS_TYPES.get(part.get_dtype())
            tensors[name] = Stored(tuple(part.get_shape()), dtype, partial(file.get_tensor, name))
    return _as_checkpoint(tensors, path)


def _open_npz(path: Path) -> Checkpoint:
    tensors = {}
    with _telling_damage(path), zipfile.ZipFile(path) as archive:
        for member in _members(archive, path):
            if not member.filename.endswith(".npy"):
                raise WeightsError(f"{path.name}: holds {member.filename[:80]!r}; expected arrays (.npy) alone")
            with archive.open(member) as file:
                shape, dtype = _npy_header(file, path, member)
            read = partial(_read_npy, path, member.filename)
            tensors[member.filename.removesuffix(".npy")] = Stored(shape, _torch_type(dtype), read)
    return _as_checkpoint(tensors, path)


def _members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The files of an archive, if they have distinct names and stay small when they are unpacked."""
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise WeightsError(f"{path.name}: two of its files have the same name; download it again")
    if (size := sum(member.file_size for member in members)) > MAX_FILE_BYTES:
        raise WeightsError(f"{path.name}: unpacks to {size} bytes; expected at most {MAX_FILE_BYTES}")
    return members


def _npy_header(file: Any, path: Path, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise WeightsError(
            f"{path.name}: {member.filename[:80]!r} holds Python objects, which can run code; "
            "save it anew with plain arrays"
        )
    stated = math.prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or stated != member.file_size - file.tell():
        raise WeightsError(f"{path.name}: {member.filename[:80]!r} is shorter or longer than its shape {list(shape)}")
    return tuple(shape), dtype


def _read_npy(path: Path, name: str) -> Tensor:
    with _telling_damage(path), zipfile.ZipFile(path) as archive, archive.open(name) as file:
        values: np.ndarray[Any, Any] = npy.read_array(file, allow_pickle=False)
    return torch.from_numpy(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False))


def _torch_type(dtype: "np.dtype[Any]") -> torch.dtype | None:
    return {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}.get(f"{dtype.kind}{dtype.itemsize}")


def _open_torch(path: Path) -> Checkpoint:
    with _telling_damage(path):
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            wrong = archive.testzip()
        names = {member.filename.rsplit("/", 1)[-1]: member for member in members}
        if "constants.pkl" in names or "data.pkl" not in names:
            raise WeightsError(f"{path.name}: a TorchScript program or no file of torch's; {_RESAVE}")
        if names["data.pkl"].file_size > MAX_PICKLE_BYTES or any(m.compress_type for m in members):
            raise WeightsError(f"{path.name}: packed otherwise than torch packs; {_RESAVE}")
        if wrong is not None:
            raise WeightsError(f"{path.name}: {wrong[:80]!r} has another checksum than stated; download it again")
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise WeightsError(
                f"{path.name}: holds more than tensors, names and numbers, and what it holds could run code; {_RESAVE}"
            ) from None
    if not isinstance(held, Mapping):
        raise WeightsError(f"{path.name}: holds one {type(held).__name__}; expected tensors by name; {_RESAVE}")
    return _as_checkpoint(dict(_tensors_in(held)), path, beside=_beside(held))


def _tensors_in(held: Mapping[Any, Any]) -> Iterator[tuple[str, Stored]]:
    """All tensors of nested dictionaries; of one with a state dict, of that alone.

    Each dictionary is entered once: one that holds itself several times would never end.
    """
    has_state = isinstance(held.get(_STATE), Mapping)
    waiting = [(f"{_STATE}.", held[_STATE])] if has_state else [("", held)]
    entered: set[int] = set()
    while waiting:
        prefix, part = waiting.pop()
        entered.add(id(part))
        for key, value in part.items():
            if not isinstance(key, str):
                continue
            if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
                dtype = value.dtype if value.dtype.is_floating_point else None
                yield f"{prefix}{key}", Stored(tuple(value.shape), dtype, partial(value.detach().clone))
            elif isinstance(value, Mapping) and id(value) not in entered:
                waiting.append((f"{prefix}{key}.", value))


def _beside(held: Mapping[Any, Any]) -> tuple[str, ...]:
    if not isinstance(held.get(_STATE), Mapping):
        return ()
    return tuple(sorted(key[:80] for key in held if isinstance(key, str) and key != _STATE))


def _as_checkpoint(tensors: Mapping[str, Stored], path: Path, beside: tuple[str, ...] = ()) -> Checkpoint:
    """With "state_dict." taken off the names, if all have it."""
    is_wrapped = all(name.startswith("state_dict.") for name in tensors)
    plain = checked(
        {name.removeprefix("state_dict.") if is_wrapped else name: t for name, t in tensors.items()}, path.name
    )
    return Checkpoint(plain, {path.suffix: file_digest(path)}, is_wrapped, beside)
