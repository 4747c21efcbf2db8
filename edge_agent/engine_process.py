"""The engine's process: `python -m edge_agent.engine_process`, started and watched by `edge_agent.host`.

Fits `engine.runtime.Engine` to the loop: prompts become tokens here, since the tokenizer lives with the model. The only
module of the agent that imports the engine's runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edge_agent.engine_loop import Marker, failure_of, serve
from edge_agent.engine_wire import Generate, Heartbeat, Piece, Prompt, Reading, TokenChoice, TokenLogprobs
from engine import sampling
from engine.config import EngineConfig
from engine.errors import InvalidInputError
from engine.runtime import Engine
from engine.sequence import Output, Request
from engine.strict_json import DecodeError, from_document


class RuntimeEngine:
    """An `Engine` as `engine_loop.ServedEngine`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.base_digest = engine.base_digest
        self.backend = engine.backend.name
        self._last_prompt: tuple[Prompt, tuple[int, ...]] = (Prompt(), ())

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._engine.has_work

    def load_adapter(self, bundle: Path) -> str:
        """Make an adapter usable; returns its digest."""
        return self._engine.load_adapter(bundle)

    def unload_adapter(self, digest: str) -> None:
        """Forget an adapter."""
        self._engine.unload_adapter(digest)

    def submit(self, call: Generate) -> None:
        """Queue a request."""
        request = Request(
            prompt_token_ids=self._token_ids(call.prompt),
            request_id=call.call_id,
            adapter=call.adapter,
            sampling=_sampling_params(call.sampling),
            business=call.business,
            leader=call.leader,
        )
        self._engine.submit(request)

    def cancel(self, call_id: str) -> None:
        """Drop a request, if it is still there."""
        self._engine.cancel(call_id)

    def step(self) -> Iterable[Piece]:
        """Run one step."""
        return map(self._piece, self._engine.step())

    def heartbeat(self, *, with_memory: bool) -> Heartbeat:
        """What was counted since the last one."""
        counted = self._engine.metrics.drain()
        readings = tuple(Reading(subject.adapter, subject.business, counters) for subject, counters in counted.items())
        running, waiting = self._engine.num_running, self._engine.num_waiting
        memory_bytes: dict[str, int] = {}
        if with_memory:
            memory = self._engine.stats().memory
            memory_bytes = {str(kind): size_bytes for kind, size_bytes in memory.resident.items()}
            memory_bytes["pss"] = memory.pss_bytes
        return Heartbeat(readings, memory_bytes, running, waiting)

    def _token_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Its tokens; found at once for siblings, who hold the same object."""
        if self._last_prompt[0] is not prompt:
            self._last_prompt = (prompt, self._encode(prompt))
        return self._last_prompt[1]

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.token_ids is not None:
            return prompt.token_ids
        tokenizer = self._engine.tokenizer
        if prompt.messages is None:
            return tuple(tokenizer.encode(prompt.text or ""))
        return tuple(
            tokenizer.render_chat(
                prompt.messages, tools=prompt.tools, tool_choice=prompt.tool_choice, beginning=prompt.beginning
            )
        )

    def _piece(self, output: Output) -> Piece:
        return Piece(
            output.request_id,
            output.text,
            len(output.token_ids),
            finish_reason=output.finish_reason,
            usage=output.usage,
            failure=None if output.error is None else failure_of(output.request_id, output.error),
            logprobs=tuple(map(self._logprobs, output.logprobs)),
        )

    def _logprobs(self, logprobs: sampling.TokenLogprobs) -> TokenLogprobs:
        def choice(token_id: int, logprob: float) -> TokenChoice:
            return TokenChoice(self._engine.tokenizer.token_text(token_id), logprob)

        likeliest = tuple(choice(token_id, logprob) for token_id, logprob in logprobs.likeliest)
        return TokenLogprobs(choice(logprobs.token_id, logprobs.logprob), likeliest)


def _sampling_params(document: Mapping[str, Any]) -> sampling.SamplingParams:
    try:
        return from_document(sampling.SamplingParams, dict(document))
    except DecodeError as error:
        raise InvalidInputError(str(error)) from error


def open_runtime(bundle: Path, config: Mapping[str, Any], marker: Marker) -> RuntimeEngine:
    """Open the real engine."""
    engine = Engine.open(bundle, EngineConfig.from_mapping(config))
    engine.before_step = marker.note
    return RuntimeEngine(engine)


if __name__ == "__main__":
    serve(open_runtime)
