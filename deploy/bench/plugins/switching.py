"""What it costs to go over to another adapter between two tokens, with many of them resident."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from deploy.bench.plugins.figures import percentile
from deploy.bench.plugins.models import Models
from engine.backends import Segment, open_backend
from engine.config import EngineConfig

_CONTEXT: Final = 64
_ONE: Final = np.array([5], np.int32)


def measure_switching(models: Models, num_steps: int) -> dict[str, Any]:
    """Steps of one token: each adapter twice in a row, so that every other step switches."""
    budget_bytes = 4 * models.files_bytes
    backend = open_backend(models.base, EngineConfig(adapter_budget_bytes=budget_bytes))
    digests, load_s = [], []
    for adapter in models.adapters:
        digests.append(models.digest(adapter))
        load_s.append(_seconds_of(lambda adapter=adapter: backend.load_adapter(digests[-1], adapter)))
    state = backend.new_state(_CONTEXT + 1)
    prompt = np.arange(_CONTEXT, dtype=np.int32)
    backend.step([Segment(state, prompt, None, ())])

    def step(digest: str) -> float:
        seconds = _seconds_of(lambda: backend.step([Segment(state, _ONE, digest, (0,))]))
        state.rewind(_CONTEXT)
        return seconds

    for digest in digests:  # their pages come from the disk once
        step(digest)
    switching, staying = [], []
    for number in range(num_steps):
        digest = digests[number % len(digests)]
        switching.append(step(digest))
        staying.append(step(digest))
    backend.close()
    costs = {f"p{p}_ms": 1000 * (percentile(switching, p) - percentile(staying, p)) for p in (50, 90, 99)}
    return {
        "backend": backend.name,
        "num_adapters": len(digests),
        "num_steps": num_steps,
        "step_p50_ms": 1000 * percentile(staying, 50),
        "step_p99_ms": 1000 * percentile(staying, 99),
        "switch": costs,
        "load_p50_ms": 1000 * percentile(load_s, 50),
        "load_max_ms": 1000 * max(load_s),
    }


def _seconds_of(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s
