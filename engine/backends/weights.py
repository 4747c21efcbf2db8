"""Reads the weights of base and adapter bundles, mapped from disk: for back ends, whichever way they compute.

Checks that the tensors are those of the manifest's architecture. Knows no arithmetic beyond undoing the quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.artifact import ADAPTER_WEIGHTS, BASE_WEIGHTS, AdapterManifest, BaseManifest, read_adapter, read_base
from engine.errors import BundleError
from engine.layout import GROUP_INPUTS, TILE_ROWS, block_bytes, dequantise, dequantise_rows
from engine.lora import LoraMatrices, are_finite, lora_bits, lora_specs
from engine.parameters import EMBEDDING, HEAD, linear_modules, matrix_modules, vectors
from engine.tensor_file import TensorFile, TensorFileError

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix [rows, inputs] as it lies in the file, read-only.

    stored: uint8 blocks of `engine.layout`, [tiles, groups, 1120] for 4 bits, [tiles, groups, 2112] or, in planes,
    [2, tiles, groups, 1120] for 8; float32 [rows, inputs] for 32.
    """

    stored: NDArray[Any]
    rows: int
    inputs: int
    bits: int

    def dense(self) -> F32:
        """The whole matrix [rows, inputs]."""
        return self.stored if self.bits == 32 else dequantise(self.stored, self.bits, self.rows, self.inputs)

    def take_rows(self, indices: NDArray[np.integer]) -> F32:
        """Some rows [len(indices), inputs]: the embedding look-up."""
        if self.bits == 32:
            return np.asarray(self.stored[indices])
        return dequantise_rows(self.stored, self.bits, indices, self.inputs)


class BaseWeights:
    """The weights of a base bundle by their Hugging Face names."""

    def __init__(self, manifest: BaseManifest, digest: str, file: TensorFile) -> None:
        self.manifest = manifest
        self.architecture = manifest.architecture
        self.digest = digest
        self._file = file
        self._shapes = matrix_modules(manifest.architecture)

    @classmethod
    def open(cls, bundle: Path) -> Self:
        """Map the weights; raises `BundleError` if they are not those that the manifest describes."""
        manifest, digest = read_base(bundle)
        weights = cls(manifest, digest, _open(bundle / BASE_WEIGHTS))
        for module in weights._shapes:
            weights.matrix(module)
        for name, length in vectors(manifest.architecture).items():
            _expect(weights._file, name, ("F32",), (length,))
        return weights

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights on disk, which is what a mapping of them can take."""
        return sum(spec.size_bytes for spec in self._file.values())

    def check_size(self) -> None:
        """Raise `BundleError` if the mapped file has been cut, before a step touches what is gone."""
        try:
            self._file.check_size()
        except TensorFileError as error:
            raise BundleError(f"{error}: fetch it again and restart the engine") from error

    @property
    def embedding(self) -> Matrix:
        """The token embedding [vocab_size, hidden_size]."""
        return self.matrix(EMBEDDING)

    @property
    def head(self) -> Matrix:
        """The output projection [vocab_size, hidden_size]: the embedding again if they are tied."""
        return self.embedding if self.architecture.tie_word_embeddings else self.matrix(HEAD)

    def matrix(self, module: str) -> Matrix:
        """The weight of a module such as `model.layers.0.self_attn.q_proj`."""
        name, (rows, inputs) = f"{module}.weight", self._shapes[module]
        if self.manifest.weights == "float32":
            _expect(self._file, name, ("F32",), (rows, inputs))
            return Matrix(self._file.view(name), rows, inputs, 32)
        counts = (-(-rows // TILE_ROWS), -(-inputs // GROUP_INPUTS))
        bits_by_shape = {(*counts, block_bytes(8)): 8, (2, *counts, block_bytes(4)): 8}
        shape = self._file[name].shape if name in self._file else ()
        expected = shape if shape in bits_by_shape else (*counts, block_bytes(4))
        _expect(self._file, name, ("U8",), expected)
        return Matrix(self._file.view(name), rows, inputs, bits_by_shape.get(expected, 4))

    def vector(self, name: str) -> F32:
        """A norm's weight or a bias by its full name, such as `model.layers.0.input_layernorm.weight`."""
        return self._file.view(name)

    def dense(self, name: str) -> F32:
        """Any parameter by its full name in float32, quantisation undone."""
        module = name.removesuffix(".weight")
        return self.matrix(module).dense() if module in self._shapes else self.vector(name)


class AdapterWeights:
    """The matrices of an adapter bundle by module, as they lie in the file, read-only."""

    def __init__(self, manifest: AdapterManifest, modules: Mapping[str, LoraMatrices], file: TensorFile) -> None:
        self.manifest = manifest
        self.modules = modules
        self._file = file

    @classmethod
    def open(cls, bundle: Path, base: BaseManifest) -> Self:
        """Map an adapter's weights; `BundleError` if they are not finite, or not those that the manifest describes."""
        manifest, _ = read_adapter(bundle)
        _check_modules(manifest.ranks, base)
        file, bits = _open(bundle / ADAPTER_WEIGHTS), lora_bits(base)
        for spec in lora_specs(base, manifest.ranks):
            _expect(file, spec.name, (spec.dtype,), spec.shape)
        shapes, modules = linear_modules(base.architecture), {}
        for module, rank in manifest.ranks.items():
            a, b = file.view(f"{module}.lora_A"), file.view(f"{module}.lora_B")
            modules[module] = LoraMatrices(a, b, rank, *shapes[module], bits)
        if not are_finite(modules.values()):
            raise BundleError("the adapter holds values that are not finite: fetch it again")
        return cls(manifest, modules, file)

    @property
    def rank(self) -> int:
        """The highest of all modules."""
        return max(self.manifest.ranks.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all matrices on disk, which is what a mapping of them can take."""
        return sum(spec.size_bytes for spec in self._file.values())

    def check_unchanged(self) -> None:
        """Raise `BundleError` if the mapped file has been cut or written to, before a step reads it."""
        try:
            self._file.check_unchanged()
        except TensorFileError as error:
            raise BundleError(f"{error}: fetch it again and load it anew") from error


def _check_modules(ranks: Mapping[str, int], base: BaseManifest) -> None:
    """There are some, the base has them, and each has a rank."""
    if not ranks:
        raise BundleError("the adapter changes nothing")
    if unknown := sorted(set(ranks) - set(linear_modules(base.architecture))):
        raise BundleError(f"the adapter changes {unknown[0]:.120}, which the base does not have")
    if least := [module for module, rank in ranks.items() if rank < 1]:
        raise BundleError(f"the adapter's {least[0]} has rank {ranks[least[0]]}: fetch it again")


def _open(path: Path) -> TensorFile:
    try:
        return TensorFile(path)
    except TensorFileError as error:
        raise BundleError(str(error)) from error


def _expect(file: TensorFile, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if name not in file:
        raise BundleError(f"{file.path.name} lacks {name:.120}")
    spec = file[name]
    if spec.dtype not in dtypes or spec.shape != shape:
        raise BundleError(f"{file.path.name}: {name:.120} is {spec.dtype}{spec.shape}, {dtypes[0]}{shape} expected")
