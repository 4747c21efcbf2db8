"""Base and adapter bundles with random weights, of any family and in any quantisation, without a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.artifact import (
    ADAPTER_WEIGHTS,
    BASE_WEIGHTS,
    AdapterManifest,
    Architecture,
    BaseBinding,
    BaseManifest,
    RopeScaling,
    TokenizerInfo,
    describe_files,
    read_base,
    write_manifest,
)
from engine.convert.adapter import store_matrices, write_matrices
from engine.layout import GROUP_INPUTS, MAX_MULTIPLIER, SUBGROUP_INPUTS, pack_int4, pack_int8, pack_planes
from engine.parameters import EMBEDDING, HEAD, linear_modules, matrix_modules, vectors
from engine.tensor_file import TensorSpec, write_tensor_file

DTYPES = {np.dtype(np.uint8): "U8", np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}

QWEN3 = Architecture(
    family="qwen3",
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=113,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    attention_bias=False,
    qk_norm=True,
)
QWEN2 = replace(QWEN3, family="qwen2", head_dim=16, attention_bias=True, qk_norm=False)
LLAMA = replace(
    QWEN3,
    family="llama",
    intermediate_size=88,  # no multiple of the group
    head_dim=16,
    qk_norm=False,
    tie_word_embeddings=False,
    rope_theta=5e5,
    rope_scaling=RopeScaling("llama3", factor=8.0, original_max_position_embeddings=64),
)
MISTRAL = replace(LLAMA, family="mistral", num_key_value_heads=1, rope_scaling=None, sliding_window=12)
FAMILIES = {"qwen3": QWEN3, "qwen2": QWEN2, "llama": LLAMA, "mistral": MISTRAL}


def make_base(
    bundle: Path, architecture: Architecture = QWEN3, weights: Literal["int4", "float32"] = "float32", seed: int = 0
) -> str:
    """A base bundle without a tokenizer; returns its digest."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, inputs) in matrix_modules(architecture).items():
        head = EMBEDDING if architecture.tie_word_embeddings else HEAD
        bits = 32 if weights == "float32" else 8 if module in (EMBEDDING, HEAD) else 4
        tensors[f"{module}.weight"] = _matrix(generator, rows, inputs, bits, in_planes=module == head)
    for name, length in vectors(architecture).items():
        centre = 0.0 if name.endswith("bias") else 1.0
        tensors[name] = (centre + 0.3 * generator.standard_normal(length)).astype(np.float32)
    bundle.mkdir()
    write_tensors(bundle / BASE_WEIGHTS, tensors)
    info = TokenizerInfo("0" * 64, "1" * 64, eos_token_ids=(architecture.vocab_size - 1,))
    manifest = BaseManifest(architecture, info, weights, describe_files(bundle, [BASE_WEIGHTS]))
    return write_manifest(bundle, manifest)


def make_adapter(
    bundle: Path,
    base_bundle: Path,
    *,
    rank: int | Mapping[str, int] = 4,
    seed: int = 1,
    only: str = "",
    scale: float = 0.5,
) -> str:
    """An adapter bundle for all modules whose path contains `only`; returns its digest.

    `rank` is that of all, or of each by its last name, such as `q_proj`; modules that it does not name are left out.
    """
    base, base_digest = read_base(base_bundle)
    generator = np.random.default_rng(seed)
    matrices = {}
    for module, (rows, inputs) in linear_modules(base.architecture).items():
        its_rank = rank if isinstance(rank, int) else rank.get(module.rpartition(".")[2], 0)
        if only in module and its_rank:
            a = generator.standard_normal((its_rank, inputs)) / inputs**0.5
            b = scale * generator.standard_normal((rows, its_rank))
            matrices[module] = a.astype(np.float32), b.astype(np.float32)
    bundle.mkdir()
    write_matrices(bundle / ADAPTER_WEIGHTS, store_matrices(matrices, base), base)
    binding = BaseBinding(base_digest, base.tokenizer.tokenizer_sha256, base.tokenizer.chat_template_sha256)
    ranks = {module: len(a) for module, (a, _) in matrices.items()}
    return write_manifest(bundle, AdapterManifest(binding, ranks, describe_files(bundle, [ADAPTER_WEIGHTS])))


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """A safetensors file of these arrays."""
    specs = [TensorSpec(name, DTYPES[array.dtype], array.shape) for name, array in tensors.items()]
    write_tensor_file(path, specs, tensors.__getitem__)


def _matrix(generator: np.random.Generator, rows: int, inputs: int, bits: int, *, in_planes: bool) -> Any:
    if bits == 32:
        return (generator.standard_normal((rows, inputs)) / inputs**0.5).astype(np.float32)
    values = generator.integers(0, 2**bits, (rows, inputs), dtype=np.uint8)
    spread = {4: 5.0, 8: 74.0}[bits]  # standard deviation of the values, so that weights have variance 1 / inputs
    scales = generator.uniform(0.5, 1.5, (rows, -(-inputs // GROUP_INPUTS))) / (spread * inputs**0.5)
    if bits == 8 and not in_planes:
        return pack_int8(values, scales.astype(np.float16))
    multipliers = generator.integers(5, MAX_MULTIPLIER + 1, (rows, -(-inputs // SUBGROUP_INPUTS)), np.int8)
    scales = (scales / 10).astype(np.float16)
    if bits == 8:
        return pack_planes(np.clip(values, 9, 247), multipliers, scales)
    return pack_int4(values, multipliers, scales)
