"""The fast back end: the C++ core `socle_native` on a base bundle, whose weights it reads where they are mapped.

A row's logits have the same bits for any number of rows in a step, any chunking of the prompt, any number of threads
and any instruction set. Knows the core's interface; the arithmetic is described in `engine/native`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import socle_native
from numpy.typing import NDArray

from engine.artifact import Architecture
from engine.backends import NO_PREFIX, BackendMemory, Logits, Prefix, Segment
from engine.backends.reference import rope_frequencies
from engine.backends.weights import AdapterWeights, BaseWeights, Matrix
from engine.config import EngineConfig
from engine.errors import CapacityError, NumericalError, UnsupportedInputError
from engine.parameters import ATTENTION_BIASES, FINAL_NORM, LAYER_LINEARS, layer_path
from engine.sampling import NOT_FINITE, SamplingParams

NUMERICS = "native-1"  # changes with the bits of logits, and with what lies where in a block
MAX_STEP_ROWS = 256
MAX_RANK = 256


@dataclass(frozen=True, slots=True)
class NativeBlock:
    """A block of the core, for which there is one Python object however often it is asked for."""

    core: socle_native.KvBlock

    @property
    def data(self) -> NDArray[np.uint8]:
        """Its bytes, as they lie in the core."""
        return np.asarray(self.core.bytes)

    @property
    def resident_bytes(self) -> int:
        """Bytes of its pages that were written."""
        return int(self.core.resident_bytes)


class NativeState:
    """The KV cache of one sequence."""

    def __init__(self, core: socle_native.KvState) -> None:
        self.core: socle_native.KvState | None = core

    @property
    def num_tokens(self) -> int:
        """How many tokens the state holds."""
        return 0 if self.core is None else self.core.num_tokens

    @property
    def size_bytes(self) -> int:
        """Bytes of its blocks."""
        return 0 if self.core is None else self.core.size_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of its blocks' pages that were written."""
        return 0 if self.core is None else self.core.resident_bytes

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens`."""
        self._open_core().rewind(num_tokens)

    def accept(self, rows: Sequence[int]) -> None:
        """Append a branch of the tree that the last step ran."""
        self._open_core().accept(list(rows))

    def block(self, index: int) -> NativeBlock:
        """A full block, shared with this state."""
        return NativeBlock(self._open_core().block(index))

    def take(self) -> tuple[NativeBlock, ...]:
        """End the state; its blocks."""
        blocks = tuple(map(NativeBlock, self._open_core().take()))
        self.core = None
        return blocks

    def fork(self, max_tokens: int) -> NativeState:
        """Another state with the same tokens: full blocks are shared, what is used of the last one is copied."""
        return NativeState(self._open_core().fork(max_tokens))

    def close(self) -> None:
        """Give the blocks back."""
        self.core = None

    def _open_core(self) -> socle_native.KvState:
        assert self.core is not None
        return self.core


@dataclass(frozen=True, slots=True)
class NativeAdapter:
    """An adapter in the core, and the mapped matrices that it reads."""

    core: socle_native.Adapter
    weights: AdapterWeights


class NativeBackend:
    """`Backend` over the C++ core."""

    name = "native"
    max_step_rows = MAX_STEP_ROWS
    adapter_switch_s = 0.0  # an adapter is a pointer in a segment, there is nothing to switch
    cuts_anywhere = True
    shares_blocks = True

    def __init__(self, bundle: Path, config: EngineConfig, core: Any = socle_native) -> None:
        """Open a base. `core` has the compiled module's interface: tests pass one that runs on another processor."""
        _check(config, core.instruction_sets())
        weights = BaseWeights.open(bundle)
        _check_shape(weights.architecture)
        self._core = core
        self._weights = weights
        self.numerics = f"{NUMERICS} {config.kv_type}"
        self.block_tokens = int(core.BLOCK_TOKENS)
        self._adapters: dict[str, NativeAdapter] = {}
        self._most_rows = min(config.prefill_chunk_tokens, MAX_STEP_ROWS), min(config.max_running, MAX_STEP_ROWS)
        try:
            self._model = core.Model(
                weights=core_weights(weights, core.Weights(weights.architecture.num_hidden_layers)),
                architecture=_core_architecture(weights.architecture),
                rope_frequencies=rope_frequencies(weights.architecture).tolist(),
                instruction_set=config.instruction_set,
                num_threads=config.num_threads or len(config.cpus) or len(os.sched_getaffinity(0)),
                cpus=list(config.cpus),
                duty_cycle=config.duty_cycle,
                max_context_tokens=min(config.max_context_tokens, weights.architecture.max_position_embeddings),
                max_step_rows=MAX_STEP_ROWS,
                max_rank=MAX_RANK,
                is_kv_int8=config.kv_type == "int8",
            )
        except RuntimeError as error:
            raise CapacityError(f"the engine could not start its threads: {error}") from error

    @property
    def instruction_set(self) -> str:
        """The kernels that run: "avx512vnni", "avx2", "neon" or "portable"."""
        return str(self._model.instruction_set)

    def load_adapter(self, digest: str, bundle: Path) -> int:
        """Map an adapter's matrices, which the core reads where they lie; returns their bytes."""
        weights = AdapterWeights.open(bundle, self._weights.manifest)
        if weights.rank > MAX_RANK:
            raise UnsupportedInputError(f"the adapter has rank {weights.rank}, the engine runs up to {MAX_RANK}")
        core = self._core.Adapter(self._weights.architecture.num_hidden_layers)
        self._adapters[digest] = NativeAdapter(core_adapter(weights, self._weights.architecture, core), weights)
        return weights.size_bytes

    def unload_adapter(self, digest: str) -> None:
        """Forget the adapter, and with it the mapping."""
        del self._adapters[digest]

    def check_adapter(self, digest: str) -> None:
        """Raise `BundleError` if the adapter's mapped file was cut or written to since it was loaded."""
        self._adapters[digest].weights.check_unchanged()

    def memory(self) -> BackendMemory:
        """The mapped weights, and the core's buffers."""
        return BackendMemory(
            weights_bytes=self._weights.size_bytes,
            are_weights_mapped=True,
            scratch_bytes=int(self._model.scratch_bytes(*self._most_rows)),
            resident_scratch_bytes=int(self._model.resident_scratch_bytes),
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of 64 tokens."""
        return self.state_bytes(1)

    def block_from(self, data: NDArray[np.uint8]) -> NativeBlock:
        """A block with a copy of these bytes."""
        return NativeBlock(self._model.block_from(data))

    def state_bytes(self, max_tokens: int) -> int:
        """Bytes of the blocks for so many tokens."""
        return int(self._model.state_bytes(max_tokens))

    def new_state(self, max_tokens: int, prefix: Prefix = NO_PREFIX) -> NativeState:
        """Room for a sequence of at most `max_tokens`; memory is taken as tokens come."""
        blocks = [block.core for block in prefix.blocks if isinstance(block, NativeBlock)]
        return NativeState(self._model.new_state(max_tokens, blocks, prefix.num_tokens))

    def step(self, segments: Sequence[Segment]) -> list[Logits]:
        """All rows in one pass over the weights. The logits are views that the next step overwrites.

        Raises `BundleError` if the mapped weights have been cut meanwhile.
        """
        self._weights.check_size()
        logits = self._model.step([self._core_segment(segment) for segment in segments])  # [logit rows, vocab_size]
        ends = np.cumsum([len(segment.logit_rows) for segment in segments])
        return np.split(logits, ends[:-1]) if segments else []

    def next_token(self, logits: Logits, params: SamplingParams, seen_token_ids: list[int], uniform: float) -> int:
        """The next token, by the core: the same as that of `engine.sampling`, in a tenth of the time."""
        seen = seen_token_ids if params.repetition_penalty != 1.0 else []
        token = self._core.next_token(
            logits,
            np.array(seen, np.int32),
            repetition_penalty=params.repetition_penalty,
            temperature=params.temperature,
            top_k=min(params.top_k, len(logits)),
            top_p=params.top_p,
            min_p=params.min_p,
            uniform=uniform,
            instruction_set=self.instruction_set,
        )
        if token < 0:
            raise NumericalError(NOT_FINITE)
        return int(token)

    def close(self) -> None:
        """Drop weights, adapters and threads."""
        self._adapters.clear()
        del self._model, self._weights

    def _core_segment(self, segment: Segment) -> tuple[object, ...]:
        assert isinstance(segment.state, NativeState)
        parents = None if segment.parents is None else np.array(segment.parents, np.int32)
        adapter = None if segment.adapter is None else self._adapters[segment.adapter].core
        token_ids = np.ascontiguousarray(segment.token_ids, np.int32)
        return segment.state.core, token_ids, parents, adapter, np.array(segment.logit_rows, np.int32)


def _check(config: EngineConfig, instruction_sets: Sequence[str]) -> None:
    if config.instruction_set not in ("auto", *instruction_sets):
        raise UnsupportedInputError(
            f"instruction_set is {config.instruction_set}: this processor runs auto, {', '.join(instruction_sets)}"
        )
    num_cpus = os.sysconf("SC_NPROCESSORS_CONF")  # those that sleep now, too
    if any(cpu >= num_cpus for cpu in config.cpus):
        raise UnsupportedInputError(f"cpus is {config.cpus}: this machine has CPUs 0 to {num_cpus - 1}")


def _check_shape(architecture: Architecture) -> None:
    heads, kv_heads = architecture.num_attention_heads, architecture.num_key_value_heads
    if heads % kv_heads or architecture.head_dim % 2:
        raise UnsupportedInputError(
            f"the base has {heads} heads of {architecture.head_dim} dimensions on {kv_heads} of keys and values: "
            "the engine needs a multiple, and pairs of dimensions to rotate"
        )


def core_weights(weights: BaseWeights, core: socle_native.Weights) -> socle_native.Weights:
    """The mapped weights as the core takes them, handed to its empty `core`, which is returned."""
    core.set_embedding(*_planes(weights.embedding))
    core.set_head(*_planes(weights.head))
    core.set_final_norm(weights.vector(FINAL_NORM))
    for index in range(weights.architecture.num_hidden_layers):
        layer = layer_path(index)
        for number, module in enumerate(LAYER_LINEARS):
            core.set_linear(index, number, *_stored(weights.matrix(f"{layer}.{module}")))
        norms = [weights.vector(f"{layer}.{name}.weight") for name in ("input_layernorm", "post_attention_layernorm")]
        core.set_norms(index, *norms, *_head_norms(weights, layer))
        if weights.architecture.attention_bias:
            core.set_biases(index, *(weights.vector(f"{layer}.{name}") for name in ATTENTION_BIASES))
    return core


def core_adapter(
    weights: AdapterWeights, architecture: Architecture, core: socle_native.Adapter
) -> socle_native.Adapter:
    """The mapped matrices as the core takes them, handed to its empty `core`, which is returned."""
    for index in range(architecture.num_hidden_layers):
        for number, name in enumerate(LAYER_LINEARS):
            if lora := weights.modules.get(f"{layer_path(index)}.{name}"):
                a, b = lora.a.view(np.uint8), lora.b.view(np.uint8)
                core.set(index, number, a, b, lora.rank, lora.rows, lora.inputs, lora.bits)
    return core


def _head_norms(weights: BaseWeights, layer: str) -> list[NDArray[np.float32] | None]:
    if not weights.architecture.qk_norm:
        return [None, None]
    return [weights.vector(f"{layer}.self_attn.{name}.weight") for name in ("q_norm", "k_norm")]


def _planes(matrix: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, int, int, int]:
    """A matrix in two planes of 4 bits, or as it is with None for the second."""
    if matrix.stored.ndim == 4:
        return matrix.stored[0], matrix.stored[1], matrix.rows, matrix.inputs, 4
    stored, rows, inputs, bits = _stored(matrix)
    return stored, None, rows, inputs, bits


def _stored(matrix: Matrix) -> tuple[NDArray[np.uint8], int, int, int]:
    return matrix.stored.view(np.uint8), matrix.rows, matrix.inputs, matrix.bits


def _core_architecture(architecture: Architecture) -> dict[str, object]:
    document = asdict(architecture)
    document["sliding_window"] = architecture.sliding_window or 0
    return document
