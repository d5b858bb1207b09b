"""Reads files of weights: torch's zip and legacy containers and safetensors. Nothing of a file is ever executed.

In: a path; out: what the file holds, tensors among plain Python values. The pickle inside is read by inert_pickle.py,
which calls nothing; settings objects and other classes become an Unknown. Every storage's size is checked against the
file before memory is taken for it. Refused in one line: TorchScript archives and tars, compressed members (zip bombs),
sizes the file does not have, sparse, quantised and meta tensors, pipes and devices. torch.load is not used.
Next on the way: models/_checkpoint.py finds the state dict in it, train/ resumes a run from it.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .inert_pickle import Global, Made, Persistent, RefusedPickle, parse
from .open_file import open_regular
from .safe_pickle import Resolver

MAX_PICKLE = 256 << 20  # bytes of the description beside the tensors' own
MAX_DIRECTORY = 64 << 20  # bytes of a zip's list of members
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(d).removeprefix("torch."): d for d in {*_STORAGES.values(), torch.uint16, torch.uint32, torch.uint64}}
_REFUSED = {  # torch's own builders of what is no plain tensor
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor (a shape without values)",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_wrapper_subclass": "a tensor of a special class",
    "_rebuild_device_tensor_from_numpy": "a tensor of a special device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of a special device",
}


class Unknown(NamedTuple):
    """Stands where a file names a class or function that is no tensor and no number."""

    name: str


def read_weights(path: str | Path) -> Any:
    """Contents of a .pt, .pth, .bin, .ckpt or .safetensors file: containers, numbers, texts, tensors (on the CPU),
    Unknowns.

    Raises:
        FileNotFoundError: no such file. ValueError: one line that names the file and says what was expected and what
            came.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.NamedTemporaryFile(suffix=".pt") as f:
        ...     torch.save({"weight": torch.ones(2), "epoch": 3}, f.name)
        ...     read_weights(f.name)
        {'weight': tensor([1., 1.]), 'epoch': 3}
    """
    path = Path(path)
    with open_regular(path, "weight file") as stream:
        try:
            head = stream.read(8)
            stream.seek(0)
            if path.suffix == ".safetensors":
                return _load_safetensors(path)
            return (_read_zip if head.startswith(b"PK") else _read_legacy)(stream, path)
        except _Refused as e:
            raise ValueError(f"{path}: {e}") from None
        except RefusedPickle as e:
            raise unreadable(path, e) from None
        except (zipfile.BadZipFile, OSError, ValueError, TypeError, LookupError, struct.error, OverflowError) as e:
            raise unreadable(path, e) from None
        except (RuntimeError, MemoryError, AttributeError) as e:
            raise unreadable(path, e) from None


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file; errors as `read_weights`."""
    path = Path(path)
    open_regular(path, "weight file").close()
    try:
        return _load_safetensors(path)
    except ValueError as e:
        raise unreadable(path, e) from None


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error to raise for a file that a reader gave up on with `error`: what the file is, where its first bytes
    tell."""
    with open_regular(path, "weight file") as f:
        head = f.read(262)
    text = str(error).partition("\n")[0].removeprefix(f"{path.name}: ").partition(". ")[0][:160]
    if not head:
        reason = "the file is empty"
    elif head.startswith(b"version https://git-lfs"):
        reason = "a Git LFS pointer; fetch the file itself, e.g. with `git lfs pull`"
    elif head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        reason = "a web page, so the download went wrong"
    elif head[257:262] == b"ustar":
        reason = "a tar archive; save the state dict again with a recent torch"
    elif all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        reason = "a text file"
    elif head.startswith(b"PK") or path.suffix == ".safetensors":
        reason = f"damaged or cut off: {text}"
    else:
        reason = text or type(error).__name__
    return ValueError(f"{path}: not a readable weight file ({reason})")


class _Refused(ValueError):
    """A file that can be read but is not wanted; the text needs no further words."""


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as e:
        raise ValueError(str(e)) from None


class _Tensors(Resolver):
    """Builds tensors from storages; what is neither tensor, number nor plain container becomes an Unknown."""

    wanted = "tensors and numbers"

    def __init__(self, source: str, size: int, storage: Callable[[Any], tuple[Tensor, torch.dtype]]):
        super().__init__(source, size)
        self.storage = storage
        self.tensor_bytes = 4 * size + (
            16 << 20
        )  # of all tensors: expanded and shared ones count as often as they occur

    def unknown(self, node: Any) -> Unknown:
        name = node.callee if isinstance(node, Made) else node
        return Unknown(str(name) if isinstance(name, Global) else "object")

    def key(self, key: Any) -> Any:
        return self.unknown(key) if isinstance(key, (Global, Made)) else key

    def made(self, node: Made) -> Any:
        callee, args = node.callee, node.args
        if isinstance(callee, Global) and isinstance(args, tuple):
            module, name = callee
            if module == "torch._utils" and name in _REFUSED:
                raise _Refused(f"expected plain tensors, the file holds {_REFUSED[name]}")
            if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_tensor"):
                return self.tensor(name, args)
            if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                return self(args[0])
            if callee == ("torch._tensor", "_rebuild_from_type_v2"):  # a tensor with attributes beside it
                return self.made(Made(args[0], args[2]))
            if callee == ("torch", "Size"):
                return tuple(self(v) for v in args[0])
            if module.startswith("torch"):
                return self.unknown(node)
        try:
            return super().made(node)
        except RefusedPickle:  # something beside the weights that is no plain array; nothing was built of it
            return self.unknown(node)

    def tensor(self, name: str, args: tuple) -> Tensor:
        stored, offset, size, stride = args[:4]
        if not isinstance(stored, Persistent):
            raise self.refuse("a tensor without a storage")
        raw, dtype = self.storage(stored.id)
        if name == "_rebuild_tensor_v3":
            dtype = _dtype(args[6])
        if not all(isinstance(v, tuple) and len(v) <= 32 for v in (size, stride)) or len(size) != len(stride):
            raise self.refuse("a tensor without sizes")
        if not all(type(n) is int and 0 <= n < 1 << 44 for n in (offset, *size, *stride)):
            raise self.refuse("a tensor of impossible sizes")
        step, empty, numel = dtype.itemsize, 0 in size, int(np.prod([0] if 0 in size else size, dtype=object))
        last = offset + sum((n - 1) * s for n, s in zip(size, stride))
        if not empty and (last + 1) * step > raw.numel():
            raise self.refuse(f"a tensor {list(size)} that reaches beyond its {raw.numel():,} bytes")
        self.tensor_bytes -= numel * step
        if self.tensor_bytes < 0:
            raise self.refuse("tensors that are larger than the whole file")
        if empty:
            return torch.empty(size, dtype=dtype)
        whole = raw[: raw.numel() // step * step]
        typed = whole != 0 if dtype == torch.bool else whole.view(dtype)
        return typed.as_strided(size, stride, offset)


def _dtype(node: Any) -> torch.dtype:
    if isinstance(node, Global) and node.module == "torch" and node.name in _DTYPES:
        return _DTYPES[node.name]
    raise _Refused(f"expected plain tensors, the file holds one of type {str(node)[:60]}")


def _described(id: Any) -> tuple[torch.dtype, str, int, tuple]:
    """(type, key, items, the rest) of a persistent id, as torch writes it for a storage."""
    fits = isinstance(id, tuple) and len(id) >= 5 and id[0] == "storage" and isinstance(id[1], Global)
    if not fits or not isinstance(id[2], str) or type(id[4]) is not int or id[4] < 0:
        raise RefusedPickle("damaged pickle (a storage without its description)")
    if id[1].module not in ("torch", "torch.storage") or id[1].name not in _STORAGES:
        raise _Refused(f"expected plain tensors, the file holds one of {id[1]}")
    return _STORAGES[id[1].name], id[2], id[4], id[5:]


def _bytes(stream: BinaryIO, at: int, count: int) -> Tensor:
    """`count` bytes of the file from `at` on. The caller has checked that the file has them."""
    out = np.empty(count, np.uint8)
    stream.seek(at)
    view = memoryview(out)  # type: ignore[arg-type]  # arrays are buffers; numpy says so from Python 3.12 on
    done = 0
    while done < count:
        if not (more := stream.readinto(view[done:])):  # type: ignore[attr-defined]
            raise RefusedPickle("it ends too early")
        done += more
    return torch.from_numpy(out)


# torch's zip container


def _read_zip(stream: BinaryIO, path: Path) -> Any:
    size = os.fstat(stream.fileno()).st_size
    if _directory_size(stream, size) > MAX_DIRECTORY:
        raise RefusedPickle("a list of members beyond all measure")
    with zipfile.ZipFile(stream) as archive:
        members = {m.filename: m for m in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise RefusedPickle("two members of one name")
    folder = next((n.removesuffix("data.pkl") for n in members if n.endswith("data.pkl") and n.count("/") < 2), None)
    if any(n.rsplit("/", 1)[-1] == "constants.pkl" or "/code/" in n for n in members):
        raise _Refused("a TorchScript archive, which is a program; expected a state dict, as torch.save writes it")
    if folder is None:
        raise _Refused("a zip archive without data.pkl; expected a state dict, as torch.save writes it")
    where: dict[str, tuple[int, int]] = {}
    for name, member in members.items():
        where[name] = (_start(stream, member, size), member.file_size)
    if sum(count for _, count in where.values()) > size:
        raise RefusedPickle("members that are larger than the whole file")
    if f"{folder}byteorder" in where and _read(stream, where[f"{folder}byteorder"], 16) != b"little":
        raise _Refused("weights of a big-endian machine; save them again on a little-endian one")
    read: dict[str, Tensor] = {}

    def storage(id: Any) -> tuple[Tensor, torch.dtype]:
        dtype, key, count, _ = _described(id)
        name = f"{folder}data/{key}"
        if name not in where:
            raise RefusedPickle(f"no member {name[:80]}")
        if where[name][1] < count * dtype.itemsize:
            raise RefusedPickle(f"{name[:80]} has {where[name][1]:,} bytes, {count * dtype.itemsize:,} are expected")
        if name not in read:
            read[name] = _bytes(stream, *where[name])
        return read[name][: count * dtype.itemsize], dtype

    tree, _ = parse(_read(stream, where[f"{folder}data.pkl"], MAX_PICKLE), path.name)
    return _Tensors(path.name, size, storage)(tree)


def _directory_size(stream: BinaryIO, size: int) -> int:
    """Bytes of the zip's central directory by its end record (zip64's where there is one)."""
    stream.seek(max(0, size - (1 << 16) - 22))
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise RefusedPickle("no end record of a zip")
    count = struct.unpack("<I", tail[at + 12 : at + 16])[0]
    stream.seek(0)
    if count == 0xFFFFFFFF and (far := tail.rfind(b"PK\x06\x06", 0, at)) >= 0:
        count = struct.unpack("<Q", tail[far + 40 : far + 48])[0]
    return count


def _start(stream: BinaryIO, member: zipfile.ZipInfo, size: int) -> int:
    """Where a member's bytes begin; they must be stored as they are and lie inside of the file."""
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size or member.flag_bits & 1:
        raise _Refused(f"member {member.filename[:80]} is compressed; expected a file as torch.save writes it")
    stream.seek(member.header_offset)
    head = stream.read(30)
    if len(head) < 30 or not head.startswith(b"PK\x03\x04"):
        raise RefusedPickle(f"member {member.filename[:80]} is not where the list says")
    start = member.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
    if start + member.file_size > size:
        raise RefusedPickle(f"member {member.filename[:80]} reaches beyond the end")
    return start


