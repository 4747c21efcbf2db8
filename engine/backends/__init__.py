"""What a back end must do. `open_backend` makes the configured one; the rest of the engine knows this protocol alone.

A back end owns arrays: weights, adapters, KV state. It knows nothing of requests, text, random generators or queues.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.config import EngineConfig
from engine.errors import UnsupportedInputError
from engine.sampling import SamplingParams

_log = logging.getLogger(__name__)
_BUILD_HINT = "install a C++ compiler and run ./dev setup"

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]


class Block(Protocol):
    """Keys and values of up to `Backend.block_tokens` tokens. Shared between states and caches, and never changed.

    Blocks that share memory are equal.
    """

    @property
    def data(self) -> NDArray[np.uint8]:
        """Its bytes, a view [`Backend.block_bytes`]: what `Backend.block_from` makes it of again."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of its pages that were written, as far as that is known, else all."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a state begins with: the first `num_tokens` of a sequence, in as many blocks as they take."""

    blocks: tuple[Block, ...] = ()
    num_tokens: int = 0


NO_PREFIX: Final = Prefix()


class State(Protocol):
    """The KV state of one sequence. Opaque but for its length; made by `Backend.new_state`."""

    @property
    def num_tokens(self) -> int:
        """How many tokens the state holds."""

    @property
    def size_bytes(self) -> int:
        """Bytes that the state keeps allocated."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that it has written, as far as that is known, else `size_bytes`."""

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens`; raises `ValueError` if it holds fewer."""

    def accept(self, rows: Sequence[int]) -> None:
        """Append rows of the tree that the last step ran, each the parent of the next; the others are dropped."""

    def block(self, index: int) -> Block:
        """A block that is full; raises `ValueError` for another."""

    def take(self) -> tuple[Block, ...]:
        """End the state; its blocks, the last one perhaps not full."""

    def fork(self, max_tokens: int) -> State:
        """Another state with the same tokens, and room for `max_tokens` in all."""

    def close(self) -> None:
        """Give the memory back. The state must not be used again."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What one sequence runs in a step.

    token_ids: [num_rows], appended to `state`. adapter: digest of a loaded adapter, None for the bare base.
    logit_rows: which of the rows want logits, ascending; often only the last, none for all but the last prompt chunk.
    parents: for a tree, the row that each row follows, -1 for the state's last token. A row sees its ancestors alone,
    and nothing is appended until `State.accept`. None is a chain.
    """

    state: State
    token_ids: Tokens
    adapter: str | None
    logit_rows: tuple[int, ...]
    parents: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class BackendMemory:
    """Bytes of a back end, but for states, blocks and adapters.

    weights: of the base. If they are pages of the mapped file, other processes may share them, and the system may drop
    and read them again. scratch: what steps work in, at most and so far.
    """

    weights_bytes: int
    are_weights_mapped: bool
    scratch_bytes: int
    resident_scratch_bytes: int


class Backend(Protocol):
    """Runs the forward pass of one base with any of its loaded adapters."""

    name: str
    max_step_rows: int
    """Rows that one step may hold over all its segments."""
    adapter_switch_s: float
    """Seconds spent so far, inside steps, on going over from one adapter to another."""
    numerics: str
    """Names what keys and values depend on beside weights and tokens: states of other numerics must not be mixed."""
    block_tokens: int
    """Tokens of a full block."""
    shares_blocks: bool
    """Whether states and blocks share memory; else each has a copy."""
    cuts_anywhere: bool
    """Whether logits have the same bits wherever a prompt is cut. If not, only full blocks may begin a state, and a
    prompt is cut at multiples of `block_tokens`."""

    def load_adapter(self, digest: str, bundle: Path) -> int:
        """Make an adapter usable by its digest; returns the bytes it takes. Callers never load one twice."""

    def unload_adapter(self, digest: str) -> None:
        """Give an adapter's memory back. No segment names it any more."""

    def check_adapter(self, digest: str) -> None:
        """Raise `BundleError` if the mapped file of an adapter was cut or written to since it was loaded; microseconds.

        Before a step names it: to read what is gone would end the process, and what is new is another adapter. A back
        end that holds copies has nothing to check.
        """

    def memory(self) -> BackendMemory:
        """What it takes, but for states, blocks and adapters."""

    @property
    def block_bytes(self) -> int:
        """Size of a block."""

    def block_from(self, data: NDArray[np.uint8]) -> Block:
        """A block from its bytes; raises `ValueError` if there are not `block_bytes` of them."""

    def state_bytes(self, max_tokens: int) -> int:
        """Bytes that `new_state(max_tokens)` would keep allocated."""

    def new_state(self, max_tokens: int, prefix: Prefix = NO_PREFIX) -> State:
        """Room for a sequence of at most `max_tokens`, that of the prefix included."""

    def step(self, segments: Sequence[Segment]) -> list[Logits]:
        """Append each segment's tokens to its state; logits [len(logit_rows), vocab_size] per segment, in order.

        They hold until the next step. Raises `UnsupportedInputError` for a tree where the back end runs chains alone.
        """

    def next_token(self, logits: Logits, params: SamplingParams, seen_token_ids: list[int], uniform: float) -> int:
        """The next token from one row of logits, as `engine.sampling.next_token` has it."""

    def close(self) -> None:
        """Give everything back."""


def open_backend(bundle: Path, config: EngineConfig) -> Backend:
    """The configured back end on this base bundle; "auto" takes the fastest that is installed, and logs which."""
    name = config.backend if config.backend != "auto" else _fastest()
    if name == "native":
        if not _is_installed("socle_native"):
            raise UnsupportedInputError(
                f"the native back end is not built: {_BUILD_HINT}, or configure another back end"
            )
        from engine.backends.native import NativeBackend  # noqa: PLC0415 - needs the compiled core

        return NativeBackend(bundle, config)
    if name == "onnx":
        from engine.backends.onnx import OnnxBackend  # noqa: PLC0415 - loads ONNX Runtime

        return OnnxBackend(bundle, config)
    from engine.backends.reference import ReferenceBackend  # noqa: PLC0415 - not needed beside the others

    return ReferenceBackend(bundle)


def _fastest() -> str:
    """Of the back ends that are installed here."""
    if _is_installed("socle_native"):
        name, why = "native", "the native core is built"
    elif _is_installed("onnxruntime"):
        name, why = "onnx", f"the native core is not built, {_BUILD_HINT} for more speed"
    else:
        name, why = "reference", "neither the native core nor ONNX Runtime is installed, answers will be slow"
    _log.info("backend_chosen backend=%s reason=%r", name, why)
    return name


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
