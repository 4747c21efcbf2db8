"""What a back end must do. `open_backend` makes the configured one; the rest of the engine knows this protocol alone.

A back end owns arrays: weights, adapters, KV state. It knows nothing of requests, text, sampling or queues.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.config import EngineConfig

_log = logging.getLogger(__name__)

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]


class State(Protocol):
    """The KV state of one sequence. Opaque but for its length; made by `Backend.new_state`."""

    @property
    def num_tokens(self) -> int:
        """How many tokens the state holds."""

    @property
    def size_bytes(self) -> int:
        """Bytes that the state keeps allocated."""

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens`; raises `ValueError` if it holds fewer."""

    def close(self) -> None:
        """Give the memory back. The state must not be used again."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What one sequence runs in a step.

    token_ids: [num_rows], appended to `state`. adapter: digest of a loaded adapter, None for the bare base.
    logit_rows: which of the rows want logits, ascending; often only the last, none for all but the last prompt chunk.
    """

    state: State
    token_ids: Tokens
    adapter: str | None
    logit_rows: tuple[int, ...]


class Backend(Protocol):
    """Runs the forward pass of one base with any of its loaded adapters."""

    name: str
    max_step_rows: int
    """Rows that one step may hold over all its segments."""
    adapter_switch_s: float
    """Seconds spent so far, inside steps, on going over from one adapter to another."""

    def load_adapter(self, digest: str, bundle: Path) -> int:
        """Make an adapter usable by its digest; returns the bytes it takes. Callers never load one twice."""

    def unload_adapter(self, digest: str) -> None:
        """Give an adapter's memory back. No segment names it any more."""

    def state_bytes(self, max_tokens: int) -> int:
        """Bytes that `new_state(max_tokens)` would keep allocated."""

    def new_state(self, max_tokens: int) -> State:
        """Room for a sequence of at most `max_tokens`."""

    def step(self, segments: Sequence[Segment]) -> list[Logits]:
        """Append each segment's tokens to its state; logits [len(logit_rows), vocab_size] per segment, in order."""

    def close(self) -> None:
        """Give everything back."""


def open_backend(bundle: Path, config: EngineConfig) -> Backend:
    """The configured back end on this base bundle; "auto" takes onnx where ONNX Runtime is installed."""
    name = config.backend
    if name == "auto":
        has_onnxruntime = importlib.util.find_spec("onnxruntime") is not None
        name = "onnx" if has_onnxruntime else "reference"
        why = "ONNX Runtime is installed" if has_onnxruntime else "ONNX Runtime is not installed, answers will be slow"
        _log.info("backend_chosen backend=%s reason=%r", name, why)
    if name == "onnx":
        from engine.backends.onnx import OnnxBackend  # noqa: PLC0415 - loads ONNX Runtime

        return OnnxBackend(bundle, config)
    from engine.backends.reference import ReferenceBackend  # noqa: PLC0415 - not needed beside the other

    return ReferenceBackend(bundle)
