"""Floating-point numbers as they are written to safetensors files. The way back is `TensorFile.float32`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def written_dtype(dtype: str) -> str:
    """The element type that a tensor read as `dtype` is written in: the same, but no wider than float32."""
    return dtype if dtype in ("BF16", "F16") else "F32"


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Finite numbers as BF16 (its 16 bits in uint16), F16 or F32, rounded to nearest, ties to even."""
    if dtype == "BF16":
        bits = values.view(np.uint32)  # as values
        is_odd = (bits >> np.uint32(16)) & np.uint32(1)  # as values
        return ((bits + np.uint32(0x7FFF) + is_odd) >> np.uint32(16)).astype(np.uint16)  # as values
    return values.astype(np.float16 if dtype == "F16" else np.float32)  # as values
