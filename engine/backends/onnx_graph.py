"""The ONNX graph of a decoder-only transformer, built node by node from its architecture.

Weights come from outside: the builder asks for each by name as it goes and puts it into an external data file, so
that the graph itself stays small. Knows operators and names; runs nothing.

    inputs   hidden [rows, hidden_size]            embedding rows, looked up by the caller
             logit_rows [n]                        which rows want logits
             last_position [1], num_tokens []      length of the KV state after the step, minus one and as it is
             <layer>.key, <layer>.value            [1, kv_heads, capacity, head_dim], extended in place
             <module>.lora_A [rank, inputs], <module>.lora_B [outputs, rank]     rank 0: exactly the base
    outputs  logits [n, vocab_size], <layer>.key.new, <layer>.value.new
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engine import parameters
from engine.artifact import Architecture
from engine.backends.reference import rope_frequencies

MICROSOFT = "com.microsoft"
IR_VERSION = 10
OPSET = 21


class WeightSource(Protocol):
    """Where the graph's constants come from and go to."""

    def linear(self, module: str) -> tuple[str, dict[str, Any], list[NDArray[Any]]]:
        """Operator type, attributes, and the constants after the input, for a module's product with its weight."""

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm weight or a bias."""

    def store(self, name: str, array: NDArray[Any]) -> TensorProto:
        """Write a constant to the external data file; the initialiser that points to it."""


def kv_name(layer: int, part: str) -> str:
    """Name of a layer's "key" or "value" input; its output has `.new` appended."""
    return f"{parameters.layer_path(layer)}.{part}"


