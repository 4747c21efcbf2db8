"""Quantisation of weight matrices to 4 and 8 bits in groups of 32 inputs, as `engine.layout` stores them.

Knows arrays alone. All sums run in a fixed order over whole vectors, so that the same weights give the same bytes on
every machine, whatever its instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engine.convert.errors import NotFiniteError
from engine.layout import F16, GROUP_INPUTS, TILE_ROWS, U8, ZERO_POINT, pack, pack_planes

F32 = NDArray[np.float32]

# The largest value of a group may be clipped, or less than the full range used, if that serves the others.
_RANGE_FRACTIONS = np.linspace(0.70, 1.20, 15, dtype=np.float32)
_CHUNK_GROUPS = 4096


@dataclass(frozen=True, slots=True)
class _Grid:
    """What the values of a group are rounded to, and how they are stored."""

    lowest: int
    highest: int
    choose_scales: Callable[[F32], F32]
    pack: Callable[[U8, F16], U8]
    zero_point: int
    tile_axis: int = 0


def quantise_int4(name: str, weight: F32) -> U8:
    """Blocks [tiles, groups, 288] of a matrix [rows, inputs], with the scale of least squared error for each group."""
    return _quantise(name, weight, _Grid(-8, 7, _search_scales, partial(pack, bits=4), ZERO_POINT[4]))


def quantise_int8(name: str, weight: F32) -> U8:
    """Blocks [tiles, groups, 544] of a matrix [rows, inputs]; the largest value of a group becomes +-127."""
    return _quantise(name, weight, _Grid(-127, 127, partial(_peak_scales, 127), partial(pack, bits=8), ZERO_POINT[8]))


def quantise_planes(name: str, weight: F32) -> U8:
    """Blocks [2, tiles, groups, 288] of a matrix [rows, inputs]: 8 bits, the largest value of a group becomes +-119."""
    return _quantise(
        name, weight, _Grid(-119, 119, partial(_peak_scales, 119), pack_planes, ZERO_POINT[8], tile_axis=1)
    )


def _quantise(name: str, weight: F32, grid: _Grid) -> U8:
    """Some tiles at a time, which fit into the processor's cache."""
    if max(weight.max(), -weight.min()) > np.finfo(np.float16).max:
        raise NotFiniteError(f"{name} holds numbers too large to quantise")
    groups_per_tile = TILE_ROWS * -(-weight.shape[1] // GROUP_INPUTS)
    step = TILE_ROWS * max(1, _CHUNK_GROUPS // groups_per_tile)
    chunks = (weight[start : start + step] for start in range(0, len(weight), step))
    return np.concatenate([_blocks(chunk, grid) for chunk in chunks], axis=grid.tile_axis)


def _blocks(weight: F32, grid: _Grid) -> U8:
    rows, inputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -inputs % GROUP_INPUTS)))  # [rows, groups * 32]
    # Groups as columns: sums over a group then add whole vectors, in order and fast.
    groups = np.ascontiguousarray(padded.reshape(-1, GROUP_INPUTS).T)  # [32, rows * groups]
    scales = grid.choose_scales(groups).astype(np.float16)  # [rows * groups]
    steps = _steps(groups, scales.astype(np.float32), grid.lowest, grid.highest)  # [32, rows * groups]
    values = (steps + grid.zero_point).astype(np.uint8)  # [32, rows * groups]
    matrix = np.ascontiguousarray(values.T).reshape(rows, -1)[:, :inputs]  # [rows, inputs]
    return grid.pack(matrix, scales.reshape(rows, -1))


def _peak_scales(highest: int, groups: F32) -> F32:
    """Scales [n] of groups [32, n] that put the largest value at the end of the range."""
    peaks: F32 = np.abs(groups).max(axis=0)  # [n]
    return peaks / np.float32(highest)


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
        difference = groups - _steps(groups, scale, -8, 7) * scale  # [32, n]
        error = (difference * difference).sum(axis=0)  # [n]
        best_scale = np.where(error < best_error, scale, best_scale)  # [n]
        best_error = np.minimum(error, best_error)  # [n]
    return best_scale


def _refined(groups: F32, scale: F32) -> F32:
    """The best scale for the steps that this one gives, as float16 will hold it."""
    steps = _steps(groups, scale, -8, 7)  # [32, n]
    norm = (steps * steps).sum(axis=0)  # [n]
    fitted: F32 = np.divide((steps * groups).sum(axis=0), norm, out=np.zeros_like(scale), where=norm > 0)  # [n]
    return fitted.astype(np.float16).astype(np.float32)  # [n]


def _steps(groups: F32, scale: F32, lowest: int, highest: int) -> F32:
    """How many scales each value is, rounded and clipped to the range."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)  # [n]
    steps: F32 = np.clip(np.rint(groups * inverse), lowest, highest)  # [32, n]
    return steps
