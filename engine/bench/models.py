"""Random models in our own format, written once per shape and kept.

Weights are normal with a standard deviation of 0.02 and lie in the files as 4- and 8-bit blocks from the start, so that
a model of any size is made in seconds and no more than one matrix is in memory. Norms are 1. The peers' models are made
from this bundle, hence all contestants run the same weights.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.artifact import (
    ADAPTER_WEIGHTS,
    BASE_WEIGHTS,
    FORMAT,
    AdapterManifest,
    Architecture,
    BaseBinding,
    BaseManifest,
    TokenizerInfo,
    describe_files,
    read_base,
    write_manifest,
)
from engine.convert.building import building
from engine.layout import (
    GROUP_INPUTS,
    GROUP_SUBGROUPS,
    MAX_MULTIPLIER,
    TILE_ROWS,
    ZERO_POINT,
    block_bytes,
    pack_int4,
    pack_int8,
    pack_low_rank,
    pack_planes,
)
from engine.lora import lora_specs
from engine.parameters import EMBEDDING, HEAD, linear_modules, matrix_modules, vectors
from engine.tensor_file import TensorSpec, write_tensor_file

LORA_RANK: Final = 16
WEIGHT_STD: Final = 0.02
_NO_TOKENIZER: Final = TokenizerInfo("0" * 64, "1" * 64, eos_token_ids=())
_VALUE_STD: Final = {4: 2.6, 8: 36.0}  # of the stored integers: the largest of a group comes near the end of its range
_INT8_SCALE: Final = WEIGHT_STD / _VALUE_STD[8]

_TILES_AT_ONCE: Final = 256
U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where everything about one random model lies. Peers keep their own files beside the bundles."""

    path: Path

    @property
    def base(self) -> Path:
        """The base bundle."""
        return self.path / "base"

    @property
    def adapter(self) -> Path:
        """An adapter of rank 16 for all projections."""
        return self.path / "adapter"

    def peer(self, name: str) -> Path:
        """A peer's own directory; it appears when it is whole."""
        return self.path / name


def fingerprint(architecture: Architecture) -> str:
    """Changes with the architecture and with how bundles lay it out, so that no old file is taken for a new one."""
    return hashlib.sha256(repr((FORMAT, architecture, _specs(architecture))).encode()).hexdigest()[:8]


def ensure_model(folder: ModelFolder, architecture: Architecture) -> None:
    """Write what is missing."""
    if not folder.base.exists():
        write_base(folder.base, architecture)
    if not folder.adapter.exists():
        write_adapter(folder.adapter, folder.base)


def write_base(bundle: Path, architecture: Architecture) -> None:
    """A base bundle of random blocks, without a tokenizer."""
    specs = _specs(architecture)
    by_name = {spec.name: spec for spec in specs}
    with building(bundle) as folder:
        write_tensor_file(folder / BASE_WEIGHTS, specs, lambda name: _produce(by_name[name]))
        files = describe_files(folder, [BASE_WEIGHTS])
        write_manifest(folder, BaseManifest(architecture, _NO_TOKENIZER, "int4", files))


def write_adapter(bundle: Path, base_bundle: Path) -> None:
    """An adapter bundle for every linear layer of the base."""
    base, digest = read_base(base_bundle)
    ranks = dict.fromkeys(linear_modules(base.architecture), LORA_RANK)
    specs = lora_specs(base, ranks)
    by_name = {spec.name: spec for spec in specs}
    with building(bundle) as folder:
        write_tensor_file(folder / ADAPTER_WEIGHTS, specs, lambda name: _produce(by_name[name]))
        binding = BaseBinding(digest, _NO_TOKENIZER.tokenizer_sha256, _NO_TOKENIZER.chat_template_sha256)
        files = describe_files(folder, [ADAPTER_WEIGHTS])
        write_manifest(folder, AdapterManifest(binding, ranks, files))


