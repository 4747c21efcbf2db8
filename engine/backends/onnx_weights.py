"""The constants of an ONNX graph, repacked from a base bundle into an external data file.

ONNX Runtime maps that file, packs each matrix for its kernels and lets go of it, so the only copy that stays in
memory is its own. Knows layouts and files; builds no graph.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engine.backends.weights import BaseWeights, Matrix
from engine.layout import SUBGROUP_INPUTS, ZERO_POINT, unpack

DATA_NAME = "constants.bin"
ALIGNMENT_BYTES = 4096  # of mapped files


class ExternalConstants:
    """Writes a bundle's weights as the constants of a graph into `directory`. Implements `onnx_graph.WeightSource`."""

    def __init__(self, weights: BaseWeights, directory: Path, *, accuracy_level: int) -> None:
        self._weights = weights
        self._accuracy_level = accuracy_level
        self._file = (directory / DATA_NAME).open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def linear(self, module: str) -> tuple[str, dict[str, Any], list[NDArray[Any]]]:
        """`MatMulNBits` for quantised weights, `Gemm` for float32."""
        matrix = self._weights.matrix(module)
        if matrix.bits == 32:
            return "Gemm", {"transB": 1}, [matrix.stored]
        attributes = {
            "N": matrix.rows,
            "K": matrix.inputs,
            "bits": matrix.bits,
            "block_size": SUBGROUP_INPUTS,
            "accuracy_level": self._accuracy_level,
        }
        return "MatMulNBits", attributes, list(repack(matrix))

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm weight or a bias."""
        return self._weights.vector(name)

    def store(self, name: str, array: NDArray[Any]) -> TensorProto:
        """Append a constant to the file; the initialiser that points to it."""
        self._file.write(bytes(-self._file.tell() % ALIGNMENT_BYTES))
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", DATA_NAME), ("offset", self._file.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(np.ascontiguousarray(array).data)
        return tensor


def repack(matrix: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """`MatMulNBits`' constants: values [rows, groups, 16 or 32 bytes] in order of the inputs, scales [rows, groups].

    4-bit values lie two to a byte, the earlier input in the lower half. The zero points are the operator's defaults.
    """
    values, scales = unpack(matrix.stored, matrix.bits, matrix.rows, matrix.inputs)
    groups = scales.shape[1]
    if padding := groups * SUBGROUP_INPUTS - matrix.inputs:
        values = np.pad(values, ((0, 0), (0, padding)), constant_values=ZERO_POINT[matrix.bits])
    if matrix.bits == 4:
        values = values[:, 0::2] | np.left_shift(values[:, 1::2], 4, dtype=np.uint8)  # [rows, groups * 16]
    return values.reshape(matrix.rows, groups, -1), scales
