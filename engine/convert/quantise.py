"""Quantisation of weight matrices to 4 and 8 bits in groups of 32 inputs, as `engine.layout` stores them.

Knows arrays alone. All sums run in a fixed order over whole vectors, so that the same weights give the same bytes on
every machine, whatever its instruction set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.convert.errors import NotFiniteError
from engine.layout import F16, GROUP_INPUTS, U8, ZERO_POINT, pack

F32 = NDArray[np.float32]

# The largest value of a group may be clipped, or less than the full range used, if that serves the others.
_RANGE_FRACTIONS = np.linspace(0.70, 1.20, 15, dtype=np.float32)
_CHUNK_GROUPS = 4096


def quantise_int4(name: str, weight: F32) -> U8:
    """Blocks [tiles, groups, 288] of a matrix [rows, inputs], with the scale of least squared error for each group."""
    _check_range(name, weight)
    rows, groups = _grouped(weight)  # [32, rows * groups]
    scales = np.empty(groups.shape[1], np.float16)
    values = np.empty(groups.shape, np.uint8)
    for start in range(0, groups.shape[1], _CHUNK_GROUPS):
        chunk = slice(start, start + _CHUNK_GROUPS)
        scales[chunk] = _search_scales(np.ascontiguousarray(groups[:, chunk]))
        values[:, chunk] = _round(groups[:, chunk], scales[chunk], low=0, zero=ZERO_POINT[4], high=15)
    return _packed(values, scales, rows, weight.shape[1], bits=4)


def quantise_int8(name: str, weight: F32) -> U8:
    """Blocks [tiles, groups, 544] of a matrix [rows, inputs]; the largest value of a group becomes +-127."""
    _check_range(name, weight)
    rows, groups = _grouped(weight)  # [32, rows * groups]
    scales = (np.abs(groups).max(axis=0) / np.float32(127)).astype(np.float16)  # [rows * groups]
    values = _round(groups, scales, low=1, zero=ZERO_POINT[8], high=255)  # [32, rows * groups]
    return _packed(values, scales, rows, weight.shape[1], bits=8)


def _grouped(weight: F32) -> tuple[int, F32]:
    """Groups as columns [32, rows * groups]: sums over a group then add whole vectors, in order and fast."""
    rows, inputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -inputs % GROUP_INPUTS)))  # [rows, groups * 32]
    return rows, np.ascontiguousarray(padded.reshape(-1, GROUP_INPUTS).T)


def _search_scales(groups: F32) -> F32:
    """The scale of least squared error for each group [32, n] -> [n].

    The value of largest magnitude goes to the end of -8 .. 7 that has one step more, which makes the scale's sign. Each
    candidate is refined by least squares on the values that it rounds to, as in llama.cpp's `make_qx_quants`.
    """
    peak = np.take_along_axis(groups, np.abs(groups).argmax(axis=0)[None], axis=0)[0]  # [n]
    best_scale: F32 = np.zeros_like(peak)  # [n]
    best_error: F32 = (groups * groups).sum(axis=0)  # [n]
    for fraction in _RANGE_FRACTIONS:
        candidate = peak * (fraction / np.float32(-8))  # [n]
        steps = _steps(groups, candidate)  # [32, n]
        norm = (steps * steps).sum(axis=0)  # [n]
        refined = np.divide((steps * groups).sum(axis=0), norm, out=np.zeros_like(peak), where=norm > 0)  # [n]
        refined = refined.astype(np.float16).astype(np.float32)  # [n], as it will be stored
        difference = groups - _steps(groups, refined) * refined  # [32, n]
        error = (difference * difference).sum(axis=0)  # [n]
        best_scale = np.where(error < best_error, refined, best_scale)  # [n]
        best_error = np.minimum(error, best_error)  # [n]
    return best_scale


def _steps(groups: F32, scale: F32) -> F32:
    """How many scales each value is, rounded and clipped to -8 .. 7."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)  # [n]
    steps: F32 = np.clip(np.rint(groups * inverse), -8, 7)  # [32, n]
    return steps


def _round(groups: F32, scales: F16, *, low: int, zero: int, high: int) -> U8:
    wide = scales.astype(np.float32)  # [n]
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)  # [n]
    values: U8 = np.clip(np.rint(groups * inverse) + zero, low, high).astype(np.uint8)  # [32, n]
    return values


def _check_range(name: str, weight: F32) -> None:
    """Scales are float16, and smaller than the largest value."""
    if np.abs(weight).max() > np.finfo(np.float16).max:
        raise NotFiniteError(f"{name} holds numbers too large to quantise")


def _packed(values: U8, scales: F16, rows: int, inputs: int, *, bits: int) -> U8:
    matrix = np.ascontiguousarray(values.T).reshape(rows, -1)[:, :inputs]  # [rows, inputs]
    return pack(matrix, scales.reshape(rows, -1), bits)
