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

from edge_agent.engine_loop import Marker, serve
from edge_agent.engine_wire import Failed, Generate, Heartbeat, Piece, Reading, TokenChoice, TokenLogprobs
from engine.artifact import ADAPTER_WEIGHTS, BASE_WEIGHTS, check_fits, read_adapter, read_base
from engine.errors import (
    BundleError,
    CapacityError,
    ContextLengthError,
    InvalidInputError,
    RateLimitError,
    UnknownAdapterError,
)
from engine.metrics import Counters, Usage


class ScriptedEngine:
    """Follows orders: "crash", "hang", "endless", "no room" and others as last message, some of them as tags too."""

    backend = "scripted"

    def __init__(self, bundle: Path, config: Mapping[str, Any], marker: Marker) -> None:
        self._marker = marker
        self._base, self.base_digest = read_base(bundle)
        self._tag = _tag(bundle / BASE_WEIGHTS)
        if self._tag == "damaged":
            raise BundleError("the weights are damaged")
        if self._tag == "crash":
            os._exit(3)
        self._config = dict(config)
        self._adapters: dict[str, str] = {}
        self._answers: dict[str, Answer] = {}
        self._switched: list[tuple[str | None, str]] = []

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

    def submit(self, call: Generate) -> None:
        prompt, adapter, sampling = call.prompt, call.adapter, call.sampling
        if adapter is not None and adapter not in self._adapters:
            raise UnknownAdapterError(f"adapter {adapter} is not loaded")
        said = str(prompt.messages[-1]["content"]) if prompt.messages else prompt.text or repr(prompt.token_ids)
        self._misbehave(said, adapter)
        if said == "too long":
            raise ContextLengthError("the prompt is too long")
        if said == "no room":
            raise CapacityError("the queue is full")
        if said == "over budget":
            raise RateLimitError("the business has used up its tokens", retry_after_s=7.2)
        if said == "sampling":
            said = repr(sorted(sampling.items()))
        if said == "tools":
            said = repr((prompt.tool_choice, prompt.tools))
        if said == "business":
            said = repr(call.business)
        if said == "config":
            said = repr(sorted(self._config.items()))
        if sampling.get("temperature", 0) > 100:
            raise InvalidInputError("that is hot")
        tag = self._tag if adapter is None else self._adapters[adapter]
        self._switched.append((adapter, call.business.name))
        self._answers[call.call_id] = Answer(adapter, said if prompt.beginning else f"{tag}: {said}", said, sampling)

    def _misbehave(self, said: str, adapter: str | None) -> None:
        if said in ("crash", "hang"):
            self._marker.note([adapter] if adapter else [])
        if said == "crash together":
            self._marker.note(list(self._adapters))
        if said.startswith("crash"):
            os._exit(5)
        if said == "hang":
            time.sleep(3600)

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

    def heartbeat(self, *, with_memory: bool) -> Heartbeat:
        switched, self._switched = self._switched, []
        readings = [
            Reading(adapter, business, Counters(adapter_switches=1, adapter_switch_s=0.001))
            for adapter, business in switched
        ]
        memory_bytes = {"weights": 1000, "kv": 200} if with_memory else {}
        return Heartbeat(tuple(readings), memory_bytes, len(self._answers), 0)


class Answer:
    """One answer on its way, a letter a step."""

    def __init__(self, adapter: str | None, text: str, said: str, sampling: Mapping[str, Any]) -> None:
        self.adapter = adapter
        self._text = text
        self._is_endless = said == "endless"
        self._is_late = said == "late"
        self._max_tokens = sampling.get("max_tokens")
        self._num_likeliest = sampling.get("logprobs")
        self._num_done = 0

    def step(self, call_id: str) -> Piece:
        letter = self._text[self._num_done % len(self._text)]
        self._num_done += 1
        if self._is_late:
            failed = Failed(call_id, "timeout", "the request took too long", is_transient=True)
            return Piece(call_id, "", 0, finish_reason="error", failure=failed)
        reason = None
        if self._num_done == len(self._text) and not self._is_endless:
            reason = "stop"
        elif self._num_done == self._max_tokens:
            reason = "length"
        usage = Usage(len(self._text), self._num_done, 2, 0.125, 0.25, 0.5, 2.0) if reason else None
        return Piece(call_id, letter, 1, finish_reason=reason, usage=usage, logprobs=self._logprobs(letter))

    def _logprobs(self, letter: str) -> tuple[TokenLogprobs, ...]:
        if self._num_likeliest is None:
            return ()
        likeliest = [TokenChoice(letter, -0.5), *(TokenChoice(chr(97 + i), -1.0 - i) for i in range(20))]
        return (TokenLogprobs(TokenChoice(letter, -0.5), tuple(likeliest[: self._num_likeliest])),)


def _tag(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline().rstrip(b"\n").decode()


if __name__ == "__main__":
    serve(ScriptedEngine)
