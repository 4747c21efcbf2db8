"""From a PEFT directory to one that fits the grown base, with the same answers.

A is padded with zeros in its inputs and B in its outputs, heads move as the base's do. The layers that were added get
matrices too, so that the adapter costs what one of its rank costs on a model of that shape; they change nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.convert.adapter import EXTRAS_NAME, LORA_NAME
from engine.convert.building import Progress, building, ignore_progress
from engine.convert.element_types import encode, written_dtype
from engine.convert.errors import (
    MissingTensorError,
    NoModuleMatchedError,
    NotACheckpointError,
    NotAnAdapterError,
    UnexpectedTensorError,
    WrongBaseError,
)
from engine.convert.families import architecture_of
from engine.convert.grow import copy_files, random_matrix
from engine.convert.growth import Growth, Shape, plan_growth, split_layer, writes_hidden
from engine.convert.peft_options import PeftOptions
from engine.convert.source import SourceTensors, open_tensors, read_json
from engine.parameters import linear_modules
from engine.tensor_file import TensorSpec, write_tensor_file

_CONFIG: Final = "adapter_config.json"

Key = tuple[str, str]  # module, "A" or "B"


def grow_adapter(
    source: Path, base: Path, target: Path, shape: Shape, *, seed: int = 0, on_progress: Progress = ignore_progress
) -> None:
    """Write the adapter in `source`, trained on the small checkpoint `base`, for that base grown to `shape`.

    Raises a `ConversionError` saying what to mend. `target` must not exist; it appears at once when it is whole.
    """
    on_progress("reading the adapter", 0.0)
    growth = plan_growth(architecture_of(read_json(base / "config.json", NotACheckpointError)), shape)
    options = PeftOptions(read_json(source / _CONFIG, NotAnAdapterError))
    tensors = open_tensors(source, "adapter_model", NotAnAdapterError)
    names = _names(tensors)
    _check_names(names, options, growth)
    _check_shapes(names, tensors, options, growth)
    with building(target) as folder:
        on_progress("growing the matrices", 0.3)
        grown = _GrownAdapter(growth, tensors, names, options, seed)
        keys = {f"base_model.model.{module}.lora_{which}.weight": (module, which) for module, which in grown.order()}
        specs = [TensorSpec(name, grown.dtype(key), grown.shape(key)) for name, key in keys.items()]
        write_tensor_file(folder / "adapter_model.safetensors", specs, lambda name: grown.matrix(keys[name]))
        copy_files(source, folder, (_CONFIG, EXTRAS_NAME))
    on_progress("done", 1.0)


def _names(tensors: SourceTensors) -> dict[Key, str]:
    """The tensor of each module's A and B."""
    names: dict[Key, str] = {}
    for name in sorted(tensors):
        match = LORA_NAME.fullmatch(name)
        if match is None:
            raise UnexpectedTensorError(f"{name:.120} is no tensor of a LoRA on a linear layer")
        names[match[1], match[2]] = name
    return names


def _check_names(names: Mapping[Key, str], options: PeftOptions, growth: Growth) -> None:
    """An A and a B for each module that the options target in the small model, and nothing else."""
    expected = {(module, which) for module in linear_modules(growth.small) if options.targets(module) for which in "AB"}
    if not expected:
        raise NoModuleMatchedError("target_modules matches no linear layer of the base")
    if unknown := sorted(set(names) - expected):
        raise UnexpectedTensorError(
            f"there are tensors for {unknown[0][0]:.120}, which the base does not have or target_modules does not name"
        )
    if missing := sorted(expected - set(names)):
        module, which = missing[0]
        raise MissingTensorError(f"{module} lacks its lora_{which}", hint="Save the adapter again.")


def _check_shapes(names: Mapping[Key, str], tensors: SourceTensors, options: PeftOptions, growth: Growth) -> None:
    linears = linear_modules(growth.small)
    for key, name in names.items():
        expected = _matrix_shape(key, linears, options)
        if tensors[name].shape != expected:
            raise WrongBaseError(
                f"{name} has shape {list(tensors[name].shape)}, expected is {list(expected)}",
                hint="Give the small checkpoint that the adapter was trained on as its base, not the grown one.",
            )


def _matrix_shape(key: Key, linears: Mapping[str, tuple[int, int]], options: PeftOptions) -> tuple[int, int]:
    """A: [rank, inputs], B: [rows, rank]."""
    module, which = key
    (rows, inputs), rank = linears[module], options.rank(module)
    return (rank, inputs) if which == "A" else (rows, rank)


@dataclass(frozen=True, slots=True)
class _GrownAdapter:
    """The matrices for the large model, each made when it is asked for."""

    growth: Growth
    tensors: SourceTensors
    names: Mapping[Key, str]
    options: PeftOptions
    seed: int

    def order(self) -> list[Key]:
        """Every matrix that the options call for in the large model."""
        modules = linear_modules(self.growth.large)
        return [(module, which) for module in modules if self.options.targets(module) for which in "AB"]

    def shape(self, key: Key) -> tuple[int, int]:
        return _matrix_shape(key, linear_modules(self.growth.large), self.options)

    def dtype(self, key: Key) -> str:
        """That of the small adapter's matrix; of its first one for a layer that it does not have."""
        name = self.names.get(key) or next(iter(self.names.values()))
        return written_dtype(self.tensors[name].dtype)

    def matrix(self, key: Key) -> NDArray[Any]:
        """As `engine.tensor_file` writes it: bfloat16 in uint16."""
        return self._moved(key) if key in self.names else self._added(key)

    def _moved(self, key: Key) -> NDArray[Any]:
        """A matrix of the small adapter in its places, zero elsewhere."""
        values, (linear, rank) = self.tensors.float32(self.names[key]), (_linear(key), self.options.rank(key[0]))
        rows, inputs = self.growth.places(linear)
        if key[1] == "A":
            places = np.ix_(np.arange(rank), inputs)
        else:
            places = np.ix_(rows, np.arange(rank))
            values = values * np.float32(self.growth.row_scale(linear))  # [rows, rank]
        stored = encode(values, self.dtype(key))  # [rank, inputs] or [rows, rank]
        grown = np.zeros(self.shape(key), stored.dtype)  # [rank, large inputs] or [large rows, rank]
        grown[places] = stored
        return grown

    def _added(self, key: Key) -> NDArray[Any]:
        """Random numbers whose effect ends at the added layer's output projection, which stays zero."""
        if key[1] == "B" and writes_hidden(_linear(key)):
            return encode(np.zeros(self.shape(key), np.float32), self.dtype(key))
        return encode(random_matrix("lora_".join(key), self.shape(key), self.seed), self.dtype(key))


def _linear(key: Key) -> str:
    parts = split_layer(key[0])
    assert parts is not None, key
    return parts[1]