def _read(stream: BinaryIO, where: tuple[int, int], limit: int) -> bytes:
    if where[1] > limit:
        raise RefusedPickle(f"a description of {where[1]:,} bytes")
    stream.seek(where[0])
    return stream.read(where[1])


# torch's container before 1.6: pickles one after the other, then the storages


def _read_legacy(stream: BinaryIO, path: Path) -> Any:
    size = os.fstat(stream.fileno()).st_size
    data = stream.read(MAX_PICKLE)
    magic, at = parse(data, path.name)
    if magic != _LEGACY_MAGIC:
        what = "a pickled Python object" if isinstance(magic, (Made, Global)) else "no file of torch.save"
        raise RefusedPickle(f"{what}; expected a state dict, as torch.save writes it")
    protocol, at = parse(data, path.name, at)
    system, at = parse(data, path.name, at)
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refused("weights of an unknown version of torch's old format, or of a big-endian machine")
    tree, at = parse(data, path.name, at)
    keys, at = parse(data, path.name, at)
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
        raise RefusedPickle("no list of storages")
    types = _legacy_types(tree, set(keys))
    where: dict[str, tuple[int, int]] = {}
    for key in keys:  # each with its number of items in front
        stream.seek(at)
        items = struct.unpack("<q", stream.read(8))[0]
        count = items * types[key].itemsize if key in types else -1
        if items < 0 or count < 0 or at + 8 + count > size:
            raise RefusedPickle(f"a storage of {items:,} items in {size - at:,} bytes")
        where[key] = (at + 8, count)
        at += 8 + count
    read: dict[str, Tensor] = {}

    def storage(id: Any) -> tuple[Tensor, torch.dtype]:
        dtype, key, _, rest = _described(id)
        if key not in where:
            raise RefusedPickle("a storage that is not in the file")
        if key not in read:
            read[key] = _bytes(stream, *where[key])
        start = 0
        if rest and rest[0] is not None:  # (key, offset, size) of a part of a storage
            _, start, count = rest[0]
            if not all(type(n) is int and n >= 0 for n in (start, count)):
                raise RefusedPickle("a part of a storage without sizes")
            return read[key][start * dtype.itemsize : (start + count) * dtype.itemsize], dtype
        return read[key], dtype

    return _Tensors(path.name, size, storage)(tree)


def _legacy_types(tree: Any, keys: set[str]) -> dict[str, torch.dtype]:
    """Element type of every storage: the file says it only where a tensor refers to it."""
    found: dict[str, torch.dtype] = {}
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Persistent):
            if isinstance(node.id, tuple) and len(node.id) > 2 and node.id[0] == "storage" and node.id[2] in keys:
                found[node.id[2]] = _described(node.id)[0]
            continue
        if not isinstance(node, (list, tuple, dict, Made)) or isinstance(node, Global) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Made):
            waiting += [node.args, node.state, node.items, node.appended]
        else:
            waiting += node.values() if isinstance(node, dict) else node
    return found
