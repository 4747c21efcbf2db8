"""Who takes part. A contestant runs in a process of its own; `REGISTRY` says by which name, and what it needs.

Importing this module loads none of the engines.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.bench.models import ModelFolder

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]

INSTALL_HINT: Final = "run ./dev bench engine --peers, which installs it beside .venv"


@dataclass(frozen=True, slots=True)
class Room:
    """What a state must hold: `capacity` tokens, and logits of `max_logit_rows` rows in one step."""

    capacity: int
    max_logit_rows: int


class Contestant(Protocol):
    """An engine with one model and one sequence."""

    def export(self, folder: ModelFolder) -> None:
        """Write the model as this engine wants it, from the base bundle, if that is not done yet."""

    def open(self, folder: ModelFolder, num_threads: int) -> Mapping[str, Any]:
        """Load the model; 0 threads means the number that is best. Says what people should know: version, threads.

        Its time counts as the time to open, unless the answer has an `open_s` of its own.
        """

    def prepare(self, tokens: Tokens, room: Room) -> None:
        """A fresh sequence that holds these tokens; the one before goes."""

    def step(self, tokens: Tokens, *, all_logits: bool) -> Logits:
        """Append tokens; logits [len(tokens) or 1, vocab_size], of all rows or of the last. This is what is timed."""

    def rewind(self) -> None:
        """Back to the tokens that `prepare` was given. Not timed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant by name.

    is_peer: others are compared with the best of the peers. is_native: runs our own core. has_adapter: an adapter is
    applied, so its logits are others. make: loads the engine. missing: why it cannot take part, None if it can.
    """

    is_peer: bool
    make: Callable[[], Contestant]
    missing: Callable[[], str | None]
    is_native: bool = False
    has_adapter: bool = False


def _socle(backend: str, *, with_adapter: bool = False) -> Callable[[], Contestant]:
    def make() -> Contestant:
        from engine.bench.contestants.socle import SocleContestant  # noqa: PLC0415 - loads the back end

        return SocleContestant(backend, with_adapter=with_adapter)

    return make


def _llama_cpp() -> Contestant:
    from engine.bench.contestants.llama_cpp import LlamaCppContestant  # noqa: PLC0415 - loads llama.cpp

    return LlamaCppContestant()


def _openvino() -> Contestant:
    from engine.bench.contestants.openvino import OpenvinoContestant  # noqa: PLC0415 - loads OpenVINO

    return OpenvinoContestant()


def _packages_missing(*modules: str) -> str | None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{', '.join(missing)} not installed: {INSTALL_HINT}" if missing else None


def _native_missing() -> str | None:
    built = importlib.util.find_spec("socle_native") is not None
    return None if built else "its native core is not built: run ./dev setup where a C++ compiler is"


def _onnx_missing() -> str | None:
    return _packages_missing("onnxruntime", "onnx")


REGISTRY: Final[Mapping[str, Entry]] = {
    "socle": Entry(is_peer=False, make=_socle("native"), missing=_native_missing, is_native=True),
    "socle+lora": Entry(
        is_peer=False,
        make=_socle("native", with_adapter=True),
        missing=_native_missing,
        is_native=True,
        has_adapter=True,
    ),
    "onnxruntime": Entry(is_peer=True, make=_socle("onnx"), missing=_onnx_missing),
    "onnxruntime+lora": Entry(
        is_peer=False,
        make=_socle("onnx", with_adapter=True),
        missing=_onnx_missing,
        has_adapter=True,
    ),
    "llama.cpp": Entry(is_peer=True, make=_llama_cpp, missing=lambda: _packages_missing("llama_cpp", "gguf")),
    "openvino": Entry(is_peer=True, make=_openvino, missing=lambda: _packages_missing("openvino")),
}
"""In the order of the table. ONNX Runtime runs our own graph, with and without an adapter of rank 16."""
