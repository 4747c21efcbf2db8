"""A configuration's budgets and limits, in the terms of those who keep them. Keeps none itself."""

from __future__ import annotations

from pathlib import Path

from engine.artifact import Architecture
from engine.backends import Backend
from engine.config import EngineConfig
from engine.intake import Limits as IntakeLimits
from engine.ledger import Caps, Kind, Ledger
from engine.prefix_disk import NO_DISK, Disk, Tier
from engine.scheduler import Limits as SchedulerLimits


def open_ledger(config: EngineConfig, backend: Backend, process_bytes: int) -> Ledger:
    """With what is taken from the start; raises `CapacityError` if that alone breaks the cap."""
    by_kind = {
        Kind.KV: config.kv_budget_bytes,
        Kind.ADAPTERS: config.adapter_budget_bytes,
        Kind.PREFIX_CACHE: config.prefix_cache_bytes,
    }
    ledger = Ledger(Caps(config.memory_budget_bytes, by_kind))
    memory = backend.memory()
    ledger.reserve(Kind.PROCESS, process_bytes)
    ledger.reserve(Kind.WEIGHTS, memory.weights_bytes)
    ledger.reserve(Kind.SCRATCH, memory.scratch_bytes)
    return ledger


def open_tier(config: EngineConfig) -> Tier:
    """Where cached prompts survive restarts."""
    if config.prefix_cache_dir is None:
        return NO_DISK
    return Disk(
        Path(config.prefix_cache_dir),
        quota_bytes=config.prefix_cache_disk_bytes,
        max_age_s=config.prefix_cache_max_age_s,
    )


def scheduler_limits(config: EngineConfig, backend: Backend) -> SchedulerLimits:
    """What may run and wait, and how much at once."""
    return SchedulerLimits(
        max_running=min(config.max_running, backend.max_step_rows),
        max_waiting=config.max_waiting,
        prefill_chunk_tokens=min(config.prefill_chunk_tokens, backend.max_step_rows),
        max_bucket_s=config.max_bucket_s,
        cuts_anywhere=backend.cuts_anywhere,
        ageing_s=config.ageing_s,
        mixes_adapters=config.mixes_adapters,
        policy=config.policy,
    )


def intake_limits(config: EngineConfig, architecture: Architecture, ledger: Ledger) -> IntakeLimits:
    """What one request may ask for, with the ledger as it is when nothing runs yet."""
    return IntakeLimits(
        vocab_size=architecture.vocab_size,
        max_context_tokens=min(config.max_context_tokens, architecture.max_position_embeddings),
        max_state_bytes=int(min(ledger.kind_room_bytes(Kind.KV), ledger.total_room_bytes)),
        request_timeout_s=config.request_timeout_s,
    )
