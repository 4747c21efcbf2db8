"""How much of the memory that the ledger has reserved is really there: pages that were touched, by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.adapters import ResidentAdapters
from engine.artifact import ADAPTER_WEIGHTS, BASE_WEIGHTS
from engine.backends import Backend, Block, State
from engine.ledger import Kind
from engine.metrics import mapped_pss, process_memory
from engine.prefix_cache import PrefixCache
from engine.sequence import Sequence


def process_bytes(before_bytes: int, backend: Backend, base: Path) -> int:
    """Of interpreter and libraries, right after the base was opened: what no other kind answers for.

    `before_bytes`, what the process took before that, are not all: a back end brings libraries. But they are the least,
    since weights that are not mapped may be read later.
    """
    memory = backend.memory()
    weights_bytes = memory.weights_bytes
    if memory.are_weights_mapped:
        weights_bytes = mapped_pss()[str((base / BASE_WEIGHTS).resolve())]
    pss_bytes, _ = process_memory()
    return max(before_bytes, pss_bytes - weights_bytes - memory.resident_scratch_bytes)


def resident_bytes(
    reserved: Mapping[Kind, int],
    backend: Backend,
    base: Path | None,
    adapters: ResidentAdapters,
    prefixes: PrefixCache,
    running: Iterable[Sequence],
) -> dict[Kind, int]:
    """As far as the back end and the system tell, else what is reserved. `base` is the bundle.

    What running states share with the prefix cache counts for the cache, and what they share with each other once.
    """
    memory = backend.memory()
    resident = {**reserved, Kind.SCRATCH: memory.resident_scratch_bytes}
    if memory.are_weights_mapped and base is not None:
        by_file = mapped_pss()
        resident[Kind.WEIGHTS] = by_file[str((base / BASE_WEIGHTS).resolve())]
        files = [(bundle / ADAPTER_WEIGHTS).resolve() for bundle in adapters.resident_bundles]
        resident[Kind.ADAPTERS] = sum(by_file[str(file)] for file in files)
    counted = set(prefixes.blocks)
    resident[Kind.PREFIX_CACHE] = sum(block.resident_bytes for block in counted)
    states = [sequence.state for sequence in running if sequence.state is not None]
    resident[Kind.KV] = sum(_bytes_beside(counted, state, backend) for state in states)
    return resident


def _bytes_beside(counted: set[Block], state: State, backend: Backend) -> int:
    """What a state takes beside blocks that were counted already; its own are counted now."""
    if not backend.shares_blocks:
        return state.resident_bytes
    blocks = {state.block(index) for index in range(state.num_tokens // backend.block_tokens)}
    shared_bytes = sum(block.resident_bytes for block in blocks & counted)
    counted |= blocks
    return state.resident_bytes - shared_bytes
