"""What an update of adapters costs those whose answers are under way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deploy.bench.plugins.device import Device, desired_state, device
from deploy.bench.plugins.figures import percentile
from deploy.bench.plugins.models import Models

ADAPTERS_PER_UPDATE: Final = 4
_STAYS: Final = "stays"
_REST_S: Final = 0.5


@dataclass(slots=True)
class _Listener:
    """Somebody to whom an adapter that no update touches talks without end."""

    gaps_s: list[float] = field(default_factory=list)
    """Between one piece of an answer and the next."""
    num_broken: int = 0


async def measure_updates(models: Models, count: int) -> dict[str, Any]:
    """Exchange all adapters but one, again and again, while that one answers."""
    stays, *others = models.adapters[: 1 + 2 * ADAPTERS_PER_UPDATE]
    every = {_STAYS: stays, **{f"adapter-{index}": path for index, path in enumerate(others)}}
    names = [name for name in every if name != _STAYS]
    sets = [{name: every[name] for name in (_STAYS, *names[half::2])} for half in (0, 1)]
    engine = {"adapter_budget_bytes": 4 << 30}
    pauses_s: list[float] = []
    async with device(models, every, engine=engine, heartbeat_interval_s=0.05) as running:
        await _update(running, models, sets[1], 2)
        running.host.on_beat = lambda _child, beat: pauses_s.append(beat.update_pause_s)
        async with _listening(running) as at_rest:
            await asyncio.sleep(count * _REST_S)
        async with _listening(running) as listener:
            for number in range(count):
                await _update(running, models, sets[number % 2], 3 + number)
                await asyncio.sleep(_REST_S)
    longest_s = [pause for pause in pauses_s if pause]
    return {
        "num_updates": count,
        "adapters_per_update": ADAPTERS_PER_UPDATE,
        "pause_p50_ms": 1000 * percentile(longest_s, 50),
        "pause_p90_ms": 1000 * percentile(longest_s, 90),
        "pause_max_ms": 1000 * max(longest_s),
        "gap_p50_ms": 1000 * percentile(listener.gaps_s, 50),
        "gap_max_ms": 1000 * max(listener.gaps_s),
        "gap_max_at_rest_ms": 1000 * max(at_rest.gaps_s),
        "num_broken": listener.num_broken,
    }


async def _update(running: Device, models: Models, adapters: Mapping[str, Path], revision: int) -> None:
    """As the agent does it: load what is new, serve it, unload what has gone."""
    wanted = desired_state(models, adapters, revision)
    await running.host.stage(wanted)
    await running.host.activate(wanted)
    child = running.served.child
    while child.loaded != {ref.digest for ref in wanted.adapters}:
        await asyncio.sleep(0.01)


@asynccontextmanager
async def _listening(running: Device) -> AsyncIterator[_Listener]:
    listener = _Listener()
    task = asyncio.create_task(_listen(running, listener))
    try:
        yield listener
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _listen(running: Device, listener: _Listener) -> None:
    body = {"model": _STAYS, "prompt": "把", "max_tokens": 200, "ignore_eos": True, "stream": True}
    while True:
        async with running.api.stream("POST", "/v1/completions", json=body) as answer:
            before_s = None
            reason = ""
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now_s = time.perf_counter()
                if before_s is not None:
                    listener.gaps_s.append(now_s - before_s)
                before_s = now_s
                choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
                reason = choices[0].get("finish_reason") or reason
            listener.num_broken += reason != "length"
