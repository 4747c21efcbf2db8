"""What the owner of an engine decides when it opens one. Knows the limits; reads neither files nor environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import InvalidInputError
from engine.strict_json import DecodeError, from_document

_MAX_CPUS = 1024  # as the kernel's cpu_set_t


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine; every value is checked when it is made.

    backend: "auto" takes the fastest that this machine can run.
    num_threads: 0 means as many as this process may run on.
    cpus: where the native threads run, one number each; empty lets the system choose.
    duty_cycle: share of the time that each native thread may work, for devices that must stay cool or responsive. The
        thread that calls `step` is one of them, with what it does between two steps (up to 0.1 s of processor time).
    instruction_set: kernels of the native back end; "auto" takes the fastest that this processor has.
    kv_type: how the native back end keeps keys and values; "int8" halves their memory and rounds more.
    max_context_tokens: prompt and answer of one request together; the base's own limit holds too.
    prefill_chunk_tokens: rows of a prompt that run in one step; longer prompts take turns with running answers.
    max_bucket_s: how long such a step should take at most, so that what is urgent need not wait longer; fewer rows run
        in one where the back end's answers do not depend on it.
    max_running, max_waiting: requests that hold a KV state, and requests in the queue before them.
    mixes_adapters: whether requests with different adapters may run in one step.
    policy: "deadlines" serves by priority and deadline; "first_come" in order of arrival, to compare with.
    ageing_s: for each so many seconds without service a request rises by one priority, so that nobody starves.
    request_timeout_s: the longest that a request may take, if its business says nothing else.
    memory_budget_bytes: hard cap of all that the engine's process takes, weights included; None leaves the caps below.
    kv_budget_bytes, adapter_budget_bytes, prefix_cache_bytes: hard caps of states, of adapters (allocated or
        mapped) and of cached prompts.
    prefix_cache_dir: where cached prompts lie that were of use, to survive restarts; None keeps them in memory alone.
    prefix_cache_disk_bytes, prefix_cache_max_age_s: how much may lie there, and for how long unused.
    onnx_accuracy_level: 4 computes 4-bit products in int8, 0 in float32 (slower, a little closer to the weights).
    scratch_dir: where the onnx back end writes its repacked weights while it opens; None is the system's place.
    verify_files: read every bundle whole and compare its SHA-256 before use.
    """

    backend: Literal["auto", "native", "onnx", "reference"] = "auto"
    num_threads: int = 0
    cpus: tuple[int, ...] = ()
    duty_cycle: float = 1.0
    instruction_set: Literal["auto", "avx512vnni", "avx2", "neon", "portable"] = "auto"
    kv_type: Literal["fp16", "int8"] = "fp16"
    max_context_tokens: int = 4096
    prefill_chunk_tokens: int = 128
    max_bucket_s: float = 0.25
    max_running: int = 16
    max_waiting: int = 64
    mixes_adapters: bool = True
    policy: Literal["deadlines", "first_come"] = "deadlines"
    ageing_s: float = 2.0
    request_timeout_s: float = 600.0
    memory_budget_bytes: int | None = None
    kv_budget_bytes: int = 1 << 30
    adapter_budget_bytes: int = 256 << 20
    prefix_cache_bytes: int = 64 << 20
    prefix_cache_dir: str | None = None
    prefix_cache_disk_bytes: int = 256 << 20
    prefix_cache_max_age_s: float = 7 * 86400.0
    onnx_accuracy_level: Literal[0, 4] = 4
    scratch_dir: str | None = None
    verify_files: bool = False

    def __post_init__(self) -> None:
        for name in ("max_context_tokens", "prefill_chunk_tokens", "max_running", "kv_budget_bytes"):
            self._require_at_least(name, 1)
        for name in (
            "num_threads",
            "max_waiting",
            "adapter_budget_bytes",
            "prefix_cache_bytes",
            "prefix_cache_disk_bytes",
        ):
            self._require_at_least(name, 0)
        if self.memory_budget_bytes is not None:
            self._require_at_least("memory_budget_bytes", 1)
        for name in ("max_bucket_s", "ageing_s", "request_timeout_s", "prefix_cache_max_age_s"):
            self._require_positive(name)
        self._require_one_of("backend", ("auto", "native", "onnx", "reference"))
        self._require_one_of("instruction_set", ("auto", "avx512vnni", "avx2", "neon", "portable"))
        self._require_one_of("kv_type", ("fp16", "int8"))
        self._require_one_of("policy", ("deadlines", "first_come"))
        self._require_one_of("onnx_accuracy_level", (0, 4))
        if not all(type(cpu) is int and 0 <= cpu < _MAX_CPUS for cpu in self.cpus):
            raise InvalidInputError(f"cpus is {self.cpus!r}: give numbers of CPUs from 0 to {_MAX_CPUS - 1}")
        if not 0.01 <= self.duty_cycle <= 1.0:
            raise InvalidInputError(f"duty_cycle is {self.duty_cycle!r}: give a number from 0.01 to 1")

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

    def _require_positive(self, name: str) -> None:
        value = getattr(self, name)
        if not 0 < value < float("inf"):
            raise InvalidInputError(f"{name} is {value!r}: give a number above 0")

    def _require_one_of(self, name: str, allowed: tuple[object, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise InvalidInputError(f"{name} is {value!r}: use {', '.join(map(str, allowed[:-1]))} or {allowed[-1]}")
