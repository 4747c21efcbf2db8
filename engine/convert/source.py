"""A directory that somebody uploaded: its JSON documents and its tensors, each checked before it is used.

Knows nothing of what the documents and tensors mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.convert.errors import ConversionError, MissingTensorError, NotFiniteError, PickleFileError
from engine.tensor_file import TensorFile, TensorFileError, TensorSpec

MAX_JSON_BYTES = 64 << 20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")


def read_json(path: Path, damaged: type[ConversionError], *, at_most_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file; raises `damaged` if it is missing, too large or anything else."""
    try:
        if path.stat().st_size > at_most_bytes:
            raise damaged(f"{path.name} is larger than {at_most_bytes >> 20} MiB")
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise damaged(f"{path.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(f"{path.name} is not readable JSON: {error!s:.200}") from error
    if not isinstance(document, dict):
        raise damaged(f"{path.name} holds no JSON object")
    return document


def read_optional_json(
    path: Path, damaged: type[ConversionError], *, at_most_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """As `read_json`, and a missing file is an empty object."""
    return read_json(path, damaged, at_most_bytes=at_most_bytes) if path.exists() else {}


class SourceTensors(Mapping[str, TensorSpec]):
    """The tensors of one or several safetensors files under their names."""

    def __init__(self, files: list[TensorFile]) -> None:
        """A name that occurs in two files is taken from the later one."""
        self._file_of = {name: file for file in files for name in file}

    def __getitem__(self, name: str) -> TensorSpec:
        return self._file_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def float32(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32; raises `NotFiniteError` for NaN and infinity."""
        try:
            values = self._file_of[name].float32(name)
        except TensorFileError as error:
            raise NotFiniteError(str(error), hint="Save the weights as float32, float16 or bfloat16.") from error
        if not np.isfinite(values).all():
            raise NotFiniteError(f"{name} holds NaN or infinity")
        return values


def open_tensors(source: Path, stem: str, damaged: type[ConversionError]) -> SourceTensors:
    """`<stem>.safetensors`, or the shards that `<stem>.safetensors.index.json` lists."""
    single, index = source / f"{stem}.safetensors", source / f"{stem}.safetensors.index.json"
    if single.is_file():
        return SourceTensors([_open(single, damaged)])
    if not index.is_file():
        _refuse_pickles(source)
        raise damaged(f"{single.name} is missing")
    return _open_shards(source, read_json(index, damaged).get("weight_map"), damaged)


def _open_shards(source: Path, weight_map: object, damaged: type[ConversionError]) -> SourceTensors:
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise damaged("the index of the shards has no weight_map of file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise damaged(f"the index names {name!r:.120}: shards lie beside it under plain names")
    tensors = SourceTensors([_open(source / name, damaged) for name in names])
    if missing := sorted(set(weight_map) - set(tensors)):
        raise MissingTensorError(f"the index lists {missing[0]}, which is in none of the shards")
    return tensors


def _open(path: Path, damaged: type[ConversionError]) -> TensorFile:
    try:
        return TensorFile(path)
    except TensorFileError as error:
        raise damaged(str(error)) from error


def _refuse_pickles(source: Path) -> None:
    for pattern in _PICKLES:
        for path in sorted(source.glob(pattern)):
            raise PickleFileError(f"{path.name} is a pickle file; only safetensors are read")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
