"""Comparison of arrays bit by bit. What is not a number has no bits of its own: processors sign it differently."""

from __future__ import annotations

import numpy as np


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    unsigned = f"u{actual.itemsize}"
    is_same = np.ascontiguousarray(actual).view(unsigned) == np.ascontiguousarray(expected).view(unsigned)
    if np.issubdtype(actual.dtype, np.floating):
        is_same |= np.isnan(actual) & np.isnan(expected)
    wrong = np.argwhere(~is_same)
    assert not len(wrong), (
        f"{len(wrong)} differ, first at {wrong[0]}: {actual[*wrong[0]]!r}, not {expected[*wrong[0]]!r}"
    )
