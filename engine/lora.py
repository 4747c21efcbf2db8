"""An adapter's matrices as they lie in its bundle: conversion writes them, back ends read them in place.

To what a module makes of x, an adapter adds B (A x): A [rank, inputs] and B [rows, rank], its scale folded into B. On a
base in 4 bits, A lies in int8 blocks and B in low-rank blocks of `engine.layout`, which the native core reads as they
are; on a float32 base both lie in float32. Knows names and shapes, and not how matrices become blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.artifact import BaseManifest
from engine.layout import (
    GROUP_INPUTS,
    TILE_ROWS,
    block_bytes,
    dequantise,
    dequantise_low_rank,
    int8_scales,
    low_rank_block_bytes,
    low_rank_scales,
)
from engine.parameters import LINEARS_BY_INPUT, layer_path, linear_modules
from engine.tensor_file import TensorSpec

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LoraMatrices:
    """What an adapter adds to one module [rows, inputs].

    a: uint8 blocks [tiles, groups, 2112] for 8 bits, float32 [rank, inputs] for 32.
    b: uint8 blocks [tiles, 64 * ceil(rank / 4) + 32] for 8 bits, float32 [rows, rank] for 32.
    """

    a: NDArray[Any]
    b: NDArray[Any]
    rank: int
    rows: int
    inputs: int
    bits: int

    def dense(self) -> tuple[F32, F32]:
        """Copies of A [rank, inputs] and B [rows, rank] in float32."""
        if self.bits == 32:
            return self.a.copy(), self.b.copy()
        return dequantise(self.a, 8, self.rank, self.inputs), dequantise_low_rank(self.b, self.rows, self.rank)

    @property
    def is_zero(self) -> bool:
        """Whether nothing is added."""
        return not all(numbers.any() for numbers in self.floats())

    def floats(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The floating-point numbers in A and in B, where they lie: of blocks the scales."""
        return (self.a, self.b) if self.bits == 32 else (int8_scales(self.a), low_rank_scales(self.b))


def are_finite(matrices: Iterable[LoraMatrices]) -> bool:
    """Whether all numbers are; in one pass, as an adapter has hundreds of matrices and a pass costs microseconds."""
    numbers = [part.reshape(-1) for lora in matrices for part in lora.floats()]
    return bool(np.isfinite(np.concatenate(numbers)).all())


def lora_bits(base: BaseManifest) -> int:
    """In how many bits adapters of a base lie."""
    return 32 if base.weights == "float32" else 8


def lora_specs(base: BaseManifest, ranks: Mapping[str, int]) -> list[TensorSpec]:
    """The tensors of an adapter with these ranks, `MODULE.lora_A` and `MODULE.lora_B`, in the order of the file.

    A step reads forward: layer after layer, and of the modules that share an input all A, then all B. (The writer moves
    what would misalign the others to the end: B with an odd number of tiles.)
    """
    shapes, bits = linear_modules(base.architecture), lora_bits(base)
    specs = []
    for layer in range(base.architecture.num_hidden_layers):
        for names in LINEARS_BY_INPUT:
            modules = [module for name in names if (module := f"{layer_path(layer)}.{name}") in ranks]
            specs += [_spec_a(module, ranks[module], shapes[module][1], bits) for module in modules]
            specs += [_spec_b(module, ranks[module], shapes[module][0], bits) for module in modules]
    return specs


def _spec_a(module: str, rank: int, inputs: int, bits: int) -> TensorSpec:
    name = f"{module}.lora_A"
    if bits == 32:
        return TensorSpec(name, "F32", (rank, inputs))
    return TensorSpec(name, "U8", (-(-rank // TILE_ROWS), -(-inputs // GROUP_INPUTS), block_bytes(8)))


def _spec_b(module: str, rank: int, rows: int, bits: int) -> TensorSpec:
    name = f"{module}.lora_B"
    if bits == 32:
        return TensorSpec(name, "F32", (rows, rank))
    return TensorSpec(name, "U8", (-(-rows // TILE_ROWS), low_rank_block_bytes(rank)))
