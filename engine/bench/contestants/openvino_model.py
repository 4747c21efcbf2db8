"""From our base bundle to an OpenVINO model, built of the operators and in the patterns that its CPU plugin fuses.

Stateful, as OpenVINO's own exports are: the KV cache lies in variables, reordered by `beam_idx`. Linear layers are int4
in groups of 32 with fp16 scales, symmetric, which holds exactly what our blocks hold; the tied embedding is int8 with a
scale per row. The head runs on the rows that `logit_rows` names.

    inputs   input_ids [1, rows], position_ids [1, rows], beam_idx [1], logit_rows [n]
    output   logits [1, n, vocab_size]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from engine.artifact import Architecture
from engine.backends.reference import rope_frequencies
from engine.backends.weights import BaseWeights, Matrix
from engine.layout import SUBGROUP_INPUTS, unpack
from engine.parameters import FINAL_NORM, layer_path, vectors

MODEL_NAME: Final = "model.xml"
_HIDDEN_FOREVER: Final = -1e9
_CHUNK_ROWS: Final = 4096


def write_openvino(bundle: Path, folder: Path) -> None:
    """Write `MODEL_NAME` and its weights into the folder."""
    builder = _Builder(BaseWeights.open(bundle))  # holds the arrays that the model's constants look into
    ov.save_model(builder.build(), folder / MODEL_NAME, compress_to_fp16=False)


class _Builder:
    """Methods named after a part of the model give the node of its output."""

    def __init__(self, weights: BaseWeights) -> None:
        self._weights = weights
        self._arch: Architecture = weights.architecture
        self._biases = {name for name in vectors(self._arch) if name.endswith("bias")}
        self._sinks: list[Any] = []
        self._kept: list[Any] = []  # constants look into these arrays
        self._ids = _parameter("input_ids", ov.Type.i64, [-1, -1])
        self._positions = _parameter("position_ids", ov.Type.i64, [-1, -1])
        self._beams = _parameter("beam_idx", ov.Type.i32, [-1])
        self._logit_rows = _parameter("logit_rows", ov.Type.i64, [-1])

    def build(self) -> Any:
        embedding = self._embedding()
        hidden = ops.gather(embedding, self._ids, np.int64(0))  # [1, rows, hidden]
        rotation, mask = self._rotation(), self._mask()
        for layer in range(self._arch.num_hidden_layers):
            path = layer_path(layer)
            normed = self._norm(hidden, f"{path}.input_layernorm.weight")
            attended = self._attention(path, normed, rotation, mask)
            if layer == self._arch.num_hidden_layers - 1:  # behind the last attention rows are independent
                hidden, attended = (ops.gather(x, self._logit_rows, np.int64(1)) for x in (hidden, attended))
            hidden = ops.add(hidden, self._linear(attended, f"{path}.self_attn.o_proj"))
            normed = self._norm(hidden, f"{path}.post_attention_layernorm.weight")
            hidden = ops.add(hidden, self._mlp(path, normed))
        head = self._embedding()  # a node of its own over the same array, so that each can be fused
        logits = ops.matmul(self._norm(hidden, FINAL_NORM), head, transpose_a=False, transpose_b=True)
        logits.output(0).set_names({"logits"})
        parameters = [self._ids, self._positions, self._beams, self._logit_rows]
        return ov.Model([ops.result(logits)], self._sinks, parameters, "socle")

    def _attention(self, path: str, normed: Any, rotation: tuple[Any, Any], mask: Any) -> Any:
        arch = self._arch
        query = self._heads(f"{path}.self_attn.q", normed, arch.num_attention_heads)
        key = self._heads(f"{path}.self_attn.k", normed, arch.num_key_value_heads)
        value = self._heads(f"{path}.self_attn.v", normed, arch.num_key_value_heads)
        keys = self._cached(f"{path}.key", self._rotated(key, rotation))
        values = self._cached(f"{path}.value", value)
        attended = ops.scaled_dot_product_attention(self._rotated(query, rotation), keys, values, mask)
        width = arch.num_attention_heads * arch.head_dim
        rows_first = ops.transpose(attended, _ints(0, 2, 1, 3))
        return ops.reshape(rows_first, _ints(0, 0, width), special_zero=True)  # [1, rows, heads * head_dim]

    def _heads(self, part: str, normed: Any, num_heads: int) -> Any:
        """Queries, keys or values [1, heads, rows, head_dim]; queries and keys normed if the family does so."""
        projected = self._linear(normed, f"{part}_proj")
        split = ops.reshape(projected, _ints(0, 0, num_heads, self._arch.head_dim), special_zero=True)
        if self._arch.qk_norm and not part.endswith(".v"):
            split = self._norm(split, f"{part}_norm.weight")
        return ops.transpose(split, _ints(0, 2, 1, 3))

    def _cached(self, name: str, current: Any) -> Any:
        """All keys or values so far, with each head repeated for the queries that share it."""
        arch = self._arch
        info = VariableInfo()
        info.variable_id, info.data_type = name, ov.Type.f32
        info.data_shape = ov.PartialShape([-1, arch.num_key_value_heads, -1, arch.head_dim])
        variable = Variable(info)
        batch = ops.gather(ops.shape_of(self._ids), _ints(0), np.int64(0))
        empty_shape = ops.concat([batch, _ints(arch.num_key_value_heads, 0, arch.head_dim)], 0)
        past = ops.read_value(ops.broadcast(np.float32(0), empty_shape), variable)
        present = ops.concat([ops.gather(past, self._beams, np.int64(0)), current], 2)
        self._sinks.append(ops.assign(present, variable))
        repeats = arch.num_attention_heads // arch.num_key_value_heads
        shape = _ints(1, 1, repeats, 1, 1)
        repeated = ops.broadcast(ops.unsqueeze(present, _ints(2)), shape, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, _ints(0, arch.num_attention_heads, -1, arch.head_dim), special_zero=True)

    def _rotation(self) -> tuple[Any, Any]:
        """Cosines and sines [1, 1, rows, head_dim]."""
        frequencies = rope_frequencies(self._arch).astype(np.float32)[None, :, None]  # [1, head_dim / 2, 1]
        positions = ops.convert(ops.unsqueeze(self._positions, _ints(1)), ov.Type.f32)  # [1, 1, rows]
        products = ops.matmul(ops.constant(frequencies), positions, transpose_a=False, transpose_b=False)
        angles = ops.transpose(products, _ints(0, 2, 1))  # [1, rows, head_dim / 2]
        both_halves = ops.concat([angles, angles], -1)  # [1, rows, head_dim]
        return tuple(ops.unsqueeze(node, _ints(1)) for node in (ops.cos(both_halves), ops.sin(both_halves)))

    def _rotated(self, heads: Any, rotation: tuple[Any, Any]) -> Any:
        half = self._arch.head_dim // 2
        first, second = ops.variadic_split(heads, np.int64(3), _ints(half, half)).outputs()
        turned = ops.concat([ops.multiply(second, np.float32(-1)), first], -1)
        return ops.add(ops.multiply(heads, rotation[0]), ops.multiply(turned, rotation[1]))

    def _mask(self) -> Any:
        """0 where a row may look, else very low [1, 1, rows, context + rows]."""
        last = ops.reduce_max(self._positions, _ints(0, 1), keep_dims=False)
        places = ops.range(np.int64(0), ops.add(last, np.int64(1)), np.int64(1), ov.Type.i64)  # [context + rows]
        visible = ops.less_equal(places, ops.unsqueeze(self._positions, _ints(1, 3)))
        return ops.select(visible, np.float32(0), np.float32(_HIDDEN_FOREVER))

    def _mlp(self, path: str, normed: Any) -> Any:
        gate = ops.swish(self._linear(normed, f"{path}.mlp.gate_proj"))
        return self._linear(ops.multiply(gate, self._linear(normed, f"{path}.mlp.up_proj")), f"{path}.mlp.down_proj")

    def _norm(self, inputs: Any, weight: str) -> Any:
        """RMSNorm in the pieces that are fused into one operator."""
        mean = ops.reduce_mean(ops.power(inputs, np.float32(2)), _ints(-1), keep_dims=True)
        scale = ops.divide(np.float32(1), ops.sqrt(ops.add(mean, np.float32(self._arch.rms_norm_eps))))
        return ops.multiply(self._constant(self._weights.vector(weight)), ops.multiply(inputs, scale))

    def _linear(self, inputs: Any, module: str) -> Any:
        matrix = self._weights.matrix(module)
        product = ops.matmul(inputs, self._int4(matrix), transpose_a=False, transpose_b=True)
        name = f"{module}.bias"
        return ops.add(product, self._constant(self._weights.vector(name))) if name in self._biases else product

    def _int4(self, matrix: Matrix) -> Any:
        """The weight [rows, inputs] in float32, as a graph that the plugin folds into the product."""
        values, scales = unpack(matrix.stored, matrix.bits, matrix.rows, matrix.inputs)
        signed = values ^ 8  # 4 bits around 8 become 4 bits in two's complement
        packed = signed[:, 0::2] | signed[:, 1::2] << 4  # [rows, inputs / 2], the earlier input in the lower half
        shape = [matrix.rows, matrix.inputs // SUBGROUP_INPUTS, SUBGROUP_INPUTS]
        self._kept.append(np.ascontiguousarray(packed))
        quantised = ops.constant(ov.Tensor(self._kept[-1], ov.Shape(shape), ov.Type.i4), shared_memory=True)
        half = ops.convert(quantised, ov.Type.f16)
        scaled = ops.multiply(half, self._constant(scales.astype(np.float16)[:, :, None]))
        flat = ops.reshape(scaled, _ints(matrix.rows, matrix.inputs), special_zero=False)
        return ops.convert(flat, ov.Type.f32)

    def _embedding(self) -> Any:
        """The embedding [vocab_size, hidden], decompressed from int8."""
        if not hasattr(self, "_int8"):
            self._int8 = _int8_rows(self._weights.embedding)
        values, scales = (self._constant(array) for array in self._int8)
        return ops.convert(ops.multiply(ops.convert(values, ov.Type.f16), scales), ov.Type.f32)

    def _constant(self, array: NDArray[Any]) -> Any:
        self._kept.append(array)
        return ops.constant(array, shared_memory=array.flags.writeable)  # what is mapped is small and gets copied


def _int8_rows(matrix: Matrix) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Values [rows, inputs] and scales [rows, 1]; the largest value of a row becomes +-127."""
    values = np.empty((matrix.rows, matrix.inputs), np.int8)
    scales = np.empty((matrix.rows, 1), np.float16)
    for start in range(0, matrix.rows, _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, matrix.rows))
        dense = matrix.take_rows(rows)  # [n, inputs]
        scales[rows] = np.abs(dense).max(axis=1, keepdims=True) / 127
        values[rows] = np.clip(np.rint(dense / scales[rows].astype(np.float32)), -127, 127)
    return values, scales


def _parameter(name: str, kind: Any, shape: list[int]) -> Any:
    node = ops.parameter(ov.PartialShape(shape), kind, name=name)
    node.output(0).set_names({name})
    return node


def _ints(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))
