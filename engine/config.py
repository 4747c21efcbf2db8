"""What the owner of an engine decides when it opens one. Knows the limits; reads neither files nor environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import InvalidInputError
from engine.strict_json import DecodeError, from_document


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine; every value is checked when it is made.

    backend: "auto" takes the fastest that this machine can run.
    num_threads: 0 means as many as this process may run on.
    max_context_tokens: prompt and answer of one request together; the base's own limit holds too.
    prefill_chunk_tokens: rows of a prompt that run in one step; longer prompts take turns with running answers.
    max_running, max_waiting: requests that hold a KV state, and requests in the queue before them.
    kv_budget_bytes, adapter_budget_bytes: hard caps of what states and resident adapters keep allocated.
    onnx_accuracy_level: 4 computes 4-bit products in int8, 0 in float32 (slower, a little closer to the weights).
    scratch_dir: where the onnx back end writes its repacked weights while it opens; None is the system's place.
    verify_files: read every bundle whole and compare its SHA-256 before use.
    """

    backend: Literal["auto", "onnx", "reference"] = "auto"
    num_threads: int = 0
    max_context_tokens: int = 4096
    prefill_chunk_tokens: int = 128
    max_running: int = 8
    max_waiting: int = 64
    kv_budget_bytes: int = 1 << 30
    adapter_budget_bytes: int = 256 << 20
    onnx_accuracy_level: Literal[0, 4] = 4
    scratch_dir: str | None = None
    verify_files: bool = False

    def __post_init__(self) -> None:
        for name in ("max_context_tokens", "prefill_chunk_tokens", "max_running", "kv_budget_bytes"):
            self._require_at_least(name, 1)
        for name in ("num_threads", "max_waiting", "adapter_budget_bytes"):
            self._require_at_least(name, 0)
        if self.backend not in ("auto", "onnx", "reference"):
            raise InvalidInputError(f'backend is {self.backend!r}: use "auto", "onnx" or "reference"')
        if self.onnx_accuracy_level not in (0, 4):
            raise InvalidInputError(f"onnx_accuracy_level is {self.onnx_accuracy_level!r}: use 0 or 4")

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any]) -> EngineConfig:
        """A configuration from plain values; unknown keys and bad values raise `InvalidInputError` naming them."""
        try:
            return from_document(cls, dict(document))
        except DecodeError as error:
            raise InvalidInputError(f"bad engine configuration: {error}") from error

    def _require_at_least(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < minimum:
            raise InvalidInputError(f"{name} is {value!r}: give a whole number of at least {minimum}")
