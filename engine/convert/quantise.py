"""Quantisation of weight matrices to 4 and 8 bits, as `engine.layout` stores them.

Knows arrays alone. All sums run in a fixed order over whole vectors, so that the same weights give the same bytes on
every machine, whatever its instruction set.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.convert.errors import NotFiniteError
from engine.layout import (
    F16,
    GROUP_INPUTS,
    GROUP_SUBGROUPS,
    I8,
    MAX_MULTIPLIER,
    SUBGROUP_INPUTS,
    TILE_ROWS,
    U8,
    ZERO_POINT,
    pack_int4,
    pack_int8,
    pack_low_rank,
    pack_planes,
)

F32 = NDArray[np.float32]

# The largest value of a subgroup may be clipped, or less than the full range used, if that serves the others.
_RANGE_FRACTIONS = np.linspace(0.70, 1.20, 15, dtype=np.float32)
_OTHER_TOP_MULTIPLIERS = (14.25, 13.5)
_CHUNK_GROUPS = 1024
_INT4_RANGE = (-8, 7)
_INT8_RANGE = (-127, 127)
_PLANES_RANGE = (-119, 119)
_LEAST_PEAK = 1e-30


def quantise_int4(name: str, weight: F32) -> U8:
    """Blocks [tiles, groups, 1120] of a matrix [rows, inputs], each subgroup with the scale of least squared error."""
    return _in_chunks(name, weight, _int4_blocks)


def quantise_int8(name: str, weight: F32) -> U8:
    """Blocks [tiles, groups, 2112] of a matrix [rows, inputs]; the largest value of a group becomes +-127."""
    return _in_chunks(name, weight, _int8_blocks)


def quantise_planes(name: str, weight: F32) -> U8:
    """Blocks [2, tiles, groups, 1120] of a matrix [rows, inputs] in 8 bits, of which 4 bits can be read alone."""
    return _in_chunks(name, weight, _planes_blocks, tile_axis=1)


def quantise_low_rank(name: str, weight: F32) -> U8:
    """Low-rank blocks [tiles, 64 * ceil(rank / 4) + 32] of a matrix [rows, rank]; a row's largest value is +-127."""
    _refuse_too_large(name, weight)
    values, scales = _int8_values(np.ascontiguousarray(weight.T))  # [rank, rows], [rows]
    return pack_low_rank(np.ascontiguousarray(values.astype(np.uint8).T), scales)


