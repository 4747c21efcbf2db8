"""The portable back end: ONNX Runtime on a graph that is built from the bundle when it is opened.

Each segment runs by itself, so a sequence's results never depend on its neighbours. KV buffers belong to a state, are
bound once to its own set of inputs and extended in place. An adapter is a set of bound inputs: going over to another
binds other arrays, nothing is copied or rebuilt.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.artifact import Architecture
from engine.backends import NO_PREFIX, BackendMemory, Logits, Prefix, Segment
from engine.backends.array_blocks import ArrayBlock, Blocks
from engine.backends.onnx_graph import build_graph, kv_name
from engine.backends.onnx_weights import ExternalConstants
from engine.backends.weights import AdapterWeights, BaseWeights
from engine.config import EngineConfig
from engine.errors import CapacityError, UnsupportedInputError
from engine.parameters import linear_modules
from engine.sampling import next_token

_CHAINS_ALONE = "the ONNX back end runs chains alone: use the native back end for trees"

F32 = NDArray[np.float32]
Adapter = Mapping[str, F32]
"""Arrays by input name: A and B of every module, of rank 0 where the adapter leaves the base alone."""


class OnnxState:
    """KV buffers of one sequence, float32 [1, kv_heads, max_tokens, head_dim], and the inputs they are bound to."""

    def __init__(
        self, session: ort.InferenceSession, architecture: Architecture, blocks: Blocks, max_tokens: int, prefix: Prefix
    ) -> None:
        self.num_tokens = 0
        self.max_tokens = max_tokens
        self._session, self._architecture, self._blocks = session, architecture, blocks
        self.size_bytes = architecture.kv_bytes_per_token(4) * max_tokens
        self.adapter: Adapter | None = None
        self.binding = session.io_binding()
        # The runtime reads these arrays at each step, so they are changed in place and live as long as the binding.
        self._last_position, self._num_tokens = np.zeros(1, np.int32), np.zeros((), np.int32)
        self.binding.bind_cpu_input("last_position", self._last_position)
        self.binding.bind_cpu_input("num_tokens", self._num_tokens)
        shape = (1, architecture.num_key_value_heads, max_tokens, architecture.head_dim)
        self._buffers: list[F32] = []
        for layer in range(architecture.num_hidden_layers):
            for part in ("key", "value"):
                self._bind_buffer(kv_name(layer, part), np.zeros(shape, np.float32))  # pages are taken when written
        blocks.paste(self._parts, prefix)
        self.extend(prefix.num_tokens)

    @property
    def resident_bytes(self) -> int:
        """As if all pages were written."""
        return self.size_bytes

    def extend(self, num_tokens: int) -> None:
        """Announce tokens that the next run appends."""
        self.num_tokens += num_tokens
        self._last_position[0] = self.num_tokens - 1
        self._num_tokens[...] = self.num_tokens

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens`."""
        if not 0 <= num_tokens <= self.num_tokens:
            raise ValueError(f"cannot rewind to {num_tokens} tokens, the state holds {self.num_tokens}")
        self.num_tokens = num_tokens

    def accept(self, rows: Sequence[int]) -> None:
        """Refused, as the trees are that rows could be accepted from; none at all is nothing to do."""
        if rows:
            raise UnsupportedInputError(_CHAINS_ALONE)

    def block(self, index: int) -> ArrayBlock:
        """A copy of a full block."""
        return self._blocks.full(self._parts, index, self.num_tokens)

    def take(self) -> tuple[ArrayBlock, ...]:
        """End the state; copies of its blocks."""
        blocks = self._blocks.all(self._parts, self.num_tokens)
        self.close()
        return blocks

    def fork(self, max_tokens: int) -> OnnxState:
        """A copy."""
        prefix = Prefix(self._blocks.all(self._parts, self.num_tokens), self.num_tokens)
        return OnnxState(self._session, self._architecture, self._blocks, max_tokens, prefix)

    @property
    def _parts(self) -> list[F32]:
        return [buffer[0] for buffer in self._buffers]  # [kv_heads, max_tokens, head_dim] each

    def close(self) -> None:
        """Drop the buffers."""
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        self._buffers.clear()
        self.adapter = None
        self.num_tokens = self.max_tokens = 0

    def _bind_buffer(self, name: str, buffer: F32) -> None:
        value = ort.OrtValue.ortvalue_from_numpy(buffer)
        self.binding.bind_ortvalue_input(name, value)
        self.binding.bind_ortvalue_output(f"{name}.new", value)
        self._buffers.append(buffer)


