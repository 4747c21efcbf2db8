"""An adapter's matrices as the native core reads them: int8, A in the blocks of `engine.layout`, B in low-rank blocks.

A block of B holds one tile of 16 output rows: 64 bytes for each 4 of the rank's inputs, then 16 fp16 scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import socle_native
from numpy.typing import NDArray

from engine.artifact import Architecture
from engine.backends.weights import LoraMatrices
from engine.errors import BundleError
from engine.layout import GROUP_INPUTS, TILE_ROWS, ZERO_POINT, pack_int8
from engine.parameters import LAYER_LINEARS, layer_path

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
_LANE_INPUTS = 4
_ZERO = ZERO_POINT[8]


def pack_adapter(
    modules: Mapping[str, LoraMatrices], architecture: Architecture, adapter: socle_native.Adapter, *, is_float: bool
) -> int:
    """Fill the core's empty `adapter`; returns its bytes. `is_float` keeps float32, for a base of float32.

    Raises `BundleError` for values that are not finite.
    """
    size_bytes = 0
    for layer in range(architecture.num_hidden_layers):
        for number, name in enumerate(LAYER_LINEARS):
            path = f"{layer_path(layer)}.{name}"
            if path not in modules or not modules[path].a.size:
                continue
            a, b = modules[path].a.astype(np.float32), modules[path].b.astype(np.float32)
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise BundleError(f"the adapter's {path} holds values that are not finite: fetch it again")
            packed_a, packed_b = (a.view(np.uint8), b.view(np.uint8)) if is_float else _pack_pair(a, b)
            (rank, inputs), rows = a.shape, len(b)
            adapter.set(layer, number, packed_a, packed_b, rank, rows, inputs, 32 if is_float else 8)
            size_bytes += packed_a.nbytes + packed_b.nbytes
    return size_bytes


def _pack_pair(a: F32, b: F32) -> tuple[U8, U8]:
    """A and B in blocks, first brought to the same size so that neither's scales underflow in fp16.

    By a power of two, found without a logarithm: that may differ in its last bit from one processor to another.
    """
    _, exponent = math.frexp(max(_peak(b), 1e-30) / max(_peak(a), 1e-30))
    shift = np.float32(math.ldexp(1.0, exponent // 2))
    return _pack_a(a * shift), pack_low_rank(b / shift)


def _peak(matrix: F32) -> float:
    return float(np.abs(matrix).max())


def _pack_a(a: F32) -> U8:
    rank, inputs = a.shape
    groups = np.pad(a, ((0, 0), (0, -inputs % GROUP_INPUTS))).reshape(rank, -1, GROUP_INPUTS)  # [rank, groups, 128]
    values, scales = _quantise(groups)  # [rank, groups, 128], [rank, groups]
    return pack_int8(values.reshape(rank, -1)[:, :inputs], scales)  # [tiles, groups, 2112]


def pack_low_rank(b: F32) -> U8:
    """Blocks [tiles, 64 * ceil(rank / 4) + 32] of a matrix [rows, rank], one scale per row."""
    rows, rank = b.shape
    padded = np.pad(b, ((0, -rows % TILE_ROWS), (0, -rank % _LANE_INPUTS)))
    values, scales = _quantise(padded)  # [rows, rank], [rows]
    lanes = values.reshape(-1, TILE_ROWS, padded.shape[1] // _LANE_INPUTS, _LANE_INPUTS)  # [tiles, 16, vectors, 4]
    planes = np.ascontiguousarray(lanes.transpose(0, 2, 1, 3)).reshape(len(lanes), -1)  # [tiles, vectors * 64]
    return np.concatenate([planes, scales.reshape(-1, TILE_ROWS).view(np.uint8)], axis=1)


def _quantise(groups: F32) -> tuple[U8, NDArray[np.float16]]:
    """Unsigned bytes like `groups` [..., n], and the scale [...] that puts the largest of n at the end of the range."""
    scales = (np.abs(groups).max(axis=-1) / 127).astype(np.float16)
    steps = groups / np.maximum(scales.astype(np.float32), np.float32(1e-12))[..., None]
    return (np.clip(np.rint(steps), -127, 127) + _ZERO).astype(np.uint8), scales
