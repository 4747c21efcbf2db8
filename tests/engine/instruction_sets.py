"""Each instruction set of the native core behind one object, so that one test runs them all, and its layouts in numpy.

A set that runs elsewhere, such as under an emulator, is an `InstructionSet` whose `core` has the interface of
`socle_native`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import socle_native
from numpy.typing import NDArray

from engine.backends.native import NativeBackend
from engine.config import EngineConfig
from engine.convert.quantise import quantise_low_rank
from engine.layout import (
    GROUP_INPUTS,
    MAX_MULTIPLIER,
    SUBGROUP_INPUTS,
    TILE_ROWS,
    block_bytes,
    dequantise,
    dequantise_low_rank,
    pack_int4,
    pack_int8,
)
from engine.sampling import SamplingParams

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Encoding = Literal["int4", "int8", "low_rank", "float32"]
KvType = Literal["fp16", "int8"]

TILE_POSITIONS = 16


@dataclass(frozen=True)
class Quantised:
    """Rows as they enter a product: values [rows, padded inputs], and a tail for each group [rows, groups, 6].

    An int32 offset, a float32 scale, then an int32 offset for each of four subgroups.
    """

    values: NDArray[np.int8]
    tails: NDArray[np.int32]

    @property
    def offsets(self) -> NDArray[np.int32]:
        return self.tails[..., 0]

    @property
    def scales(self) -> F32:
        return self.tails[..., 1].view(np.float32)

    @property
    def dense(self) -> NDArray[np.float64]:
        """What the values stand for, [rows, padded inputs]."""
        groups = self.values.reshape(*self.scales.shape, -1)  # [rows, groups, group inputs]
        return (groups * self.scales[..., None].astype(np.float64)).reshape(self.values.shape)


@dataclass(frozen=True)
class Stored:
    """A matrix [rows, inputs] in the form that products read, and what it stands for."""

    encoding: Encoding
    blocks: U8
    dense: F32

    @property
    def rows(self) -> int:
        return len(self.dense)

    @property
    def inputs(self) -> int:
        return self.dense.shape[1]

    @property
    def tiles(self) -> int:
        return -(-self.rows // TILE_ROWS)

    @property
    def group_inputs(self) -> int:
        return padded(self.inputs, TILE_ROWS) if self.encoding == "low_rank" else GROUP_INPUTS


@dataclass(frozen=True)
class InstructionSet:
    name: str
    core: Any = socle_native

    def __str__(self) -> str:
        return self.name

    def open(self, bundle: Path, **settings: Any) -> NativeBackend:
        """A back end on this base."""
        return NativeBackend(bundle, EngineConfig(instruction_set=self.name, **settings), self.core)

    def quantise(self, x: F32, group_inputs: int = GROUP_INPUTS) -> Quantised:
        """Rows [rows, inputs], padded to whole groups with zeros."""
        whole = np.pad(x, ((0, 0), (0, -x.shape[1] % group_inputs)))
        values, tails = self.core.kernels.quantise(self.name, whole, group_inputs)
        return Quantised(values.reshape(whole.shape), tails.reshape(len(x), -1, 6))

    def product(
        self, matrix: Stored, x: Quantised | F32, *, rows: slice | None = None, tiles: slice | None = None, start=None
    ) -> F32:
        """x W^T [rows, 16 * tiles] of some rows of x and tiles of W, added to `start`."""
        num_rows = len(x) if isinstance(x, np.ndarray) else len(x.values)
        first_row, last_row, _ = (rows or slice(None)).indices(num_rows)
        first_tile, last_tile, _ = (tiles or slice(None)).indices(matrix.tiles)
        entering = {"dense": x} if isinstance(x, np.ndarray) else vars(x)
        out = self.core.kernels.product(
            self.name,
            matrix.encoding,
            matrix.blocks,
            matrix.rows,
            matrix.inputs,
            num_rows=num_rows,
            part=(first_row, last_row, first_tile, last_tile),
            start=start,
            **entering,
        )
        return out.reshape(last_row - first_row, -1)

    def rms_norm(self, x: F32, weight: F32, eps: float) -> F32:
        return self.core.kernels.rms_norm(self.name, x, weight, eps)

    def rotate(self, head: F32, cos: F32, sin: F32) -> F32:
        return self.core.kernels.rotate(self.name, head, cos, sin)

    def add(self, x: F32, y: F32) -> F32:
        return self.core.kernels.add(self.name, x, y)

    def scale(self, x: F32, factor: float) -> F32:
        return self.core.kernels.scale(self.name, x, factor)

    def gate(self, gate: F32, up: F32) -> F32:
        return self.core.kernels.gate(self.name, gate, up)

    def expose(self, x: F32) -> F32:
        """NaN for what is not finite."""
        return self.core.kernels.expose(self.name, x)

    def tile_tops(self, x: F32) -> F32:
        """The largest of each 16."""
        return self.core.kernels.tile_tops(self.name, x)

    def next_token(self, logits: F32, params: SamplingParams, seen_token_ids: Sequence[int], uniform: float) -> int:
        """The sampled token, -1 if the logits are not finite."""
        return self.core.next_token(
            logits,
            np.array(seen_token_ids, np.int32),
            repetition_penalty=params.repetition_penalty,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            uniform=uniform,
            instruction_set=self.name,
        )

    def store_kv(self, kv_type: KvType, keys: F32, values: F32) -> U8:
        """Tiles [tiles, bytes] of keys and values [positions, head_dim]."""
        return self.core.kernels.store_kv(self.name, kv_type, keys, values).reshape(-(-len(keys) // TILE_POSITIONS), -1)

    def attend(self, kv_type: KvType, keys: F32, values: F32, queries: F32, seen: NDArray[np.int32]) -> F32:
        """What queries [queries, head_dim] make of the positions seen[i, 0] .. seen[i, 1] - 1 of keys and values."""
        begins, ends = np.ascontiguousarray(seen.T)
        out = self.core.kernels.attend(self.name, kv_type, keys.shape[1], keys, values, queries, begins, ends)
        return out.reshape(queries.shape)


INSTRUCTION_SETS = [InstructionSet(name) for name in socle_native.instruction_sets()]
PORTABLE = InstructionSet("portable")


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def stored(generator: np.random.Generator, encoding: Encoding, rows: int, inputs: int) -> Stored:
    """A random matrix, its values and scales over their whole range."""
    if encoding == "float32":
        dense = generator.standard_normal((rows, inputs)).astype(np.float32)
        return Stored(encoding, dense.view(np.uint8), dense)
    if encoding == "low_rank":
        blocks = quantise_low_rank("b", generator.standard_normal((rows, inputs)).astype(np.float32))
        return Stored(encoding, blocks, dequantise_low_rank(blocks, rows, inputs))
    bits = 4 if encoding == "int4" else 8
    values = generator.integers(0, 2**bits, (rows, inputs), dtype=np.uint8)
    scales = generator.uniform(-1, 1, (rows, -(-inputs // GROUP_INPUTS))).astype(np.float16)
    shape = (rows, -(-inputs // SUBGROUP_INPUTS))
    multipliers = generator.integers(-MAX_MULTIPLIER, MAX_MULTIPLIER + 1, shape, np.int8)
    blocks = pack_int4(values, multipliers, scales) if bits == 4 else pack_int8(values, scales)
    return Stored(encoding, blocks, dequantise(blocks, bits, rows, inputs))


def scales_in(blocks: U8) -> NDArray[np.float16]:
    """The fp16 scales [..., 16] in blocks [..., bytes] of any encoding, to read and to write."""
    start = {block_bytes(4): 64, block_bytes(8): 2048}.get(blocks.shape[-1], blocks.shape[-1] - 2 * TILE_ROWS)
    return blocks[..., start : start + 2 * TILE_ROWS].view(np.float16)


def rounded(x: F32, kv_type: KvType) -> F32:
    """Vectors of the last axis as a cache keeps them: fp16, or int8 with a scale for each vector."""
    if kv_type == "fp16":
        return x.astype(np.float16).astype(np.float32)
    top = np.abs(x).max(axis=-1, keepdims=True)
    factor = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    return np.rint(x * factor) * (top / np.float32(127))


def read_tiles(tiles: U8, kv_type: KvType, num_positions: int, head_dim: int) -> tuple[F32, F32]:
    """Keys and values [positions, head_dim] that tiles stand for."""
    dtype, element = (np.dtype("<f2"), 2) if kv_type == "fp16" else (np.dtype("i1"), 1)
    scale_bytes = 0 if kv_type == "fp16" else 4 * TILE_POSITIONS
    key_bytes = element * TILE_POSITIONS * head_dim
    stride = padded(head_dim, TILE_POSITIONS)
    value_bytes = element * TILE_POSITIONS * stride
    keys, key_scales, values, value_scales, _ = np.split(
        tiles, np.cumsum([key_bytes, scale_bytes, value_bytes, scale_bytes]), axis=1
    )
    keys = np.ascontiguousarray(keys).view(dtype).reshape(len(tiles), head_dim, TILE_POSITIONS).transpose(0, 2, 1)
    values = np.ascontiguousarray(values).view(dtype).reshape(len(tiles), TILE_POSITIONS, stride)[..., :head_dim]
    pairs = []
    for array, scales in ((keys, key_scales), (values, value_scales)):
        factor = np.ascontiguousarray(scales).view(np.float32)[..., None] if kv_type == "int8" else np.float32(1)
        pairs.append((array.astype(np.float32) * factor).reshape(-1, head_dim)[:num_positions])
    return pairs[0], pairs[1]
