"""A process with an engine of several businesses, which says what its ledger and the system have it take.

`-m tests.engine.shared_base_child phases|flood BASE ADAPTER ADAPTER`.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.business import Business
from engine.config import EngineConfig
from engine.errors import CapacityError
from engine.metrics import mapped_pss
from engine.runtime import Engine
from engine.sampling import GREEDY
from engine.sequence import Request
from engine.tokenizer import Tokenizer
from tests.engine.scripted_backend import SpellingTokenizer

HOME = Business("home", prompt_cache=True)
CAR = Business("car")
ROOM_BYTES = 5 << 20


def open_engine(base: Path, **config: Any) -> Engine:
    Tokenizer.open = lambda _bundle: SpellingTokenizer()
    return Engine.open(base, EngineConfig(num_threads=1, **config))


def look(engine: Engine) -> dict[str, int]:
    memory = engine.stats().memory
    return {
        "reserved": sum(memory.reserved.values()),
        "resident": sum(memory.resident.values()),
        "pss": memory.pss_bytes,
        # How much of a library this process answers for changes when others that use it come and go.
        "libraries": sum(size for path, size in mapped_pss().items() if ".so" in path),
    }


def submit(engine: Engine, name: str, tokens: range, adapter: str | None, business: Business, **more: Any) -> None:
    max_tokens, leader = more.get("max_tokens", 100), more.get("leader")
    sampling = replace(GREEDY, max_tokens=max_tokens, ignore_eos=True)
    engine.submit(Request(tuple(tokens), name, adapter, sampling, business, leader))


def step(engine: Engine, count: int) -> None:
    for _ in range(count):
        engine.step()


def phases(base: Path, *adapters: Path) -> Mapping[str, Any]:
    """Idle, with requests that run, with prompts that are cached, and with many answers to one prompt."""
    engine = open_engine(base, prefix_cache_bytes=1 << 30)
    looks = {"opened": look(engine)}
    digests = [engine.load_adapter(adapter) for adapter in adapters]
    submit(engine, "warm", range(128), digests[0], CAR)
    step(engine, 3)
    engine.cancel("warm")
    step(engine, 1)
    looks["idle"] = look(engine)
    for number, digest in enumerate([None, *digests]):
        submit(engine, f"home {number}", range(number, 1000 + number), digest, HOME)
        submit(engine, f"car {number}", range(50 + number, 450 + number), digest, CAR)
    step(engine, 60)
    looks["running"] = look(engine)
    submit(engine, "same prompt", range(1000), None, HOME)
    step(engine, 20)
    looks["running on cached prompts"] = look(engine)
    for name in ["same prompt", *(f"{business} {number}" for business in ("home", "car") for number in range(3))]:
        engine.cancel(name)
    step(engine, 1)
    looks["cached"] = look(engine)
    submit(engine, "leader", range(7, 1200), None, CAR)
    for number in range(7):
        submit(engine, f"follower {number}", range(7, 1200), None, CAR, leader="leader")
    step(engine, 30)
    assert engine.num_running == 8
    looks["many answers to one prompt"] = look(engine)
    return looks


def flood(base: Path, *adapters: Path) -> Mapping[str, Any]:
    """More requests than there is memory for, with more to come as long as they run."""
    engine = open_engine(base)
    adapters_bytes = sum(path.stat().st_size for adapter in adapters for path in adapter.iterdir())
    cap = look(engine)["reserved"] + adapters_bytes + ROOM_BYTES
    engine = open_engine(base, memory_budget_bytes=cap, max_waiting=8)
    opened = look(engine)
    digests = [None, *(engine.load_adapter(adapter) for adapter in adapters)]
    accepted, refused, finished, errors, looks, most_running, num_steps = 0, [], 0, [], [], 0, 0
    for number in range(12):
        try:
            business = (HOME, CAR)[number % 2]
            submit(engine, str(number), range(number, number + 400), digests[number % 3], business, max_tokens=20)
            accepted += 1
        except CapacityError as error:
            refused.append(error.retry_after_s)
    while engine.has_work:
        outputs = engine.step()
        finished += sum(output.finish_reason is not None for output in outputs)
        errors += [str(output.error) for output in outputs if output.error is not None]
        most_running = max(most_running, engine.num_running)
        num_steps += 1
        if num_steps % 5 == 0:
            looks.append(look(engine))
    return {
        "cap": cap,
        "largest_pss": max(taken["pss"] for taken in looks),
        "library_growth": max(0, *(taken["libraries"] - opened["libraries"] for taken in looks)),
        "largest_reserved": max(taken["reserved"] for taken in looks),
        "most_running": most_running,
        "accepted": accepted,
        "refused": refused,
        "finished": finished,
        "errors": errors,
    }


WHAT: dict[str, Callable[..., Mapping[str, Any]]] = {"phases": phases, "flood": flood}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(WHAT[sys.argv[1]](*map(Path, sys.argv[2:]))))