def rope_tables(architecture: Architecture, num_positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines [num_positions, head_dim / 2] of the rotary embedding."""
    angles = np.outer(np.arange(num_positions), rope_frequencies(architecture))  # [num_positions, head_dim / 2]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def build_graph(architecture: Architecture, weights: WeightSource, *, max_context_tokens: int) -> onnx.ModelProto:
    """The whole model. Shapes that vary by call are left open."""
    return _GraphBuilder(architecture, weights).build(max_context_tokens)


class _GraphBuilder:
    """Collects nodes and constants. Methods named after a part of the model append it and return its output's name."""

    def __init__(self, architecture: Architecture, weights: WeightSource) -> None:
        self._arch = architecture
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._modules = parameters.linear_modules(architecture)

    def build(self, max_context_tokens: int) -> onnx.ModelProto:
        for name, table in zip(("rope.cos", "rope.sin"), rope_tables(self._arch, max_context_tokens), strict=True):
            self._constant(name, table)
        residual, branch = "hidden", None
        for layer in range(self._arch.num_hidden_layers):
            residual, branch = self._decoder_layer(layer, residual, branch)
        assert branch is not None
        _, normed = self._add_and_norm(residual, branch, parameters.FINAL_NORM)
        head = parameters.EMBEDDING if self._arch.tie_word_embeddings else parameters.HEAD
        self._product(normed, head, output="logits")
        graph = helper.make_graph(
            self._nodes, "socle", list(self._inputs()), list(self._outputs()), list(self._constants.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _decoder_layer(self, layer: int, residual: str, branch: str | None) -> tuple[str, str]:
        """The residual stream, and the branch that is still to be added to it; takes those of the layer before."""
        path = parameters.layer_path(layer)
        residual, normed = self._add_and_norm(residual, branch, f"{path}.input_layernorm.weight")
        branch = self._attention(layer, normed)
        if layer == self._arch.num_hidden_layers - 1:
            # Behind the last attention rows are independent, so only those that want logits go on.
            residual = self._node("Gather", [residual, "logit_rows"], f"{path}.residual_rows")
            branch = self._node("Gather", [branch, "logit_rows"], f"{path}.attention_rows")
        branch = self._linear(branch, f"{path}.self_attn.o_proj")
        residual, normed = self._add_and_norm(residual, branch, f"{path}.post_attention_layernorm.weight")
        return residual, self._mlp(path, normed)

    def _add_and_norm(self, residual: str, branch: str | None, weight: str) -> tuple[str, str]:
        """The residual stream with the branch added, and its RMS norm."""
        gamma = self._vector(weight)
        if branch is None:
            return residual, self._rms_norm(residual, gamma, f"{weight}.out")
        total, normed = f"{weight}.sum", f"{weight}.out"
        self._nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [residual, branch, gamma],
                [normed, "", "", total],
                domain=MICROSOFT,
                epsilon=self._arch.rms_norm_eps,
            )
        )
        return total, normed

    def _attention(self, layer: int, normed: str) -> str:
        """[rows, hidden] -> [rows, heads * head_dim], before the output projection."""
        path, arch = f"{parameters.layer_path(layer)}.self_attn", self._arch
        heads = {"q": arch.num_attention_heads, "k": arch.num_key_value_heads, "v": arch.num_key_value_heads}
        query, key, value = (self._heads(normed, f"{path}.{part}", heads[part]) for part in heads)
        cache = [kv_name(layer, "key"), kv_name(layer, "value")]
        attended = f"{path}.attended"
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [query, key, value, *cache, "last_position", "num_tokens", "rope.cos", "rope.sin"],
                [attended, *(f"{name}.new" for name in cache)],
                domain=MICROSOFT,
                num_heads=arch.num_attention_heads,
                kv_num_heads=arch.num_key_value_heads,
                do_rotary=1,
                local_window_size=arch.sliding_window or -1,
            )
        )
        return self._reshape(attended, f"{path}.rows", [-1, arch.num_attention_heads * arch.head_dim])

    def _heads(self, normed: str, part: str, num_heads: int) -> str:
        """Queries, keys or values [1, rows, num_heads * head_dim], each head normed if the family does so."""
        projected, size = self._linear(normed, f"{part}_proj"), num_heads * self._arch.head_dim
        if self._arch.qk_norm and not part.endswith(".v"):
            split = self._reshape(projected, f"{part}.split", [-1, num_heads, self._arch.head_dim])
            projected = self._rms_norm(split, self._vector(f"{part}_norm.weight"), f"{part}.normed")
        return self._reshape(projected, f"{part}.batch", [1, -1, size])

    def _mlp(self, path: str, normed: str) -> str:
        """SwiGLU (Shazeer, 2020)."""
        gate = self._linear(normed, f"{path}.mlp.gate_proj")
        gated = self._node("QuickGelu", [gate], f"{path}.mlp.gated", domain=MICROSOFT, alpha=1.0)  # SiLU
        up = self._linear(normed, f"{path}.mlp.up_proj")
        return self._linear(self._node("Mul", [gated, up], f"{path}.mlp.product"), f"{path}.mlp.down_proj")

    def _linear(self, inputs: str, module: str) -> str:
        """W x + B (A x), where A and B are inputs of the graph."""
        base = self._product(inputs, module, output=f"{module}.base")
        low_rank = self._node("Gemm", [inputs, f"{module}.lora_A"], f"{module}.low_rank", transB=1)
        return self._node("Gemm", [low_rank, f"{module}.lora_B", base], f"{module}.out", transB=1)

    def _product(self, inputs: str, module: str, *, output: str) -> str:
        operator, attributes, constants = self._weights.linear(module)
        names = [self._constant(f"{module}.{index}", array) for index, array in enumerate(constants)]
        if f"{module}.bias" in parameters.vectors(self._arch):
            names += [""] * (2 * (operator == "MatMulNBits")) + [self._vector(f"{module}.bias")]
        return self._node(operator, [inputs, *names], output, **attributes)

    def _rms_norm(self, inputs: str, gamma: str, output: str) -> str:
        epsilon = self._arch.rms_norm_eps
        return self._node("SimplifiedLayerNormalization", [inputs, gamma], output, axis=-1, epsilon=epsilon)

    def _reshape(self, inputs: str, output: str, shape: list[int]) -> str:
        name = f"shape.{'x'.join(map(str, shape))}"
        if name not in self._constants:  # small and needed while the graph is planned, so it stays in the graph
            self._constants[name] = helper.make_tensor(name, TensorProto.INT64, [len(shape)], shape)
        return self._node("Reshape", [inputs, name], output)

    def _node(self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        if operator == "MatMulNBits":
            domain = MICROSOFT
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def _vector(self, name: str) -> str:
        return self._constant(name, self._weights.vector(name))

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants[name] = self._weights.store(name, array)
        return name

    def _inputs(self) -> Iterator[onnx.ValueInfoProto]:
        yield _float("hidden", ["rows", self._arch.hidden_size])
        yield helper.make_tensor_value_info("logit_rows", TensorProto.INT64, ["logit_rows"])
        yield helper.make_tensor_value_info("last_position", TensorProto.INT32, [1])
        yield helper.make_tensor_value_info("num_tokens", TensorProto.INT32, [])
        yield from self._cache("")
        for module, (outputs, inputs) in self._modules.items():
            yield _float(f"{module}.lora_A", [f"{module}.rank", inputs])
            yield _float(f"{module}.lora_B", [outputs, f"{module}.rank"])

    def _outputs(self) -> Iterator[onnx.ValueInfoProto]:
        yield _float("logits", ["logit_rows", self._arch.vocab_size])
        yield from self._cache(".new")

    def _cache(self, suffix: str) -> Iterator[onnx.ValueInfoProto]:
        for layer in range(self._arch.num_hidden_layers):
            for part in ("key", "value"):
                shape = (1, self._arch.num_key_value_heads, "capacity", self._arch.head_dim)
                yield _float(kv_name(layer, part) + suffix, shape)


def _float(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
