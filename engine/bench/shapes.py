"""The model shapes that are compared, and what a step of one costs at least. Knows no weights and no clocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from engine.artifact import Architecture
from engine.layout import GROUP_INPUTS, TILE_ROWS, block_bytes
from engine.parameters import EMBEDDING, linear_modules, matrix_modules

QUICK_LAYERS: Final = 4
_BYTES_PER_WEIGHT: Final = block_bytes(4) / (TILE_ROWS * GROUP_INPUTS)  # of one plane of 4 bits, with its scales
_KV_BYTES_PER_VALUE: Final = 2

_QWEN2 = Architecture(
    family="qwen2",
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=151_936,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=32_768,
    tie_word_embeddings=True,
    attention_bias=True,
    qk_norm=False,
)
_QWEN3 = replace(_QWEN2, family="qwen3", attention_bias=False, qk_norm=True, head_dim=128, num_key_value_heads=8)

SHAPES: Final = {
    "tiny": replace(
        _QWEN3,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
    ),
    "0.5b": _QWEN2,  # Qwen2.5-0.5B
    "1.7b": replace(_QWEN3, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
    "4b": replace(_QWEN3, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32),
}
"""By name. `tiny` is for tests; the others are Qwen2.5-0.5B, Qwen3-1.7B and Qwen3-4B."""


def quick(architecture: Architecture) -> Architecture:
    """The same with a few layers only."""
    return replace(architecture, num_hidden_layers=min(QUICK_LAYERS, architecture.num_hidden_layers))


def num_weights(architecture: Architecture) -> int:
    """Elements of all weight matrices."""
    return sum(rows * inputs for rows, inputs in matrix_modules(architecture).values())


def step_bytes(architecture: Architecture, context: int) -> float:
    """Bytes that the native core must read: every matrix in 4 bits and the KV cache in fp16.

    Of an 8-bit head it reads the high plane; what it reads of the low plane, for the most likely tokens, is left out.
    """
    cache = architecture.kv_bytes_per_token(_KV_BYTES_PER_VALUE) * context
    return num_weights(architecture) * _BYTES_PER_WEIGHT + cache


def step_macs(architecture: Architecture, rows: int, logit_rows: int) -> int:
    """Multiply-accumulates of a step's matrix products; attention is left out."""
    linear = sum(outputs * inputs for outputs, inputs in linear_modules(architecture).values())
    outputs, inputs = matrix_modules(architecture)[EMBEDDING]
    return linear * rows + outputs * inputs * logit_rows
