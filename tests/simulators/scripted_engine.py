"""An engine process without a model: `python tests/simulators/scripted_engine.py`.

It answers "<tag>: <last message>" letter by letter, where the tag is the first line of the adapter's weights (or the
base's), so that a test sees which release has answered. Some messages and tags are orders to misbehave.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edge_agent.engine_loop import serve
from edge_agent.engine_wire import Piece, Prompt, Timing
from engine.artifact import ADAPTER_WEIGHTS, BASE_WEIGHTS, check_fits, read_adapter, read_base
from engine.errors import BundleError, CapacityError, ContextLengthError, InvalidInputError, UnknownAdapterError


class ScriptedEngine:
    """Follows orders: "crash", "hang", "endless", "too long", "no room" as last message; "crash" and others as tags."""

    backend = "scripted"

    def __init__(self, bundle: Path, config: Mapping[str, Any]) -> None:
        self._base, self.base_digest = read_base(bundle)
        self._tag = _tag(bundle / BASE_WEIGHTS)
        if self._tag == "damaged":
            raise BundleError("the weights are damaged")
        if self._tag == "crash":
            os._exit(3)
        self._config = dict(config)
        self._adapters: dict[str, str] = {}
        self._answers: dict[str, Answer] = {}
        self._num_switches = 0

    @property
    def has_work(self) -> bool:
        return bool(self._answers)

    def load_adapter(self, bundle: Path) -> str:
        manifest, digest = read_adapter(bundle)
        check_fits(manifest, self._base, self.base_digest)
        time.sleep(self._config.get("load_s", 0.0))
        tag = _tag(bundle / ADAPTER_WEIGHTS)
        if tag == "crash on load":
            os._exit(4)
        if tag == "too big":
            raise CapacityError("no room for this adapter")
        self._adapters[digest] = tag
        return digest

    def unload_adapter(self, digest: str) -> None:
        if any(answer.adapter == digest for answer in self._answers.values()):
            raise CapacityError("in use")
        if digest not in self._adapters:
            raise UnknownAdapterError("not loaded")
        del self._adapters[digest]

    def submit(self, call_id: str, prompt: Prompt, adapter: str | None, sampling: Mapping[str, Any]) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise UnknownAdapterError(f"adapter {adapter} is not loaded")
        said = str(prompt.messages[-1]["content"]) if prompt.messages else prompt.text or ""
        if said == "crash":
            os._exit(5)
        if said == "hang":
            time.sleep(3600)
        if said == "too long":
            raise ContextLengthError("the prompt is too long")
        if said == "no room":
            raise CapacityError("the queue is full")
        if said == "sampling":
            said = repr(sorted(sampling.items()))
        if said == "tools":
            said = repr(prompt.tools)
        if sampling.get("temperature", 0) > 100:
            raise InvalidInputError("that is hot")
        tag = self._tag if adapter is None else self._adapters[adapter]
        self._num_switches += 1
        self._answers[call_id] = Answer(adapter, f"{tag}: {said}", said, sampling.get("max_tokens"))

    def cancel(self, call_id: str) -> None:
        self._answers.pop(call_id, None)

    def step(self) -> Iterable[Piece]:
        time.sleep(self._config.get("step_s", 0.0))
        if self._config.get("chatter"):
            sys.stdout.write("a library's greeting\n")
            sys.stdout.flush()
            os.system("echo and that of a program")
        pieces = [answer.step(call_id) for call_id, answer in self._answers.items()]
        for piece in pieces:
            if piece.finish_reason:
                del self._answers[piece.call_id]
        return pieces

    def counters(self) -> Mapping[str, float]:
        return {"adapter_switches": self._num_switches, "adapter_switch_s": self._num_switches / 1000}


class Answer:
    """One answer on its way, a letter a step."""

    def __init__(self, adapter: str | None, text: str, said: str, max_tokens: int | None) -> None:
        self.adapter = adapter
        self._text = text
        self._is_endless = said == "endless"
        self._max_tokens = max_tokens
        self._num_done = 0

    def step(self, call_id: str) -> Piece:
        letter = self._text[self._num_done % len(self._text)]
        self._num_done += 1
        reason = None
        if self._num_done == len(self._text) and not self._is_endless:
            reason = "stop"
        elif self._num_done == self._max_tokens:
            reason = "length"
        timing = Timing(len(self._text), self._num_done, 0.25, 0.5, 2.0) if reason else None
        return Piece(call_id, letter, 1, finish_reason=reason, timing=timing)


def _tag(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline().rstrip(b"\n").decode()


if __name__ == "__main__":
    serve(ScriptedEngine)
