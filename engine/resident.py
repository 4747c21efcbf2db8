"""How much of the memory that the ledger has reserved is really there: pages that were touched, by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.artifact import ADAPTER_WEIGHTS, BASE_WEIGHTS
from engine.backends import Backend, State
from engine.ledger import Kind
from engine.metrics import mapped_pss


def resident_bytes(
    reserved: Mapping[Kind, int],
    backend: Backend,
    *,
    base: Path | None,
    adapters: Iterable[Path],
    states: Iterable[State],
) -> dict[Kind, int]:
    """As far as the back end and the system tell, else what is reserved. `base` and `adapters` are bundles."""
    memory = backend.memory()
    resident = {**reserved, Kind.SCRATCH: memory.resident_scratch_bytes}
    if memory.are_weights_mapped and base is not None:
        by_file = mapped_pss()
        resident[Kind.WEIGHTS] = by_file[str((base / BASE_WEIGHTS).resolve())]
        resident[Kind.ADAPTERS] = sum(by_file[str((bundle / ADAPTER_WEIGHTS).resolve())] for bundle in adapters)
    resident[Kind.KV] = sum(state.resident_bytes for state in states)
    return resident