def quantise_pair(module: str, a: F32, b: F32) -> tuple[U8, U8]:
    """Int8 blocks of an adapter's A [rank, inputs] and low-rank blocks of its B [rows, rank].

    Their product alone matters, so both are first brought to the same size, and neither's scales underflow in fp16: by
    a power of two, found without a logarithm, whose last bit may differ from one processor to another.
    """
    _, exponent = math.frexp(_peak(b) / _peak(a))
    shift = np.float32(math.ldexp(1.0, exponent // 2))
    return quantise_int8(f"{module}.lora_A", a * shift), quantise_low_rank(f"{module}.lora_B", b / shift)


def _peak(weight: F32) -> float:
    return max(float(np.abs(weight).max()), _LEAST_PEAK)


def _in_chunks(name: str, weight: F32, quantise: Callable[[F32], U8], *, tile_axis: int = 0) -> U8:
    """Some tiles at a time, which fit into the processor's cache."""
    _refuse_too_large(name, weight)
    groups_per_tile = TILE_ROWS * -(-weight.shape[1] // GROUP_INPUTS)
    step = TILE_ROWS * max(1, _CHUNK_GROUPS // groups_per_tile)
    chunks = (weight[start : start + step] for start in range(0, len(weight), step))
    return np.concatenate([quantise(chunk) for chunk in chunks], axis=tile_axis)


def _refuse_too_large(name: str, weight: F32) -> None:
    if max(weight.max(), -weight.min()) > np.finfo(np.float16).max:
        raise NotFiniteError(f"{name} holds numbers too large to quantise")


def _int4_blocks(weight: F32) -> U8:
    subgroups, rows = _columns(weight, SUBGROUP_INPUTS), len(weight)  # [32, n]
    multipliers, scales = _search_multipliers(subgroups, _search_scales(subgroups))  # [n], [n / 4]
    values = _steps(subgroups, multipliers * _each(scales), *_INT4_RANGE) + ZERO_POINT[4]
    return pack_int4(_matrix(values, weight), multipliers.reshape(rows, -1), scales.reshape(rows, -1))


def _int8_blocks(weight: F32) -> U8:
    values, scales = _int8_values(_columns(weight, GROUP_INPUTS))  # [128, n], [n]
    return pack_int8(_matrix(values, weight), scales.reshape(len(weight), -1))


def _int8_values(groups: F32) -> tuple[F32, F16]:
    """Unsigned 8-bit values of groups [size, n], as many, and their scales [n]."""
    scales = (_peaks(groups) / np.float32(_INT8_RANGE[1])).astype(np.float16)  # [n]
    return _steps(groups, scales.astype(np.float32), *_INT8_RANGE) + ZERO_POINT[8], scales


def _planes_blocks(weight: F32) -> U8:
    subgroups = _columns(weight, SUBGROUP_INPUTS)  # [32, n]
    scales, exact = _group_scales(_peaks(subgroups) / np.float32(_PLANES_RANGE[1]), MAX_MULTIPLIER)  # [n / 4], [n]
    multipliers = _clipped(np.ceil(exact))  # so that the largest value is in range
    values = _steps(subgroups, multipliers * _each(scales), *_PLANES_RANGE) + ZERO_POINT[8]
    rows = len(weight)
    return pack_planes(_matrix(values, weight), multipliers.reshape(rows, -1), scales.reshape(rows, -1))


# Arrays of groups have them as columns: sums over a group then add whole vectors, in order and fast.


def _columns(weight: F32, size: int) -> F32:
    """Runs of `size` inputs of a matrix, padded to whole groups: [size, n], n in the order of rows."""
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % GROUP_INPUTS)))
    return np.ascontiguousarray(padded.reshape(-1, size).T)


def _matrix(values: F32, weight: F32) -> U8:
    """The inverse of `_columns`, for the integers that became of the weights."""
    return np.ascontiguousarray(values.astype(np.uint8).T).reshape(len(weight), -1)[:, : weight.shape[1]]


def _search_multipliers(subgroups: F32, wanted: F32) -> tuple[I8, F16]:
    """Multipliers [n] and scales of groups [n / 4] of least squared error among those near the scales wanted [n].

    The multiples are whole numbers, so a smaller largest one may fit the other three of a group better.
    """
    best_multipliers, best_scales = _nearest_multipliers(subgroups, wanted, MAX_MULTIPLIER)
    best_error = _group_error(subgroups, best_multipliers, best_scales)  # [n / 4]
    for top in _OTHER_TOP_MULTIPLIERS:
        multipliers, scales = _nearest_multipliers(subgroups, wanted, top)
        error = _group_error(subgroups, multipliers, scales)
        is_better = error < best_error  # [n / 4]
        best_scales = np.where(is_better, scales, best_scales)
        best_multipliers = np.where(np.repeat(is_better, GROUP_SUBGROUPS), multipliers, best_multipliers)
        best_error = np.minimum(error, best_error)
    return best_multipliers, best_scales


def _nearest_multipliers(subgroups: F32, wanted: F32, top: float) -> tuple[I8, F16]:
    """The better of the whole numbers below and above each multiple, if `top` is the largest of a group."""
    scales, exact = _group_scales(wanted, top)
    below, above = _clipped(np.trunc(exact)), _clipped(np.trunc(exact + np.copysign(np.float32(1), exact)))
    each_scale = _each(scales)
    is_above = _squared_error(subgroups, above * each_scale) < _squared_error(subgroups, below * each_scale)
    return np.where(is_above, above, below), scales


def _group_scales(wanted: F32, top: float) -> tuple[F16, F32]:
    """Scales of groups [n / 4] so that the largest multiple wanted is `top`, and all multiples [n]."""
    scales = (_peaks(wanted.reshape(-1, GROUP_SUBGROUPS).T) / np.float32(top)).astype(np.float16)
    each_scale = _each(scales)
    return scales, np.divide(wanted, each_scale, out=np.zeros_like(wanted), where=each_scale > 0)


def _group_error(subgroups: F32, multipliers: I8, scales: F16) -> F32:
    error: F32 = _squared_error(subgroups, multipliers * _each(scales)).reshape(-1, GROUP_SUBGROUPS).sum(axis=1)
    return error


def _each(scales: F16) -> F32:
    """Of groups [n / 4], for each subgroup [n]."""
    return np.repeat(scales.astype(np.float32), GROUP_SUBGROUPS)


def _clipped(multipliers: F32) -> I8:
    return np.clip(multipliers, -MAX_MULTIPLIER, MAX_MULTIPLIER).astype(np.int8)


def _peaks(groups: F32) -> F32:
    """The largest magnitude of each group [size, n] -> [n]."""
    peaks: F32 = np.abs(groups).max(axis=0)
    return peaks


def _squared_error(groups: F32, scale: F32) -> F32:
    """Of each group [size, n] in 4 bits with this scale [n] -> [n]."""
    difference = groups - _steps(groups, scale, *_INT4_RANGE) * scale  # [size, n]
    error: F32 = (difference * difference).sum(axis=0)
    return error


def _search_scales(groups: F32) -> F32:
    """The scale of least squared error for each group [32, n] -> [n].

    The value of largest magnitude goes to the end of -8 .. 7 that has one step more, which makes the scale's sign. Each
    candidate is refined by least squares on the values that it rounds to, as in llama.cpp's `make_qx_quants`.
    """
    peak = np.take_along_axis(groups, np.abs(groups).argmax(axis=0)[None], axis=0)[0]  # [n]
    best_scale: F32 = np.zeros_like(peak)  # [n]
    best_error: F32 = (groups * groups).sum(axis=0)  # [n]
    for fraction in _RANGE_FRACTIONS:
        scale = _refined(groups, peak * (fraction / np.float32(-8)))  # [n]
        error = _squared_error(groups, scale)
        best_scale = np.where(error < best_error, scale, best_scale)  # [n]
        best_error = np.minimum(error, best_error)  # [n]
    return best_scale


def _refined(groups: F32, scale: F32) -> F32:
    """The best scale for the steps that this one gives."""
    steps = _steps(groups, scale, *_INT4_RANGE)  # [32, n]
    norm = (steps * steps).sum(axis=0)  # [n]
    fitted: F32 = np.divide((steps * groups).sum(axis=0), norm, out=np.zeros_like(scale), where=norm > 0)  # [n]
    return fitted


def _steps(groups: F32, scale: F32, lowest: int, highest: int) -> F32:
    """How many scales each value is, rounded and clipped to the range."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)  # [n]
    steps: F32 = np.clip(np.rint(groups * inverse), lowest, highest)  # [size, n]
    return steps