def _specs(architecture: Architecture) -> list[TensorSpec]:
    matrices = []
    for module, (rows, inputs) in matrix_modules(architecture).items():
        assert rows % TILE_ROWS == inputs % GROUP_INPUTS == 0, "random blocks have no padding"
        blocks = (rows // TILE_ROWS, inputs // GROUP_INPUTS, block_bytes(4))
        shape = (2, *blocks) if module in (EMBEDDING, HEAD) else blocks
        matrices.append(TensorSpec(f"{module}.weight", "U8", shape))
    return matrices + [TensorSpec(name, "F32", (length,)) for name, length in vectors(architecture).items()]


def _produce(spec: TensorSpec) -> NDArray[Any]:
    """The tensor of this name: the same in every run, whatever the others are."""
    generator = np.random.default_rng(zlib.crc32(spec.name.encode()))
    if spec.dtype == "U8":
        return _random_stored(generator, spec)
    if spec.name.endswith("norm.weight"):
        return np.ones(spec.shape, np.float32)
    return generator.standard_normal(spec.shape, np.float32) * np.float32(WEIGHT_STD)


def _random_stored(generator: np.random.Generator, spec: TensorSpec) -> U8:
    match spec.shape:
        case (tiles, _):
            return _random_b(generator, tiles)
        case (_, groups, size) if size == block_bytes(8):
            return _random_a(generator, groups)
        case (tiles, groups, _):
            return _random_blocks(generator, tiles, groups)
        case (_, tiles, groups, _):
            return _random_planes(generator, tiles, groups)
    raise AssertionError(spec)


def _random_a(generator: np.random.Generator, groups: int) -> U8:
    """Int8 blocks [1, groups, 2112] of rank 16."""
    values = _random_int8(generator, LORA_RANK, groups * GROUP_INPUTS)
    return pack_int8(values, np.full((LORA_RANK, groups), _INT8_SCALE, np.float16))


def _random_b(generator: np.random.Generator, tiles: int) -> U8:
    """Low-rank blocks [tiles, 288] of rank 16."""
    values = _random_int8(generator, tiles * TILE_ROWS, LORA_RANK)
    return pack_low_rank(values, np.full(len(values), _INT8_SCALE, np.float16))


def _random_int8(generator: np.random.Generator, rows: int, inputs: int) -> U8:
    values: U8 = _normal_values(8)[generator.integers(0, 256, (rows, inputs), np.uint8)]  # [rows, inputs]
    return values


def _random_blocks(generator: np.random.Generator, tiles: int, groups: int) -> U8:
    """4-bit blocks of `engine.layout` [tiles, groups, 1120]; some tiles at a time, as packing takes several copies."""
    blocks = np.empty((tiles, groups, block_bytes(4)), np.uint8)
    allowed = _normal_values(4)
    for first in range(0, tiles, _TILES_AT_ONCE):
        values, multipliers, scales = _random_matrix(
            generator, min(_TILES_AT_ONCE, tiles - first), groups, allowed, _VALUE_STD[4]
        )
        blocks[first : first + _TILES_AT_ONCE] = pack_int4(values, multipliers, scales)
    return blocks


def _random_planes(generator: np.random.Generator, tiles: int, groups: int) -> U8:
    """8 bits in two planes [2, tiles, groups, 1120]."""
    planes = np.empty((2, tiles, groups, block_bytes(4)), np.uint8)
    allowed = np.clip(_normal_values(8), ZERO_POINT[8] - 119, ZERO_POINT[8] + 119)
    for first in range(0, tiles, _TILES_AT_ONCE):
        values, multipliers, scales = _random_matrix(
            generator, min(_TILES_AT_ONCE, tiles - first), groups, allowed, _VALUE_STD[8]
        )
        planes[:, first : first + _TILES_AT_ONCE] = pack_planes(values, multipliers, scales)
    return planes


def _random_matrix(
    generator: np.random.Generator, tiles: int, groups: int, allowed: U8, value_std: float
) -> tuple[U8, NDArray[np.int8], NDArray[np.float16]]:
    """Values [rows, inputs] that are `allowed` [256], multipliers [rows, subgroups] and scales [rows, groups]."""
    rows = tiles * TILE_ROWS
    values = allowed[generator.integers(0, 256, (rows, groups * GROUP_INPUTS), np.uint8)]
    multipliers = generator.integers(10, MAX_MULTIPLIER + 1, (rows, groups * GROUP_SUBGROUPS), np.int8)
    mean_multiplier = (10 + MAX_MULTIPLIER) / 2
    scales = np.full((rows, groups), WEIGHT_STD / value_std / mean_multiplier, np.float16)
    return values, multipliers, scales


def _normal_values(bits: int) -> U8:
    """Stored integers at 256 equally likely points of a normal distribution around the zero point."""
    points = [NormalDist(ZERO_POINT[bits], _VALUE_STD[bits]).inv_cdf((index + 0.5) / 256) for index in range(256)]
    return np.clip(np.rint(points), 0, 2 * ZERO_POINT[bits] - 1).astype(np.uint8)  # [256]
