"""Quantised matrices as they lie in a base bundle: conversion writes them, back ends read them in place.

A matrix [out_features, in_features] is cut into tiles of 16 output rows and groups of 32 inputs. A block holds one
group of one tile:

    int4: 16 fp16 scales (one per output row), then 4 x 64 bytes of nibbles                          288 bytes
    int8: 16 fp16 scales, then 8 x 64 bytes                                                          544 bytes

A 64-byte vector is 16 lanes of 4 bytes; lane r belongs to output row r. For int8, lane r of vector v holds inputs
4v .. 4v+3 of the group. For int4, the low nibbles of lane r of vector v hold inputs 4v .. 4v+3, its high nibbles
inputs 4(v+4) .. 4(v+4)+3. Values are unsigned with zero point 8 (int4) or 128 (int8): weight = (q - zero) * scale.

The head is read whole for every token, so it lies in two planes of int4 blocks, [2, tiles, groups, 288]: an 8-bit
weight of -119 .. 119 is 16 * high + low, with high of -7 .. 7 and low of -8 .. 7. The high plane alone, with scales 16
times as large, is the matrix in 4 bits; a back end can rank tokens by it and read the low plane for the best alone.

One AVX-512 register is one vector, AVX2 reads two halves, Neon four quarters: the same bytes run on all of them.
Output rows are padded to whole tiles and inputs to whole groups with scale 0, so padding adds nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE_ROWS = 16
GROUP_INPUTS = 32
SCALE_BYTES = 2 * TILE_ROWS
ZERO_POINT = {4: 8, 8: 128}

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]


def block_bytes(bits: int) -> int:
    """Size of one block: 288 for 4 bits, 544 for 8."""
    return SCALE_BYTES + TILE_ROWS * GROUP_INPUTS * bits // 8


def pack(values: U8, scales: F16, bits: int) -> U8:
    """Blocks of a matrix: values [rows, inputs] (unsigned), scales [rows, groups] -> [tiles, groups, block_bytes]."""
    tiles, groups = -(-values.shape[0] // TILE_ROWS), -(-values.shape[1] // GROUP_INPUTS)
    padded = np.full((tiles * TILE_ROWS, groups * GROUP_INPUTS), ZERO_POINT[bits], np.uint8)
    padded[: values.shape[0], : values.shape[1]] = values
    padded_scales = np.zeros((tiles * TILE_ROWS, groups), np.float16)
    padded_scales[: scales.shape[0]] = scales
    lanes = padded.reshape(tiles, TILE_ROWS, groups, 8, 4).transpose(0, 2, 3, 1, 4)  # [tiles, groups, 8, 16, 4]
    planes = lanes if bits == 8 else lanes[:, :, :4] | (lanes[:, :, 4:] << 4)  # [tiles, groups, 8 or 4, 16, 4]
    scale_bytes = np.ascontiguousarray(padded_scales.reshape(tiles, TILE_ROWS, groups).transpose(0, 2, 1)).view(
        np.uint8
    )
    return np.concatenate([scale_bytes, planes.reshape(tiles, groups, -1)], axis=2)  # [tiles, groups, block_bytes]


def pack_planes(values: U8, scales: F16) -> U8:
    """Blocks [2, tiles, groups, 288] of 8-bit values [rows, inputs] (unsigned, 9 .. 247), scales [rows, groups]."""
    centred = values.astype(np.int16) - ZERO_POINT[8]
    high = (centred + ZERO_POINT[4]) >> 4
    planes = ((high, scales * np.float16(16)), (centred - 16 * high, scales))
    return np.stack([pack((plane + ZERO_POINT[4]).astype(np.uint8), its_scales, 4) for plane, its_scales in planes])


def unpack(blocks: U8, bits: int, rows: int, inputs: int) -> tuple[U8, F16]:
    """The inverse of `pack` and, for blocks of four dimensions, of `pack_planes`: values [rows, inputs], scales."""
    if blocks.ndim == 4:
        high, _ = unpack(blocks[0], 4, rows, inputs)
        low, low_scales = unpack(blocks[1], 4, rows, inputs)
        return _joined(high, low), low_scales
    tiles, groups, _ = blocks.shape
    scales = np.ascontiguousarray(blocks[:, :, :SCALE_BYTES]).view(np.float16)  # [tiles, groups, 16]
    planes = blocks[:, :, SCALE_BYTES:].reshape(tiles, groups, -1, TILE_ROWS, 4)
    lanes = planes if bits == 8 else np.concatenate([planes & 15, planes >> 4], axis=2)  # [tiles, groups, 8, 16, 4]
    values = lanes.transpose(0, 3, 1, 2, 4).reshape(tiles * TILE_ROWS, groups * GROUP_INPUTS)
    row_scales = scales.transpose(0, 2, 1).reshape(tiles * TILE_ROWS, groups)
    return np.ascontiguousarray(values[:rows, :inputs]), np.ascontiguousarray(row_scales[:rows])


def _joined(high: U8, low: U8) -> U8:
    """8-bit values with zero point 128 from 4-bit ones with zero point 8."""
    joined = 16 * high.astype(np.int16) + low - (17 * ZERO_POINT[4] - ZERO_POINT[8])
    return joined.astype(np.uint8)


def dequantise(blocks: U8, bits: int, rows: int, inputs: int) -> NDArray[np.float32]:
    """The matrix [rows, inputs] that the blocks stand for."""
    values, scales = unpack(blocks, bits, rows, inputs)
    weights = values.astype(np.float32)  # [rows, inputs]
    weights -= ZERO_POINT[bits]
    weights *= np.repeat(scales.astype(np.float32), GROUP_INPUTS, axis=1)[:, :inputs]
    return weights


def dequantise_rows(blocks: U8, bits: int, indices: NDArray[np.integer], inputs: int) -> NDArray[np.float32]:
    """Some rows of the matrix [len(indices), inputs]: the embedding look-up, without touching the others."""
    if blocks.ndim == 4:
        return dequantise_rows(blocks[0], 4, indices, inputs) + dequantise_rows(blocks[1], 4, indices, inputs)
    tiles, lanes = np.divmod(np.asarray(indices), TILE_ROWS)
    chosen = blocks[tiles]  # [n, groups, block_bytes]
    n, groups, _ = chosen.shape
    scales = np.ascontiguousarray(chosen[:, :, :SCALE_BYTES]).view(np.float16)  # [n, groups, 16]
    planes = chosen[:, :, SCALE_BYTES:].reshape(n, groups, -1, TILE_ROWS, 4)
    picked = planes[np.arange(n), :, :, lanes]  # [n, groups, 8 or 4, 4]
    if bits == 4:
        picked = np.concatenate([picked & 15, picked >> 4], axis=2)
    centred = picked.reshape(n, groups, GROUP_INPUTS).astype(np.float32) - ZERO_POINT[bits]
    scale = scales[np.arange(n), :, lanes].astype(np.float32)  # [n, groups]
    return (centred * scale[:, :, None]).reshape(n, -1)[:, :inputs]
