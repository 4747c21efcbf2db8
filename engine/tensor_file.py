"""Files in the safetensors format: read in place through a memory map, and written with an aligned data section.

The header of a file that somebody else wrote is hostile: every name, shape and offset is checked before a byte of data
is touched, and whatever is wrong is a `TensorFileError`. Knows the format alone, nothing of models. (The `safetensors`
package copies on reading and has no bfloat16 for numpy; the engine needs both.)
"""

from __future__ import annotations

import json
import math
import mmap
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInputError

ALIGNMENT_BYTES = 64
MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 8

# bfloat16 is read as its 16 bits: the upper half of a float32.
_NUMPY_TYPES: Mapping[str, Any] = {
    "BOOL": np.uint8,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": np.uint16,
    "F32": np.float32,
    "F64": np.float64,
}
_ELEMENT_BYTES = {name: int(np.dtype(dtype).itemsize) for name, dtype in _NUMPY_TYPES.items()}
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


class TensorFileError(InvalidInputError):
    """A file that is not safetensors, or is cut short or damaged."""

    code = "bad_tensor_file"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type ("F32", "U8", ...) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * _ELEMENT_BYTES[self.dtype]


class TensorFile(Mapping[str, TensorSpec]):
    """The tensors of one file by name. Their data stays on disk until it is read."""

    def __init__(self, path: Path) -> None:
        """Map the file and check its header; raises `TensorFileError`."""
        self.path = path
        self._descriptor = _open(path)
        weakref.finalize(self, os.close, self._descriptor)
        self._version = _version(self._descriptor)
        self._mapping = _map(path, self._descriptor)
        self._bytes = np.frombuffer(self._mapping, np.uint8)
        self._specs, self._starts = _parse_header(path, self._bytes)

    def __getitem__(self, name: str) -> TensorSpec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def check_size(self) -> None:
        """Raise `TensorFileError` if the file has been cut since it was mapped; a microsecond.

        To touch what is gone would end the process (SIGBUS).
        """
        if self._mapping.size() < len(self._mapping):
            raise TensorFileError(f"{self.path.name} changed while it was in use")

    def check_unchanged(self) -> None:
        """Raise `TensorFileError` if the file has been cut or written to since it was mapped; some microseconds.

        That its name was given to another file or removed is no change: the mapped one lives on.
        """
        if _version(self._descriptor) != self._version:
            raise TensorFileError(f"{self.path.name} changed while it was in use")

    def view(self, name: str) -> NDArray[Any]:
        """The tensor as it lies in the file, read-only and without a copy. bfloat16 comes as uint16."""
        spec, start = self._specs[name], self._starts[name]
        data: NDArray[Any] = self._bytes[start : start + spec.size_bytes].view(_NUMPY_TYPES[spec.dtype])
        return data.reshape(spec.shape)

    def float32(self, name: str) -> NDArray[np.float32]:
        """A copy of a floating-point tensor in float32; raises `TensorFileError` for other element types."""
        dtype = self._specs[name].dtype
        if dtype not in _FLOATS:
            raise TensorFileError(f"{name} in {self.path.name} holds {dtype}, floating-point numbers are expected")
        if dtype == "BF16":
            return (self.view(name).astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the caller refuses
            return self.view(name).astype(np.float32)


def write_tensor_file(path: Path, specs: Iterable[TensorSpec], produce: Callable[[str], NDArray[Any]]) -> None:
    """Write a file tensor by tensor, so that no more than one is in memory.

    The data section starts at a multiple of 64 bytes, and tensors that fill whole multiples of 64 bytes come first, so
    that they are aligned for vector loads in a mapped file. `produce` is called once per name, in file order.
    """
    ordered = sorted(specs, key=lambda spec: spec.size_bytes % ALIGNMENT_BYTES != 0)  # stable
    with path.open("wb") as file:
        file.write(_header_bytes(ordered))
        for spec in ordered:
            array = produce(spec.name)
            if array.shape != spec.shape or array.dtype != _NUMPY_TYPES[spec.dtype]:
                raise ValueError(f"{spec.name}: {array.dtype}{array.shape} made, {spec.dtype}{spec.shape} announced")
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())


def _header_bytes(ordered: list[TensorSpec]) -> bytes:
    header, offset = {}, 0
    for spec in ordered:
        end = offset + spec.size_bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise TensorFileError(f"cannot read {path.name}: {error.strerror}") from error


def _map(path: Path, descriptor: int) -> mmap.mmap:
    if os.fstat(descriptor).st_size < 8:
        raise TensorFileError(f"{path.name} is too short to be a safetensors file")
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise TensorFileError(f"cannot read {path.name}: {error.strerror}") from error


def _version(descriptor: int) -> tuple[int, int]:
    """What a change of the file's content changes."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _parse_header(path: Path, data: NDArray[np.uint8]) -> tuple[dict[str, TensorSpec], dict[str, int]]:
    """Specifications by name, and where each tensor's data starts in the file."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(MAX_HEADER_BYTES, data.size - 8):
        raise TensorFileError(f"{path.name} is cut short or no safetensors file: its header claims {length} bytes")
    try:
        header = dict(json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=_unique_keys))
        header.pop("__metadata__", None)
        entries = {name: _parse_entry(name, entry) for name, entry in header.items()}
        _check_coverage([extent for _, extent in entries.values()], data.size - 8 - length)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TensorFileError(f"{path.name} has a damaged safetensors header: {error!s:.200}") from error
    specs = {name: spec for name, (spec, _) in entries.items()}
    return specs, {name: 8 + length + start for name, (_, (start, _)) in entries.items()}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a name occurs twice")
    return keys


def _parse_entry(name: str, entry: Any) -> tuple[TensorSpec, tuple[int, int]]:
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not name.isprintable():
        raise ValueError(f"a tensor is called {name!r:.100}")
    if dtype not in _NUMPY_TYPES:
        raise ValueError(f"{name:.100}: unknown element type {dtype!r:.40}")
    if type(shape) is not list or len(shape) > _MAX_DIMENSIONS or not all(map(_is_count, [*shape, start, end])):
        raise ValueError(f"{name:.100}: bad shape or offsets")
    spec = TensorSpec(name, dtype, tuple(shape))
    if end - start != spec.size_bytes:
        raise ValueError(f"{name:.100}: {end - start} bytes of data do not make {dtype}{shape}")
    return spec, (start, end)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _check_coverage(extents: list[tuple[int, int]], size_bytes: int) -> None:
    """The data must be exactly the tensors, one after the other: no overlap, no hole, nothing behind."""
    position = 0
    for start, end in sorted(extents):
        if start != position:
            raise ValueError("tensors overlap or leave a hole")
        position = end
    if position != size_bytes:
        raise ValueError(f"{size_bytes} bytes of data, {position} expected: the file is cut short or has a tail")
