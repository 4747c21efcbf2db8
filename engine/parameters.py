"""Names and shapes of a model's parameters, as Hugging Face names them, from its `Architecture`.

Data for whoever reads or writes weights. Knows nothing of files, element types or arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.artifact import Architecture

EMBEDDING: Final = "model.embed_tokens"
HEAD: Final = "lm_head"
FINAL_NORM: Final = "model.norm.weight"

# The linear layers of a decoder layer: (output features, input features), each by the name of a dimension.
LAYER_LINEARS: Final = {
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("key_value", "hidden"),
    "self_attn.v_proj": ("key_value", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
    "mlp.gate_proj": ("intermediate", "hidden"),
    "mlp.up_proj": ("intermediate", "hidden"),
    "mlp.down_proj": ("hidden", "intermediate"),
}
# Those that read the same input, which a step runs together.
LINEARS_BY_INPUT: Final = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
LAYER_NORMS: Final = {"input_layernorm.weight": "hidden", "post_attention_layernorm.weight": "hidden"}
QK_NORMS: Final = {"self_attn.q_norm.weight": "head", "self_attn.k_norm.weight": "head"}
ATTENTION_BIASES: Final = {
    "self_attn.q_proj.bias": "query",
    "self_attn.k_proj.bias": "key_value",
    "self_attn.v_proj.bias": "key_value",
}


def layer_path(index: int) -> str:
    """Where a decoder layer's parameters live."""
    return f"model.layers.{index}"


def linear_modules(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """(output, input) features of every linear layer that an adapter can change, in the order of computation."""
    size = _dimensions(architecture)
    return {
        f"{layer_path(index)}.{name}": (size[rows], size[inputs])
        for index in range(architecture.num_hidden_layers)
        for name, (rows, inputs) in LAYER_LINEARS.items()
    }


def matrix_modules(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Every weight matrix: embedding, linear layers, and the head unless it is the embedding."""
    vocabulary = (architecture.vocab_size, architecture.hidden_size)
    head = {} if architecture.tie_word_embeddings else {HEAD: vocabulary}
    return {EMBEDDING: vocabulary, **linear_modules(architecture), **head}


def vectors(architecture: Architecture) -> dict[str, int]:
    """Length of every norm weight and bias."""
    return dict(_vectors(architecture))


def parameter_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its full name."""
    matrices = {f"{module}.weight": shape for module, shape in matrix_modules(architecture).items()}
    return {**matrices, **{name: (length,) for name, length in _vectors(architecture)}}


def _vectors(architecture: Architecture) -> Iterator[tuple[str, int]]:
    size = _dimensions(architecture)
    per_layer = LAYER_NORMS | (QK_NORMS if architecture.qk_norm else {})
    per_layer |= ATTENTION_BIASES if architecture.attention_bias else {}
    for index in range(architecture.num_hidden_layers):
        for name, dimension in per_layer.items():
            yield f"{layer_path(index)}.{name}", size[dimension]
    yield FINAL_NORM, size["hidden"]


def _dimensions(architecture: Architecture) -> dict[str, int]:
    return {
        "hidden": architecture.hidden_size,
        "intermediate": architecture.intermediate_size,
        "head": architecture.head_dim,
        "query": architecture.num_attention_heads * architecture.head_dim,
        "key_value": architecture.num_key_value_heads * architecture.head_dim,
    }
