"""From a Hugging Face checkpoint directory to a base bundle.

`convert_base` reads as its steps: read the configuration, check the tensors, write tokenizer and weights, measure the
agreement with the original, write the manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.artifact import (
    BASE_WEIGHTS,
    CHAT_TEMPLATE,
    TOKENIZER,
    Architecture,
    BaseManifest,
    describe_files,
    write_manifest,
)
from engine.backends.weights import BaseWeights
from engine.convert.agreement import measure_agreement
from engine.convert.building import Progress, building, ignore_progress
from engine.convert.checkpoint import check_tensors
from engine.convert.errors import NotACheckpointError
from engine.convert.families import architecture_of
from engine.convert.quantise import quantise_int4, quantise_int8, quantise_planes
from engine.convert.source import SourceTensors, open_tensors, read_json
from engine.convert.tokenizer_files import write_tokenizer
from engine.layout import GROUP_INPUTS, TILE_ROWS, block_bytes
from engine.parameters import EMBEDDING, HEAD, matrix_modules, parameter_shapes, vectors
from engine.tensor_file import TensorFile, TensorSpec, write_tensor_file
from engine.tokenizer import Tokenizer

Weights = Literal["int4", "float32"]


def convert_base(
    source: Path, bundle: Path, *, weights: Weights = "int4", on_progress: Progress = ignore_progress
) -> str:
    """Convert a checkpoint directory and return the release digest; raises a `ConversionError` saying what to mend.

    `bundle` must not exist; it appears at once when it is whole. `on_progress(step, fraction)` follows the work.
    """
    on_progress("reading the checkpoint", 0.0)
    config = read_json(source / "config.json", NotACheckpointError)
    architecture = architecture_of(config)
    tensors = open_tensors(source, "model", NotACheckpointError)
    check_tensors(tensors, architecture)
    with building(bundle) as folder:
        tokenizer = write_tokenizer(source, folder, config, architecture.vocab_size)
        _write_weights(folder / BASE_WEIGHTS, tensors, architecture, weights, on_progress)
        files = describe_files(folder, [BASE_WEIGHTS, TOKENIZER, CHAT_TEMPLATE])
        manifest = BaseManifest(architecture, tokenizer, weights, files)
        if weights == "int4":
            converted = BaseWeights(manifest, "", TensorFile(folder / BASE_WEIGHTS))
            text_tokens = Tokenizer(folder, tokenizer)
            agreement = measure_agreement(architecture, text_tokens, tensors.float32, converted.dense, on_progress)
            manifest = dataclasses.replace(manifest, agreement=agreement)
        digest = write_manifest(folder, manifest)
    on_progress("done", 1.0)
    return digest


def _write_weights(
    path: Path, tensors: SourceTensors, architecture: Architecture, weights: Weights, on_progress: Progress
) -> None:
    specs = _stored_specs(architecture, weights)
    quantisers = {spec.name: _quantiser(spec) for spec in specs}
    total, written = sum(spec.size_bytes for spec in specs), 0
    sizes = {spec.name: spec.size_bytes for spec in specs}

    def produce(name: str) -> NDArray[Any]:
        nonlocal written
        on_progress("converting the weights", 0.05 + 0.75 * written / total)
        written += sizes[name]
        return quantisers[name](name, tensors.float32(name))

    write_tensor_file(path, specs, produce)


def _stored_specs(architecture: Architecture, weights: Weights) -> list[TensorSpec]:
    """How each parameter will lie in the bundle."""
    if weights == "float32":
        return [TensorSpec(name, "F32", shape) for name, shape in parameter_shapes(architecture).items()]
    matrices = [
        TensorSpec(f"{module}.weight", "U8", _blocks_shape(module, *shape, architecture))
        for module, shape in matrix_modules(architecture).items()
    ]
    return matrices + [TensorSpec(name, "F32", (length,)) for name, length in vectors(architecture).items()]


def _blocks_shape(module: str, rows: int, inputs: int, architecture: Architecture) -> tuple[int, ...]:
    """The head in two planes, an embedding that is only looked up in 8 bits, everything else in 4."""
    counts = (-(-rows // TILE_ROWS), -(-inputs // GROUP_INPUTS))
    if module == (EMBEDDING if architecture.tie_word_embeddings else HEAD):
        return (2, *counts, block_bytes(4))
    return (*counts, block_bytes(8 if module == EMBEDDING else 4))


def _quantiser(spec: TensorSpec) -> Callable[[str, NDArray[np.float32]], NDArray[Any]]:
    if spec.dtype == "F32":
        return lambda _name, values: values
    if len(spec.shape) == 4:
        return quantise_planes
    return quantise_int8 if spec.shape[-1] == block_bytes(8) else quantise_int4
