"""From our base bundle to a GGUF file of type Q4_0, written tensor by tensor.

A block of ours and one of Q4_0 hold the same: 32 values of 4 bits around 8 and one fp16 scale. So linear layers are
copied exactly. The tied embedding goes through llama.cpp's own quantiser with its default options, which gives it Q6_K,
or Q8_0 where rows are no multiple of 256 (`llama_tensor_get_type` in its llama-quant.cpp). There is no tokenizer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from engine.artifact import Architecture
from engine.backends.weights import BaseWeights, Matrix
from engine.layout import SUBGROUP_INPUTS, unpack
from engine.parameters import EMBEDDING, FINAL_NORM, layer_path, linear_modules, matrix_modules, vectors

MODEL_NAME: Final = "model-q4_0.gguf"
_F16_NAME: Final = "model-f16-head.gguf"
_CHUNK_ROWS: Final = 4096
_LAYER_NAMES: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_q4_0(bundle: Path, folder: Path) -> None:
    """Write `MODEL_NAME` into the folder."""
    source = folder / _F16_NAME
    _write_with_f16_head(source, BaseWeights.open(bundle))
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    paths = [str(path).encode() for path in (source, folder / MODEL_NAME)]
    if llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)):
        raise RuntimeError("llama.cpp could not quantise the model: its log says why")
    source.unlink()


def _write_with_f16_head(path: Path, weights: BaseWeights) -> None:
    architecture = weights.architecture
    assert architecture.tie_word_embeddings, "an untied head would need a tensor of its own"
    writer = gguf.GGUFWriter(path, architecture.family)
    _add_keys(writer, architecture)
    linears = linear_modules(architecture)
    rows, inputs = matrix_modules(architecture)[EMBEDDING]
    writer.add_tensor_info("token_embd.weight", (rows, inputs), np.dtype(np.float16), 2 * rows * inputs)
    for module, (outputs, features) in linears.items():
        shape = (outputs, q4_0_bytes(features))
        writer.add_tensor_info(
            _name(f"{module}.weight"), shape, np.dtype(np.uint8), shape[0] * shape[1], gguf.GGMLQuantizationType.Q4_0
        )
    for name, length in vectors(architecture).items():
        writer.add_tensor_info(_name(name), (length,), np.dtype(np.float32), 4 * length)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in _arrays(weights):
        writer.write_tensor_data(array)
    writer.close()


def _add_keys(writer: Any, architecture: Architecture) -> None:
    writer.add_context_length(architecture.max_position_embeddings)
    writer.add_embedding_length(architecture.hidden_size)
    writer.add_block_count(architecture.num_hidden_layers)
    writer.add_feed_forward_length(architecture.intermediate_size)
    writer.add_head_count(architecture.num_attention_heads)
    writer.add_head_count_kv(architecture.num_key_value_heads)
    writer.add_key_length(architecture.head_dim)
    writer.add_value_length(architecture.head_dim)
    writer.add_layer_norm_rms_eps(architecture.rms_norm_eps)
    writer.add_rope_freq_base(architecture.rope_theta)
    writer.add_vocab_size(architecture.vocab_size)
    writer.add_tokenizer_model("none")


def _arrays(weights: BaseWeights) -> Iterator[NDArray[Any]]:
    """The data of all tensors, in the order in which they were announced."""
    yield _half_precision(weights.embedding)
    for module in linear_modules(weights.architecture):
        yield q4_0_blocks(weights.matrix(module))
    for name in vectors(weights.architecture):
        yield weights.vector(name)


def _half_precision(matrix: Matrix) -> NDArray[np.float16]:
    dense = np.empty((matrix.rows, matrix.inputs), np.float16)
    for start in range(0, matrix.rows, _CHUNK_ROWS):
        indices = np.arange(start, min(start + _CHUNK_ROWS, matrix.rows))
        dense[indices] = matrix.take_rows(indices)
    return dense


def q4_0_bytes(inputs: int) -> int:
    """Bytes of a row."""
    return inputs // SUBGROUP_INPUTS * 18


def q4_0_blocks(matrix: Matrix) -> NDArray[np.uint8]:
    """Rows of blocks [rows, groups * 18]: an fp16 scale, then inputs j (low half) and j + 16 (high half) in byte j."""
    values, scales = unpack(matrix.stored, matrix.bits, matrix.rows, matrix.inputs)
    groups = values.reshape(matrix.rows, -1, SUBGROUP_INPUTS)  # [rows, groups, 32]
    nibbles = groups[:, :, :16] | groups[:, :, 16:] << 4  # [rows, groups, 16]
    scale_bytes = scales.astype(np.float16)[:, :, None].view(np.uint8)  # [rows, groups, 2]
    blocks = np.concatenate([scale_bytes, nibbles], axis=2)  # [rows, groups, 18]
    return blocks.reshape(matrix.rows, -1)


def _name(parameter: str) -> str:
    """llama.cpp's name of a parameter."""
    if parameter == FINAL_NORM:
        return "output_norm.weight"
    layer = parameter.split(".")[2]
    module, _, kind = parameter.removeprefix(f"{layer_path(int(layer))}.").rpartition(".")
    return f"blk.{layer}.{_LAYER_NAMES[module]}.{kind}"
