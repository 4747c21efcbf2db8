"""The oracle: a decoder-only transformer in plain numpy float32, slow and obvious.

Each row is computed by itself, in the same order of operations whatever else runs in the step, so that chunked, batched
and whole prefill give the same bits. Knows nothing of speed; other back ends are compared with it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.artifact import Architecture, RopeScaling
from engine.backends import NO_PREFIX, BackendMemory, Logits, Prefix, Segment, State, Tokens
from engine.backends.array_blocks import ArrayBlock, Blocks
from engine.backends.weights import AdapterWeights, BaseWeights
from engine.parameters import ATTENTION_BIASES, EMBEDDING, FINAL_NORM, HEAD, layer_path, matrix_modules
from engine.sampling import next_token

F32 = NDArray[np.float32]
Adapter = Mapping[str, tuple[F32, F32]]
NO_ADAPTER: Adapter = {}


BLOCK_TOKENS = 64


def blocks_of(architecture: Architecture) -> Blocks:
    """How a state of this architecture is cut into blocks."""
    return Blocks(
        num_parts=2 * architecture.num_hidden_layers,
        kv_heads=architecture.num_key_value_heads,
        block_tokens=BLOCK_TOKENS,
        head_dim=architecture.head_dim,
    )


class KvCache:
    """Keys and values of one sequence, after RoPE: [layers, kv_heads, max_tokens, head_dim] each."""

    def __init__(self, architecture: Architecture, max_tokens: int, prefix: Prefix = NO_PREFIX) -> None:
        shape = (architecture.num_hidden_layers, architecture.num_key_value_heads, max_tokens, architecture.head_dim)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.num_tokens = prefix.num_tokens
        self._architecture = architecture
        self._blocks = blocks_of(architecture)
        self._blocks.paste(self._parts, prefix)

    @property
    def max_tokens(self) -> int:
        """How many tokens there is room for."""
        return int(self.keys.shape[2])

    @property
    def size_bytes(self) -> int:
        """Bytes of both arrays."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def resident_bytes(self) -> int:
        """As if all pages were written."""
        return self.size_bytes

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens`."""
        if not 0 <= num_tokens <= self.num_tokens:
            raise ValueError(f"cannot rewind to {num_tokens} tokens, the state holds {self.num_tokens}")
        self.num_tokens = num_tokens

    def accept(self, rows: Sequence[int]) -> None:
        """Append rows of the tree that the last step ran, each the parent of the next."""
        first, last = self.num_tokens, self.num_tokens + len(rows)
        slots = first + np.array(rows, np.int64)
        for array in (self.keys, self.values):
            array[:, :, first:last] = array[:, :, slots]
        self.num_tokens = last

    def block(self, index: int) -> ArrayBlock:
        """A copy of a full block."""
        return self._blocks.full(self._parts, index, self.num_tokens)

    def take(self) -> tuple[ArrayBlock, ...]:
        """End the state; copies of its blocks."""
        blocks = self._blocks.all(self._parts, self.num_tokens)
        self.close()
        return blocks

    def fork(self, max_tokens: int) -> KvCache:
        """A copy."""
        prefix = Prefix(self._blocks.all(self._parts, self.num_tokens), self.num_tokens)
        return KvCache(self._architecture, max_tokens, prefix)

    @property
    def _parts(self) -> list[F32]:
        return [*self.keys, *self.values]  # [kv_heads, max_tokens, head_dim] each

    def close(self) -> None:
        """Drop the arrays."""
        self.keys = self.values = np.zeros((0, 0, 0, 0), np.float32)
        self.num_tokens = 0


@dataclass(frozen=True, slots=True)
class RowPlaces:
    """Of the rows of a step: positions [num_rows], slots in the cache [num_rows], and the slots that each row sees."""

    positions: NDArray[np.integer]
    slots: NDArray[np.integer]
    seen: Sequence[slice | NDArray[np.integer]]


class Transformer:
    """The forward pass of an architecture over named float32 tensors."""

    def __init__(
        self,
        architecture: Architecture,
        tensor: Callable[[str], F32],
        *,
        multiply: Callable[[F32, F32], F32] | None = None,
    ) -> None:
        """Take weights from `tensor(name)`, and x W^T from `multiply(x, weight)`: row by row unless said otherwise."""
        self._architecture = architecture
        self._tensor = tensor
        self._multiply = multiply or multiply_rows
        self._frequencies = rope_frequencies(architecture)

    def hidden_states(
        self, token_ids: Tokens, cache: KvCache, adapter: Adapter = NO_ADAPTER, parents: Sequence[int] | None = None
    ) -> F32:
        """Append the tokens to the cache; their states after the last norm. A tree's rows stay behind its end."""
        if cache.num_tokens + len(token_ids) > cache.max_tokens:
            raise ValueError(f"no room for {len(token_ids)} tokens: {cache.num_tokens} of {cache.max_tokens} are taken")
        rows = self._place(cache.num_tokens, len(token_ids), parents)
        x = self._tensor(f"{EMBEDDING}.weight")[token_ids]  # [num_rows, hidden]
        for index in range(self._architecture.num_hidden_layers):
            layer = layer_path(index)
            x = x + self._attention(index, self._norm(x, f"{layer}.input_layernorm.weight"), cache, rows, adapter)
            x = x + self._mlp(index, self._norm(x, f"{layer}.post_attention_layernorm.weight"), adapter)
        if parents is None:
            cache.num_tokens += len(token_ids)
        return self._norm(x, FINAL_NORM)  # [num_rows, hidden]

    def logits(self, hidden_states: F32) -> Logits:
        """Logits [num_rows, vocab_size] of states after the last norm."""
        head = EMBEDDING if self._architecture.tie_word_embeddings else HEAD
        return self._multiply(hidden_states, self._tensor(f"{head}.weight"))  # [num_rows, vocab_size]

    def _attention(self, index: int, x: F32, cache: KvCache, rows: RowPlaces, adapter: Adapter) -> F32:
        """Attention of the new rows over the cache and themselves; their keys and values go into the cache."""
        path = f"{layer_path(index)}.self_attn"
        queries = self._heads(f"{path}.q_proj", x, adapter)  # [num_rows, heads, head_dim]
        keys = self._heads(f"{path}.k_proj", x, adapter)  # [num_rows, kv_heads, head_dim]
        values = self._heads(f"{path}.v_proj", x, adapter)  # [num_rows, kv_heads, head_dim]
        if self._architecture.qk_norm:
            queries = self._norm(queries, f"{path}.q_norm.weight")  # [num_rows, heads, head_dim]
            keys = self._norm(keys, f"{path}.k_norm.weight")  # [num_rows, kv_heads, head_dim]
        queries = rotate(queries, rows.positions, self._frequencies)  # [num_rows, heads, head_dim]
        keys = rotate(keys, rows.positions, self._frequencies)  # [num_rows, kv_heads, head_dim]
        cache.keys[index, :, rows.slots] = keys
        cache.values[index, :, rows.slots] = values
        mixed = [
            attend(query, cache.keys[index][:, seen], cache.values[index][:, seen])
            for query, seen in zip(queries, rows.seen, strict=True)
        ]
        return self._linear(f"{path}.o_proj", np.stack(mixed), adapter)  # [num_rows, hidden]

    def _place(self, num_tokens: int, num_rows: int, parents: Sequence[int] | None) -> RowPlaces:
        """Where new rows stand and what they see: all before them, in a tree their ancestors, in a window the last."""
        slots = np.arange(num_tokens, num_tokens + num_rows)  # [num_rows]
        window = self._architecture.sliding_window or sys.maxsize
        if parents is None:
            return RowPlaces(slots, slots, [slice(max(0, slot + 1 - window), slot + 1) for slot in slots.tolist()])
        paths: list[list[int]] = []
        for row, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else range(num_tokens)), num_tokens + row])
        positions = np.array([len(path) - 1 for path in paths], np.int64)  # [num_rows]
        return RowPlaces(positions, slots, [np.array(path[-window:]) for path in paths])

    def _mlp(self, index: int, x: F32, adapter: Adapter) -> F32:
        path = f"{layer_path(index)}.mlp"
        gate = self._linear(f"{path}.gate_proj", x, adapter)  # [num_rows, intermediate]
        up = self._linear(f"{path}.up_proj", x, adapter)  # [num_rows, intermediate]
        return self._linear(f"{path}.down_proj", silu(gate) * up, adapter)  # [num_rows, hidden]

    def _heads(self, module: str, x: F32, adapter: Adapter) -> F32:
        return self._linear(module, x, adapter).reshape(len(x), -1, self._architecture.head_dim)

    def _linear(self, module: str, x: F32, adapter: Adapter) -> F32:
        """W x + bias + B (A x)."""
        y = self._multiply(x, self._tensor(f"{module}.weight"))  # [num_rows, out]
        if self._architecture.attention_bias and module.endswith(_BIASED):
            y = y + self._tensor(f"{module}.bias")  # [num_rows, out]
        if module in adapter:
            a, b = adapter[module]
            y = y + self._multiply(self._multiply(x, a), b)  # [num_rows, out]
        return y

    def _norm(self, x: F32, name: str) -> F32:
        return rms_norm(x, self._tensor(name), self._architecture.rms_norm_eps)


_BIASED = tuple(name.removesuffix(".bias") for name in ATTENTION_BIASES)


def multiply_rows(x: F32, weight: F32) -> F32:
    """Rows of x W^T, each a matrix-vector product of its own, so that no row's bits depend on the others."""
    return np.stack([weight @ row for row in x])  # [num_rows, out]


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Scale each vector of the last axis to mean square 1, then by the weight."""
    mean_square: F32 = np.mean(x * x, axis=-1, keepdims=True)  # [..., 1]
    normal: F32 = x / np.sqrt(mean_square + np.float32(eps))  # as x
    return normal * weight  # as x


def silu(x: F32) -> F32:
    """Swish, x * sigmoid(x), without overflow for large negative x."""
    decay = np.exp(-np.abs(x))  # as x
    gate: F32 = np.where(x >= 0, np.float32(1), decay) / (1 + decay)  # as x
    return x * gate  # as x


def softmax(x: F32) -> F32:
    """Over the last axis."""
    weights: F32 = np.exp(x - x.max(axis=-1, keepdims=True))  # as x
    total: F32 = weights.sum(axis=-1, keepdims=True)  # [..., 1]
    return weights / total  # as x


def attend(query: F32, keys: F32, values: F32) -> F32:
    """Attention of one row: query [heads, head_dim] over what it sees of keys and values [kv_heads, seen, head_dim].

    Several heads share keys and values (GQA): head h reads those of h // (heads / kv_heads).
    """
    grouped = query.reshape(len(keys), -1, query.shape[-1])  # [kv_heads, heads / kv_heads, head_dim]
    scores = grouped @ keys.transpose(0, 2, 1)  # [kv_heads, heads / kv_heads, seen]
    weights = softmax(scores / np.sqrt(np.float32(query.shape[-1])))  # [kv_heads, heads / kv_heads, seen]
    return (weights @ values).reshape(-1)  # [heads * head_dim]


def rotate(x: F32, positions: NDArray[np.integer], frequencies: NDArray[np.float64]) -> F32:
    """RoPE as in Hugging Face: dimension i pairs with i + head_dim / 2. x: [num_rows, heads, head_dim]."""
    angles = (positions[:, None] * frequencies)[:, None]  # [num_rows, 1, head_dim / 2]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)  # [num_rows, 1, head_dim / 2]
    left, right = np.split(x, 2, axis=-1)  # [num_rows, heads, head_dim / 2] each
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)  # [num_rows, heads, head_dim]


def rope_frequencies(architecture: Architecture) -> NDArray[np.float64]:
    """Angle per position of each pair of dimensions [head_dim / 2], scaled as the architecture says."""
    plain = _plain_frequencies(architecture.rope_theta, architecture.head_dim)  # [head_dim / 2]
    scaling = architecture.rope_scaling
    if scaling is None:
        return plain
    return plain / scaling.factor if scaling.rope_type == "linear" else _llama3_frequencies(plain, scaling)


def _plain_frequencies(theta: float, head_dim: int) -> NDArray[np.float64]:
    """theta^(-2i / head_dim), [head_dim / 2], in decimals and rounded once: the same bits on every device.

    numpy's powers are not: those of AVX-512 and of a plain libm differ in their last bit.
    """
    with localcontext(prec=40):
        base = Decimal(theta)
        return np.array([float(base ** (-Decimal(i) / head_dim)) for i in range(0, head_dim, 2)])


def _llama3_frequencies(plain: NDArray[np.float64], scaling: RopeScaling) -> NDArray[np.float64]:
    """Llama 3.1's rule: long waves are stretched by the factor, short ones kept, those between blended."""
    num_turns = scaling.original_max_position_embeddings * plain / (2 * np.pi)  # [head_dim / 2]
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((num_turns - scaling.low_freq_factor) / span, 0, 1)  # [head_dim / 2]
    return kept * plain + (1 - kept) * plain / scaling.factor  # [head_dim / 2]


class ReferenceBackend:
    """`Backend` over `Transformer`: dequantises the whole base at first use, so it is for tests and small models."""

    name = "reference"
    next_token = staticmethod(next_token)
    max_step_rows = 4096
    adapter_switch_s = 0.0  # an adapter is two more products, there is nothing to switch
    numerics = "reference-1"
    block_tokens = BLOCK_TOKENS
    cuts_anywhere = True
    shares_blocks = False

    def __init__(self, bundle: Path) -> None:
        self._weights = BaseWeights.open(bundle)
        self._transformer = Transformer(self._weights.architecture, functools.cache(self._weights.dense))
        self._adapters: dict[str, Adapter] = {}

    def load_adapter(self, digest: str, bundle: Path) -> int:
        """Read an adapter's matrices as float32; returns their bytes."""
        modules = AdapterWeights.open(bundle, self._weights.manifest).modules
        adapter = {module: lora.dense() for module, lora in modules.items()}
        self._adapters[digest] = adapter
        return sum(a.nbytes + b.nbytes for a, b in adapter.values())

    def unload_adapter(self, digest: str) -> None:
        """Forget the adapter."""
        del self._adapters[digest]

    def check_adapter(self, digest: str) -> None:
        """Nothing to check: the matrices are copies."""

    def memory(self) -> BackendMemory:
        """The dequantised weights; what numpy works in is not known."""
        num_values = sum(rows * inputs for rows, inputs in matrix_modules(self._weights.architecture).values())
        return BackendMemory(4 * num_values, are_weights_mapped=False, scratch_bytes=0, resident_scratch_bytes=0)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return blocks_of(self._weights.architecture).size_bytes

    def block_from(self, data: NDArray[np.uint8]) -> ArrayBlock:
        """A block with a copy of these bytes."""
        return blocks_of(self._weights.architecture).read(data)

    def state_bytes(self, max_tokens: int) -> int:
        """Bytes of the KV cache of a sequence."""
        return max_tokens * self._weights.architecture.kv_bytes_per_token(bytes_per_value=4)

    def new_state(self, max_tokens: int, prefix: Prefix = NO_PREFIX) -> State:
        """Room for a sequence of at most `max_tokens`."""
        return KvCache(self._weights.architecture, max_tokens, prefix)

    def step(self, segments: Sequence[Segment]) -> list[Logits]:
        """One segment after the other."""
        return [self._run(segment) for segment in segments]

    def _run(self, segment: Segment) -> Logits:
        assert isinstance(segment.state, KvCache)
        adapter = NO_ADAPTER if segment.adapter is None else self._adapters[segment.adapter]
        states = self._transformer.hidden_states(segment.token_ids, segment.state, adapter, segment.parents)
        if not segment.logit_rows:
            return np.zeros((0, self._weights.architecture.vocab_size), np.float32)
        return self._transformer.logits(states[list(segment.logit_rows)])  # [len(logit_rows), vocab_size]

    def close(self) -> None:
        """Drop the weights and the adapters."""
        del self._transformer, self._weights
        self._adapters.clear()
