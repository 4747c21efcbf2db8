"""From a small checkpoint to a large one with the same answers, and likewise for its PEFT adapters.

A trained model of any size, where no large one can be had: engines do the full work of the shape, while answers and
acceptance rates are those of the small model. Say so wherever such a figure is quoted. Why the function stays the same
is written in `engine.convert.growth`.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.artifact import CHAT_TEMPLATE, TOKENIZER, Architecture
from engine.convert.building import Progress, building, ignore_progress
from engine.convert.checkpoint import check_tensors
from engine.convert.element_types import encode, written_dtype
from engine.convert.errors import NotACheckpointError
from engine.convert.families import architecture_of
from engine.convert.growth import SHAPES, SIZE_KEYS, Growth, Shape, plan_growth, split_layer, writes_hidden
from engine.convert.source import SourceTensors, open_tensors, read_json
from engine.parameters import EMBEDDING, FINAL_NORM, LAYER_NORMS, QK_NORMS, layer_path, parameter_shapes
from engine.tensor_file import TensorSpec, write_tensor_file

__all__ = ["SHAPES", "Shape", "grow_checkpoint"]

F32 = NDArray[np.float32]
RANDOM_STD: Final = 0.02  # as Qwen initialises its matrices
_COPIED: Final = (
    TOKENIZER,
    CHAT_TEMPLATE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


def grow_checkpoint(
    source: Path, target: Path, shape: Shape, *, seed: int = 0, on_progress: Progress = ignore_progress
) -> Architecture:
    """Write the checkpoint in `source` anew in a larger shape; raises a `ConversionError` saying what to mend.

    `target` must not exist; it appears at once when it is whole. Matrices keep their element type, norm weights become
    float32: their factor is no power of two. Tensors are made one by one; the embedding is the largest, 0.8 GB for 4b.
    """
    on_progress("reading the checkpoint", 0.0)
    config = read_json(source / "config.json", NotACheckpointError)
    growth = plan_growth(architecture_of(config), shape)
    tensors = open_tensors(source, "model", NotACheckpointError)
    check_tensors(tensors, growth.small)
    with building(target) as folder:
        grown = _GrownTensors(growth, tensors, seed)
        specs = list(grown.specs())
        write_tensor_file(folder / "model.safetensors", specs, _watched(grown.tensor, specs, on_progress))
        copy_files(source, folder, _COPIED)
        write_json(folder / "config.json", _grown_config(config, growth))
    on_progress("done", 1.0)
    return growth.large


def random_matrix(name: str, shape: tuple[int, int], seed: int) -> F32:
    """Small normal numbers that depend on seed and name alone, not on what was made before."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(shape, np.float32) * np.float32(RANDOM_STD)  # as shape