class OnnxBackend:
    """`Backend` over one ONNX Runtime session."""

    name = "onnx"
    cuts_anywhere = False
    shares_blocks = False
    next_token = staticmethod(next_token)

    def __init__(self, bundle: Path, config: EngineConfig) -> None:
        self.max_step_rows = 512
        self.adapter_switch_s = 0.0
        self._session = open_session(bundle, config)
        weights = BaseWeights.open(bundle)  # mapped afresh, as pages that were read count as ours while mapped
        self._manifest = weights.manifest
        self._architecture = weights.architecture
        self._embedding = weights.embedding
        self._weights_bytes = weights.size_bytes
        self._base = _adapter(self._architecture, {})
        self.block_tokens = min(config.prefill_chunk_tokens, self.max_step_rows)
        self.numerics = f"onnx-1 {ort.__version__} level {config.onnx_accuracy_level} {_num_threads(config)} threads"
        self._blocks = Blocks(
            num_parts=2 * self._architecture.num_hidden_layers,
            kv_heads=self._architecture.num_key_value_heads,
            block_tokens=self.block_tokens,
            head_dim=self._architecture.head_dim,
        )
        self._adapters: dict[str, Adapter] = {}

    def load_adapter(self, digest: str, bundle: Path) -> int:
        """Read an adapter's matrices as float32, which is what the operators take; returns their bytes."""
        arrays: dict[str, F32] = {}
        for module, lora in AdapterWeights.open(bundle, self._manifest).modules.items():
            arrays[f"{module}.lora_A"], arrays[f"{module}.lora_B"] = lora.dense()
        self._adapters[digest] = _adapter(self._architecture, arrays)
        return sum(array.nbytes for array in arrays.values())

    def unload_adapter(self, digest: str) -> None:
        """Forget the adapter."""
        del self._adapters[digest]

    def check_adapter(self, digest: str) -> None:
        """Nothing to check: the matrices are copies."""

    def memory(self) -> BackendMemory:
        """The weights as ONNX Runtime keeps them, about as large as in the bundle; its arena is not known."""
        return BackendMemory(self._weights_bytes, are_weights_mapped=False, scratch_bytes=0, resident_scratch_bytes=0)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block: as many tokens as run in a step."""
        return self._blocks.size_bytes

    def block_from(self, data: NDArray[np.uint8]) -> ArrayBlock:
        """A block with a copy of these bytes."""
        return self._blocks.read(data)

    def state_bytes(self, max_tokens: int) -> int:
        """Bytes of the buffers for so many tokens."""
        return self._architecture.kv_bytes_per_token(4) * max_tokens

    def new_state(self, max_tokens: int, prefix: Prefix = NO_PREFIX) -> OnnxState:
        """Room for a sequence of at most `max_tokens`."""
        return OnnxState(self._session, self._architecture, self._blocks, max_tokens, prefix)

    def step(self, segments: Sequence[Segment]) -> list[Logits]:
        """One segment after the other."""
        return [self._run(segment) for segment in segments]

    def close(self) -> None:
        """Drop the session and the adapters."""
        self._adapters.clear()
        del self._session, self._embedding

    def _run(self, segment: Segment) -> Logits:
        state, num_rows = segment.state, len(segment.token_ids)
        assert isinstance(state, OnnxState)
        if segment.parents is not None:
            raise UnsupportedInputError(_CHAINS_ALONE)
        if state.num_tokens + num_rows > state.max_tokens:
            raise ValueError(f"no room for {num_rows} tokens: {state.num_tokens} of {state.max_tokens} are taken")
        self._bind_adapter(state, self._base if segment.adapter is None else self._adapters[segment.adapter])
        hidden = np.ascontiguousarray(self._embedding.take_rows(segment.token_ids))  # [num_rows, hidden]
        logit_rows = np.array(segment.logit_rows, np.int64)  # [n]
        logits = np.empty((len(logit_rows), self._architecture.vocab_size), np.float32)  # [n, vocab_size]
        state.binding.bind_cpu_input("hidden", hidden)
        state.binding.bind_cpu_input("logit_rows", logit_rows)
        state.binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        state.extend(num_rows)
        self._session.run_with_iobinding(state.binding)
        return logits

    def _bind_adapter(self, state: OnnxState, adapter: Adapter) -> None:
        if state.adapter is adapter:
            return
        started_at = time.perf_counter()
        for name, array in adapter.items():
            state.binding.bind_cpu_input(name, array)
        state.adapter = adapter
        self.adapter_switch_s += time.perf_counter() - started_at


def open_session(bundle: Path, config: EngineConfig) -> ort.InferenceSession:
    """Build the graph and hand it to ONNX Runtime; nothing stays on disk."""
    try:
        with tempfile.TemporaryDirectory(prefix="socle-onnx-", dir=config.scratch_dir) as directory:
            model = _build_model(bundle, Path(directory), config)
            options = _session_options(config, directory)
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise CapacityError(
            f"cannot write the repacked weights of {bundle}: {error}; set scratch_dir to a directory with more room"
        ) from error


def _build_model(bundle: Path, directory: Path, config: EngineConfig) -> bytes:
    """The serialised graph; its constants go to a file in `directory`. The bundle's mapping ends here."""
    weights = BaseWeights.open(bundle)
    num_positions = min(config.max_context_tokens, weights.architecture.max_position_embeddings)
    with ExternalConstants(weights, directory, accuracy_level=config.onnx_accuracy_level) as constants:
        model = build_graph(weights.architecture, constants, max_context_tokens=num_positions)
    return bytes(model.SerializeToString())


def _session_options(config: EngineConfig, directory: str) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = _num_threads(config)
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # shapes change from step to step
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", directory)
    return options


def _num_threads(config: EngineConfig) -> int:
    return config.num_threads or len(os.sched_getaffinity(0))


def _adapter(architecture: Architecture, arrays: Mapping[str, F32]) -> Adapter:
    """All inputs of an adapter; those of modules that it does not change are empty and need no memory."""
    adapter: dict[str, F32] = {}
    for module, (outputs, inputs) in linear_modules(architecture).items():
        for name, shape in ((f"{module}.lora_A", (0, inputs)), (f"{module}.lora_B", (outputs, 0))):
            adapter[name] = arrays[name] if name in arrays else np.empty(shape, np.float32)
    return adapter
