"""Quantised matrices as they lie in a bundle: conversion writes them, back ends read them in place.

A matrix [out_features, in_features] is cut into tiles of 16 output rows and groups of 128 inputs. A block holds one
group of one tile:

    int4: 64 bytes of multipliers, 16 fp16 scales (one per output row), 16 x 64 bytes of nibbles    1,120 bytes
    int8: 32 x 64 bytes, 16 fp16 scales, 32 bytes of padding                                        2,112 bytes

A 64-byte vector is 16 lanes of 4 bytes; lane r belongs to output row r. For int8, lane r of vector v holds inputs
4v .. 4v+3 of the group. For int4, a group has four subgroups of 32 inputs and 4 vectors each: the low nibbles of lane r
of a subgroup's vector v hold its inputs 4v .. 4v+3, the high nibbles its inputs 4(v+4) .. 4(v+4)+3. Values are unsigned
with zero point 8 (int4) or 128 (int8).

Byte s of lane r of the multipliers, -15 .. 15, belongs to subgroup s of row r: weight = (q - 8) * multiplier * scale.
So a 4-bit weight has a scale for each 32 inputs, and is at the same time an 8-bit weight (q - 8) * multiplier with a
scale for each 128. Products of 128 inputs are sums of integers, exact in any order; only their sums are rounded.

The head is read whole for every token, so it lies in two planes of int4 blocks, [2, tiles, groups, 1120]: an 8-bit
weight of -119 .. 119 is 16 * high + low, with high of -7 .. 7 and low of -8 .. 7. The high plane alone, with scales 16
times as large, is the matrix in 4 bits; a back end can rank tokens by it and read the low plane for the best alone.

An adapter's A [rank, inputs] lies in int8 blocks. Its B [rows, rank] has few inputs, so a tile of it is one low-rank
block: vectors as of int8, one for each 4 of the rank's inputs, and one scale for all of a row:

    low-rank: ceil(rank / 4) x 64 bytes, 16 fp16 scales                                           rank 16: 288 bytes

One AVX-512 register is one vector, AVX2 reads two halves, Neon four quarters: the same bytes run on all of them.
Output rows are padded to whole tiles and inputs to whole groups with scale 0, the rank to whole vectors with the zero
point, so padding adds nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE_ROWS = 16
GROUP_INPUTS = 128
SUBGROUP_INPUTS = 32
GROUP_SUBGROUPS = GROUP_INPUTS // SUBGROUP_INPUTS
MAX_MULTIPLIER = 15
ZERO_POINT = {4: 8, 8: 128}
_LANE_INPUTS = 4
_SCALE_BYTES = 2 * TILE_ROWS
_MULTIPLIER_BYTES = TILE_ROWS * GROUP_SUBGROUPS
_VECTOR_BYTES = {bits: TILE_ROWS * GROUP_INPUTS * bits // 8 for bits in (4, 8)}  # of a block
_PADDING_BYTES = 32  # of an int8 block, to whole vectors

U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]


def block_bytes(bits: int) -> int:
    """Size of one block: 1,120 for 4 bits, 2,112 for 8."""
    return _VECTOR_BYTES[bits] + (_MULTIPLIER_BYTES if bits == 4 else _PADDING_BYTES) + _SCALE_BYTES


def low_rank_block_bytes(rank: int) -> int:
    """Size of one low-rank block: 288 for rank 16."""
    return -(-rank // _LANE_INPUTS) * _LANE_INPUTS * TILE_ROWS + _SCALE_BYTES


def pack_int4(values: U8, multipliers: I8, scales: F16) -> U8:
    """Blocks [tiles, groups, 1120] of values [rows, inputs] (0 .. 15).

    multipliers: [rows, subgroups], which may end with the inputs or with the last group. scales: [rows, groups].
    """
    lanes = _lanes(values, 4)  # [tiles, groups, 32, 16, 4]
    tiles, groups = lanes.shape[:2]
    halves = lanes.reshape(tiles, groups, GROUP_SUBGROUPS, 2, -1)  # a subgroup's first and last 16 inputs
    nibbles = (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).reshape(tiles, groups, -1)
    its_multipliers = np.zeros((tiles * TILE_ROWS, groups * GROUP_SUBGROUPS), np.int8)
    its_multipliers[: multipliers.shape[0], : multipliers.shape[1]] = multipliers
    by_tile = its_multipliers.reshape(tiles, TILE_ROWS, groups, GROUP_SUBGROUPS).transpose(0, 2, 1, 3)
    multiplier_bytes = np.ascontiguousarray(by_tile).reshape(tiles, groups, -1).view(np.uint8)
    return np.concatenate([multiplier_bytes, _scale_bytes(scales, tiles), nibbles], axis=2)


def pack_int8(values: U8, scales: F16) -> U8:
    """Blocks [tiles, groups, 2112] of values [rows, inputs] and scales [rows, groups]."""
    lanes = _lanes(values, 8)
    vectors = lanes.reshape(*lanes.shape[:2], -1)
    padding = np.zeros((*lanes.shape[:2], _PADDING_BYTES), np.uint8)
    return np.concatenate([vectors, _scale_bytes(scales, len(lanes)), padding], axis=2)


def pack_planes(values: U8, multipliers: I8, scales: F16) -> U8:
    """Blocks [2, tiles, groups, 1120] of 8-bit values [rows, inputs] (unsigned, 9 .. 247); the rest as for int4."""
    centred = values.astype(np.int16) - ZERO_POINT[8]
    high = (centred + ZERO_POINT[4]) >> 4
    planes = ((high, scales * np.float16(16)), (centred - 16 * high, scales))
    return np.stack(
        [pack_int4((plane + ZERO_POINT[4]).astype(np.uint8), multipliers, its_scales) for plane, its_scales in planes]
    )


def pack_low_rank(values: U8, scales: F16) -> U8:
    """Low-rank blocks [tiles, 64 * ceil(rank / 4) + 32] of 8-bit values [rows, rank] and scales [rows]."""
    rows, rank = values.shape
    tiles, vectors = -(-rows // TILE_ROWS), -(-rank // _LANE_INPUTS)
    padded = np.full((tiles * TILE_ROWS, vectors * _LANE_INPUTS), ZERO_POINT[8], np.uint8)
    padded[:rows, :rank] = values
    lanes = padded.reshape(tiles, TILE_ROWS, vectors, _LANE_INPUTS).transpose(0, 2, 1, 3)
    return np.concatenate([lanes.reshape(tiles, -1), _scale_bytes(scales[:, None], tiles)[:, 0]], axis=1)


def unpack(blocks: U8, bits: int, rows: int, inputs: int) -> tuple[U8, F32]:
    """Values [rows, inputs] of blocks or planes, and the scale of each 32 inputs [rows, ceil(inputs / 32)]."""
    if blocks.ndim == 4:
        high, _ = unpack(blocks[0], 4, rows, inputs)
        low, low_scales = unpack(blocks[1], 4, rows, inputs)
        return _joined(high, low), low_scales
    values, scales = _unpacked(blocks, bits)  # [tiles, groups, 16, 128], [tiles, groups, 16, 4]
    by_row = values.transpose(0, 2, 1, 3).reshape(len(blocks) * TILE_ROWS, -1)
    scales_by_row = scales.transpose(0, 2, 1, 3).reshape(len(blocks) * TILE_ROWS, -1)
    return by_row[:rows, :inputs].copy(), scales_by_row[:rows, : -(-inputs // SUBGROUP_INPUTS)].copy()


def unpack_low_rank(blocks: U8, rows: int, rank: int) -> tuple[U8, F32]:
    """Values [rows, rank] of low-rank blocks, and the scale of each row [rows]."""
    lanes = blocks[:, :-_SCALE_BYTES].reshape(len(blocks), -1, TILE_ROWS, _LANE_INPUTS)  # [tiles, vectors, 16, 4]
    values = lanes.transpose(0, 2, 1, 3).reshape(len(blocks) * TILE_ROWS, -1)
    return values[:rows, :rank].copy(), low_rank_scales(blocks).astype(np.float32).reshape(-1)[:rows]


def int8_scales(blocks: U8) -> F16:
    """The scales [tiles, groups, 16] of int8 blocks, where they lie."""
    return blocks[..., _VECTOR_BYTES[8] : _VECTOR_BYTES[8] + _SCALE_BYTES].view(np.float16)


def low_rank_scales(blocks: U8) -> F16:
    """The scales [tiles, 16] of low-rank blocks, where they lie."""
    return blocks[:, -_SCALE_BYTES:].view(np.float16)


def dequantise(blocks: U8, bits: int, rows: int, inputs: int) -> F32:
    """The matrix [rows, inputs] that the blocks stand for."""
    values, scales = unpack(blocks, bits, rows, inputs)
    weights = values.astype(np.float32)  # [rows, inputs]
    weights -= ZERO_POINT[bits]
    weights *= np.repeat(scales, SUBGROUP_INPUTS, axis=1)[:, :inputs]
    return weights


def dequantise_low_rank(blocks: U8, rows: int, rank: int) -> F32:
    """The matrix [rows, rank] that low-rank blocks stand for."""
    values, scales = unpack_low_rank(blocks, rows, rank)
    return (values.astype(np.float32) - ZERO_POINT[8]) * scales[:, None]  # [rows, rank]


def dequantise_rows(blocks: U8, bits: int, indices: NDArray[np.integer], inputs: int) -> F32:
    """Some rows of the matrix [len(indices), inputs]: the embedding look-up, without touching the others."""
    if blocks.ndim == 4:
        return dequantise_rows(blocks[0], 4, indices, inputs) + dequantise_rows(blocks[1], 4, indices, inputs)
    tiles, lanes = np.divmod(np.asarray(indices), TILE_ROWS)
    values, scales = _unpacked(blocks[tiles], bits)
    picked = values[np.arange(len(lanes)), :, lanes].astype(np.float32) - ZERO_POINT[bits]  # [n, groups, 128]
    factors = np.repeat(scales[np.arange(len(lanes)), :, lanes], SUBGROUP_INPUTS, axis=-1)  # [n, groups, 128]
    return (picked * factors).reshape(len(lanes), -1)[:, :inputs]


def _lanes(values: U8, bits: int) -> U8:
    """Values [rows, inputs], padded, in the order of vectors: [tiles, groups, 32, 16, 4]."""
    tiles, groups = -(-values.shape[0] // TILE_ROWS), -(-values.shape[1] // GROUP_INPUTS)
    padded = np.full((tiles * TILE_ROWS, groups * GROUP_INPUTS), ZERO_POINT[bits], np.uint8)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded.reshape(tiles, TILE_ROWS, groups, -1, _LANE_INPUTS).transpose(0, 2, 3, 1, 4)


def _scale_bytes(scales: F16, tiles: int) -> U8:
    """[tiles, groups, 32] of scales [rows, groups]."""
    padded = np.zeros((tiles * TILE_ROWS, scales.shape[1]), np.float16)
    padded[: len(scales)] = scales
    return np.ascontiguousarray(padded.reshape(tiles, TILE_ROWS, -1).transpose(0, 2, 1)).view(np.uint8)


def _unpacked(blocks: U8, bits: int) -> tuple[U8, F32]:
    """Values [tiles, groups, 16, 128] and the scales of their subgroups [tiles, groups, 16, 4]."""
    tiles, groups, _ = blocks.shape
    if bits == 4:
        multipliers, scales, nibbles = np.split(blocks, [_MULTIPLIER_BYTES, _MULTIPLIER_BYTES + _SCALE_BYTES], axis=2)
        halves = nibbles.reshape(tiles, groups, GROUP_SUBGROUPS, -1)
        vectors = np.stack([halves & 15, halves >> 4], axis=3)
        factors = np.ascontiguousarray(multipliers).view(np.int8).reshape(tiles, groups, TILE_ROWS, -1)
    else:
        vectors, scales, _ = np.split(blocks, [_VECTOR_BYTES[8], _VECTOR_BYTES[8] + _SCALE_BYTES], axis=2)
        factors = np.ones((1, 1, 1, GROUP_SUBGROUPS), np.int8)
    values = vectors.reshape(tiles, groups, -1, TILE_ROWS, _LANE_INPUTS).transpose(0, 1, 3, 2, 4)
    row_scales = np.ascontiguousarray(scales).view(np.float16).astype(np.float32)  # [tiles, groups, 16]
    return values.reshape(tiles, groups, TILE_ROWS, -1), row_scales[..., None] * factors


def _joined(high: U8, low: U8) -> U8:
    """8-bit values with zero point 128 from 4-bit ones with zero point 8."""
    joined = 16 * high.astype(np.int16) + low - (17 * ZERO_POINT[4] - ZERO_POINT[8])
    return joined.astype(np.uint8)