def copy_files(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Those of the files that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """As save_pretrained() lays it out."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _watched(
    produce: Callable[[str], NDArray[Any]], specs: list[TensorSpec], on_progress: Progress
) -> Callable[[str], NDArray[Any]]:
    """`produce` with reports of how much is done."""
    sizes = {spec.name: spec.size_bytes for spec in specs}
    total, written = sum(sizes.values()), 0

    def watched(name: str) -> NDArray[Any]:
        nonlocal written
        on_progress("growing the weights", written / total)
        written += sizes[name]
        return produce(name)

    return watched


def _grown_config(config: Mapping[str, Any], growth: Growth) -> dict[str, Any]:
    """The small model's options with the large one's sizes, and a note of where it comes from."""
    sizes = {key: getattr(growth.large, key) for key in SIZE_KEYS}
    grown = {**config, **sizes, "rms_norm_eps": growth.large.rms_norm_eps}
    grown["grown_from"] = {key: getattr(growth.small, key) for key in SIZE_KEYS}
    if kinds := config.get("layer_types"):
        grown["layer_types"] = [*kinds, *kinds[-1:] * (growth.large.num_hidden_layers - len(kinds))]
    return grown


@dataclass(frozen=True, slots=True)
class _GrownTensors:
    """The large model's tensors, each made when it is asked for."""

    growth: Growth
    tensors: SourceTensors
    seed: int

    def specs(self) -> Iterator[TensorSpec]:
        for name, shape in parameter_shapes(self.growth.large).items():
            yield TensorSpec(name, self._dtype(name) if len(shape) == 2 else "F32", shape)

    def tensor(self, name: str) -> NDArray[Any]:
        """As `engine.tensor_file` writes it: bfloat16 in uint16."""
        if name == f"{EMBEDDING}.weight":
            return self._embedding(name)
        if name == FINAL_NORM:
            return self._hidden_norm(name, self.growth.last_norm_tail)
        layer, part = _layer_part(name)
        is_added = self.growth.is_added(layer)
        if part in LAYER_NORMS:
            return self._added_norm() if is_added else self._hidden_norm(name, np.zeros(self.growth.num_spare))
        if part in QK_NORMS:
            return np.ones(self.growth.large.head_dim, np.float32) if is_added else self.tensors.float32(name)
        linear = part.removesuffix(".weight")
        return self._added_linear(name, linear) if is_added else self._linear(name, linear)

    def _dtype(self, name: str) -> str:
        """Of a matrix; that of an added layer is as in the first layer."""
        parts = split_layer(name)
        like = name if parts is None else f"{layer_path(0)}.{parts[1]}"
        return written_dtype(self.tensors[like].dtype)

    def _shape(self, name: str) -> tuple[int, ...]:
        return parameter_shapes(self.growth.large)[name]

    def _embedding(self, name: str) -> NDArray[Any]:
        """[vocab_size, hidden_size] of the large model: real and added tokens, each with its spare dimensions."""
        values, dtype, spare = self.tensors.float32(name), self._dtype(name), self.growth.num_spare
        tokens, hidden = values.shape
        stored = encode(values, dtype)  # [tokens, hidden]
        grown = np.empty(self._shape(name), stored.dtype)  # [large vocab, large hidden]
        grown[:tokens, :hidden] = stored
        grown[:tokens, hidden:] = encode(np.full(spare, self.growth.filler, np.float32), dtype)
        grown[tokens:, :hidden] = encode(values.mean(axis=0), dtype)
        grown[tokens:, hidden:] = encode(self.growth.added_token_tail, dtype)
        return grown

    def _linear(self, name: str, linear: str) -> NDArray[Any]:
        """A matrix of the small model in its places, zero elsewhere."""
        values = self.tensors.float32(name) * np.float32(self.growth.row_scale(linear))  # [rows, inputs]
        stored = encode(values, self._dtype(name))  # [rows, inputs]
        grown = np.zeros(self._shape(name), stored.dtype)  # [large rows, large inputs]
        grown[np.ix_(*self.growth.places(linear))] = stored
        return grown

    def _added_linear(self, name: str, linear: str) -> NDArray[Any]:
        """Random, or zero if its result would be added to the state: [large rows, large inputs]."""
        rows, inputs = self._shape(name)
        if writes_hidden(linear):
            return encode(np.zeros((rows, inputs), np.float32), self._dtype(name))
        return encode(random_matrix(name, (rows, inputs), self.seed), self._dtype(name))

    def _hidden_norm(self, name: str, tail: NDArray[Any]) -> F32:
        """[large hidden]: the small model's weights scaled, then those of the spare dimensions."""
        head = self.tensors.float32(name) * np.float32(self.growth.norm_scale)  # [hidden]
        return np.concatenate([head, tail.astype(np.float32)])  # [large hidden]

    def _added_norm(self) -> F32:
        return np.ones(self.growth.large.hidden_size, np.float32)  # [large hidden]


def _layer_part(name: str) -> tuple[int, str]:
    parts = split_layer(name)
    assert parts is not None, name
    return parts
