"""The contestant's end of the conversation: a JSON document per line, each request answered by one.

    {"op": "export", "folder": ...}                                       {}
    {"op": "open", "folder": ..., "num_threads": 0}                       {"version": ..., "num_threads": ..., ...}
    {"op": "prepare", "context": 256, "capacity": 288, ...}               {}
    {"op": "run", "rows": 8, "logits": "all", "budget_s": 0.25}           {"seconds": [...], "sample": [...]}

A request that fails is answered by {"error": text}. All contestants see the same tokens, which follow from the sizes.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from engine.artifact import read_base
from engine.bench.contestants import Contestant, Logits, Room, Tokens
from engine.bench.models import ModelFolder

SAMPLE_LOGITS: Final = 256


class Output(Protocol):
    """Where answers go."""

    def write(self, text: str, /) -> object:
        """Append text."""

    def flush(self) -> object:
        """Send it."""


def serve(contestant: Contestant, requests: Iterable[str], answers: Output) -> None:
    """Answer each request until there are no more."""
    session = Session(contestant)
    for line in requests:
        try:
            answer = session.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the conductor decides what a failure means; the log has the rest
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split()):.200}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Session:
    """One contestant and the sizes that requests refer to."""

    def __init__(self, contestant: Contestant, clock: Callable[[], float] = time.perf_counter) -> None:
        self._contestant = contestant
        self._clock = clock
        self._vocab_size = 0
        self._context = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        operations: dict[str, Callable[..., dict[str, Any]]] = {
            "export": self._export,
            "open": self._open,
            "prepare": self._prepare,
            "run": self._run,
        }
        return operations[request.pop("op")](**request)

    def _export(self, folder: str) -> dict[str, Any]:
        self._contestant.export(ModelFolder(Path(folder)))
        return {}

    def _open(self, folder: str, num_threads: int) -> dict[str, Any]:
        place = ModelFolder(Path(folder))
        self._vocab_size = read_base(place.base)[0].architecture.vocab_size
        started_at = self._clock()
        facts = self._contestant.open(place, num_threads)
        return {"open_s": self._clock() - started_at, **facts}

    def _prepare(self, context: int, capacity: int, max_logit_rows: int) -> dict[str, Any]:
        self._context = context
        self._contestant.prepare(self._tokens(context, seed=0), Room(capacity, max_logit_rows))
        return {}

    def _run(self, rows: int, logits: str, budget_s: float) -> dict[str, Any]:
        """Seconds of steps until the budget is spent, and a few logits.

        The first step wakes threads and caches up and does not count, unless it alone spends the budget.
        """
        tokens, all_logits = self._tokens(rows, seed=1 + self._context), logits == "all"
        first_s, last = self._timed(tokens, all_logits=all_logits)
        if not np.isfinite(last).all():
            raise ValueError("the logits are not numbers")
        seconds = [first_s] if first_s >= budget_s else []
        while sum(seconds) < budget_s:
            seconds.append(self._timed(tokens, all_logits=all_logits)[0])
        return {"seconds": seconds, "sample": last[:SAMPLE_LOGITS].tolist()}

    def _timed(self, tokens: Tokens, *, all_logits: bool) -> tuple[float, Logits]:
        """Seconds of a step, and the logits of its last row [vocab_size]."""
        started_at = self._clock()
        logits = self._contestant.step(tokens, all_logits=all_logits)
        seconds = self._clock() - started_at
        last = logits[-1].copy()
        self._contestant.rewind()
        return seconds, last

    def _tokens(self, count: int, *, seed: int) -> Tokens:
        return np.random.default_rng(seed).integers(0, self._vocab_size, count, np.int32)
