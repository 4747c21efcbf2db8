"""Random models for the tests of the native back end, and its arithmetic on them in numpy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.artifact import RopeScaling
from engine.backends import Backend, Segment, State, Tokens
from engine.backends.reference import Adapter, KvCache, Transformer, multiply_rows
from engine.backends.weights import AdapterWeights, BaseWeights
from engine.layout import GROUP_INPUTS, TILE_ROWS
from tests.engine.instruction_sets import F32, KvType, padded, rounded
from tests.engine.random_bundles import FAMILIES, LLAMA, MISTRAL, QWEN2, QWEN3, make_adapter, make_base

# Sizes that fill neither tiles nor groups, and more query heads for a KV head than attention works off at once.
ODD = {"hidden_size": 40, "intermediate_size": 50, "vocab_size": 37}
SHAPES = FAMILIES | {
    "qwen3-odd": replace(QWEN3, **ODD, num_attention_heads=6, num_key_value_heads=3, head_dim=10),
    "qwen2-odd": replace(QWEN2, **ODD, num_attention_heads=5, num_key_value_heads=1, head_dim=24),
    "llama-odd": replace(
        LLAMA, **ODD, num_attention_heads=3, num_key_value_heads=3, head_dim=6, rope_scaling=RopeScaling("linear", 2.0)
    ),
    "mistral-odd": replace(MISTRAL, **ODD, num_attention_heads=20, num_key_value_heads=1, head_dim=6, sliding_window=5),
    "wide": replace(LLAMA, hidden_size=72, intermediate_size=290, num_attention_heads=6, head_dim=34, vocab_size=139),
}
MODELS = [f"{shape}-{weights}" for shape in SHAPES for weights in ("float32", "int4")]
ADAPTERS = {
    "all-3": {"rank": 3},
    "all-16": {"rank": 16},
    "some-8": {"rank": 8, "only": "1.self_attn"},
    "mixed": {"rank": {"q_proj": 33, "v_proj": 1, "o_proj": 8, "up_proj": 16, "down_proj": 5}},
}


class Models:
    """Bases in a folder, each with its adapters beside it; made when they are asked for first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def base(self, name: str) -> Path:
        """The base of a name in `MODELS`."""
        base = self._folder / name
        if not base.exists():
            shape, _, weights = name.rpartition("-")
            make_base(base, SHAPES[shape], weights)
            for seed, (adapter, options) in enumerate(ADAPTERS.items()):
                make_adapter(adapter_of(base, adapter), base, seed=seed, **options)
        return base


def adapter_of(base: Path, name: str) -> Path:
    return base.parent / f"{base.name}-{name}"


def with_adapters(backend: Backend, base: Path) -> Backend:
    """The back end on this base with its adapters under their names."""
    for name in ADAPTERS:
        backend.load_adapter(name, adapter_of(base, name))
    return backend


def random_tokens(vocab_size: int, count: int, seed: int = 0) -> Tokens:
    return np.random.default_rng(seed).integers(0, vocab_size, count).astype(np.int32)


def run(
    backend: Backend, state: State, token_ids, adapter: str | None = None, parents: tuple[int, ...] | None = None
) -> F32:
    """Logits of all of these rows, a copy."""
    token_ids = np.asarray(token_ids, np.int32)
    (logits,) = backend.step([Segment(state, token_ids, adapter, tuple(range(len(token_ids))), parents)])
    return logits.copy()


def logits_of(backend: Backend, token_ids, adapter: str | None = None) -> F32:
    """Logits of a whole sequence in one step."""
    return run(backend, backend.new_state(len(token_ids)), token_ids, adapter)


class NativeArithmetic:
    """The forward pass with the native core's roundings: int8 activations and adapters, fp16 or int8 in the cache."""

    def __init__(self, base: Path, kv_type: KvType = "fp16") -> None:
        self._weights = BaseWeights.open(base)
        self._base = base
        self._kv_type = kv_type
        self._is_float = self._weights.manifest.weights == "float32"
        self._transformer = Transformer(
            self._weights.architecture,
            functools.cache(self._weights.dense),
            multiply=multiply_rows if self._is_float else multiply_int8,
        )

    def logits(self, token_ids: Tokens, adapter: str | None = None) -> F32:
        """Of a whole sequence, with an adapter of `ADAPTERS`."""
        return self._transformer.logits(self.hidden_states(token_ids, adapter))

    def tree_logits(self, prompt: Tokens, token_ids: Tokens, parents: Sequence[int], adapter: str | None = None) -> F32:
        """Of the rows of a tree behind a prompt."""
        cache, modules = self._cache(len(prompt) + len(token_ids)), self._adapter(adapter) if adapter else {}
        self._transformer.hidden_states(prompt, cache, modules)
        return self._transformer.logits(self._transformer.hidden_states(token_ids, cache, modules, parents))

    def hidden_states(self, token_ids: Tokens, adapter: str | None = None) -> F32:
        """What the head reads."""
        modules = self._adapter(adapter) if adapter else {}
        return np.asarray(self._transformer.hidden_states(token_ids, self._cache(len(token_ids)), modules))

    def _cache(self, max_tokens: int) -> KvCache:
        cache = KvCache(self._weights.architecture, max_tokens)
        cache.keys, cache.values = (RoundingArray.like(array, self._kv_type) for array in (cache.keys, cache.values))
        return cache

    def _adapter(self, name: str) -> Adapter:
        weights = AdapterWeights.open(adapter_of(self._base, name), self._weights.manifest)
        dense = {module: lora.dense() for module, lora in weights.modules.items()}
        return dense if self._is_float else {module: (a, b.view(LowRankMatrix)) for module, (a, b) in dense.items()}


class RoundingArray(np.ndarray):
    """Rounds what is written to it as a KV cache does."""

    kv_type: KvType

    @classmethod
    def like(cls, array: F32, kv_type: KvType) -> RoundingArray:
        rounding = np.zeros_like(array).view(cls)
        rounding.kv_type = kv_type
        return rounding

    def __array_finalize__(self, other: object) -> None:
        self.kv_type = getattr(other, "kv_type", "fp16")

    def __setitem__(self, place, values) -> None:
        super().__setitem__(place, rounded(np.asarray(values), self.kv_type))


class LowRankMatrix(np.ndarray):
    """An adapter's B [rows, rank], whose inputs share one scale."""


def multiply_int8(x: F32, weight: F32) -> F32:
    """x W^T with each group of 128 inputs of x rounded to 127 steps of its largest, the sums in float64."""
    num_inputs = weight.shape[1]
    group_inputs = padded(num_inputs, TILE_ROWS) if isinstance(weight, LowRankMatrix) else GROUP_INPUTS
    groups = np.pad(x, ((0, 0), (0, -num_inputs % group_inputs))).reshape(len(x), -1, group_inputs)
    steps = rounded(groups, "int8").reshape(len(x), -1)[:, :num_inputs]  # [num_rows, inputs]
    return (steps.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.float32)  # [num_rows, out]
