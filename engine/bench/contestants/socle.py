"""Our engine, on any of its back ends, with or without an adapter. Prompts run in chunks as the engine runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from engine.artifact import read_adapter
from engine.backends import Backend, Segment, State, open_backend
from engine.bench.contestants import Logits, Room, Tokens
from engine.bench.machine import num_usable_cores
from engine.bench.models import ModelFolder
from engine.config import EngineConfig

# The others read all 8 bits of the head for every token, so whoever compares must know.
_NATIVE_NOTE: Final = "the head in 4 bits for all tokens and in 8 for the likeliest"


class SocleContestant:
    """`Contestant` over a back end."""

    _backend: Backend

    def __init__(self, backend: str, *, with_adapter: bool) -> None:
        self._name = backend
        self._with_adapter = with_adapter
        self._adapter: str | None = None
        self._state: State | None = None
        self._num_prepared = 0
        self._chunk_rows = 0

    def export(self, folder: ModelFolder) -> None:
        """The bundle is what it runs."""

    def open(self, folder: ModelFolder, num_threads: int) -> Mapping[str, Any]:
        """Open the base, and load the adapter if there is to be one."""
        config = EngineConfig.from_mapping({"backend": self._name, "num_threads": num_threads or num_usable_cores()})
        self._backend = open_backend(folder.base, config)
        self._chunk_rows = min(config.prefill_chunk_tokens, self._backend.max_step_rows)
        if self._with_adapter:
            _, self._adapter = read_adapter(folder.adapter)
            self._backend.load_adapter(self._adapter, folder.adapter)
        facts = {"version": _version(self._backend), "num_threads": config.num_threads}
        return {**facts, "note": _NATIVE_NOTE} if self._backend.name == "native" else facts

    def prepare(self, tokens: Tokens, room: Room) -> None:
        """Drop the state, fill another."""
        if self._state is not None:
            self._state.close()
        self._state = self._backend.new_state(room.capacity)
        self._num_prepared = len(tokens)
        self._run(tokens, ())

    def step(self, tokens: Tokens, *, all_logits: bool) -> Logits:
        """In chunks if there are many."""
        return self._run(tokens, tuple(range(len(tokens))) if all_logits else (len(tokens) - 1,))

    def rewind(self) -> None:
        """Shorten the state."""
        assert self._state is not None
        self._state.rewind(self._num_prepared)

    def _run(self, tokens: Tokens, logit_rows: tuple[int, ...]) -> Logits:
        assert self._state is not None
        parts: list[Logits] = []
        for start in range(0, len(tokens), self._chunk_rows):
            chunk = tokens[start : start + self._chunk_rows]
            wanted = tuple(row - start for row in logit_rows if start <= row < start + len(chunk))
            (logits,) = self._backend.step([Segment(self._state, chunk, self._adapter, wanted)])
            parts.append(logits if len(chunk) == len(tokens) else logits.copy())  # they hold until the next step
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _version(backend: Backend) -> str:
    if backend.name == "onnx":
        import onnxruntime  # noqa: PLC0415 - only where it is the back end

        return f"ONNX Runtime {onnxruntime.__version__}"
    kernels = getattr(backend, "instruction_set", None)
    return f"{backend.name} back end, {kernels} kernels" if kernels else f"{backend.name} back end"
