"""The engine's process: `python -m edge_agent.engine_process`, started and watched by `edge_agent.host`.

Fits `engine.runtime.Engine` to the loop: prompts become tokens here, since the tokenizer lives with the model. The only
module of the agent that imports the engine's runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edge_agent.engine_loop import serve
from edge_agent.engine_wire import Piece, Prompt, Timing
from engine.config import EngineConfig
from engine.errors import InvalidInputError
from engine.runtime import Engine
from engine.sampling import SamplingParams
from engine.sequence import Output, Request
from engine.strict_json import DecodeError, from_document


class RuntimeEngine:
    """An `Engine` as `engine_loop.ServedEngine`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.base_digest = engine.base_digest
        self.backend = engine.backend.name

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

    def submit(self, call_id: str, prompt: Prompt, adapter: str | None, sampling: Mapping[str, Any]) -> None:
        """Queue a request."""
        self._engine.submit(Request(self._token_ids(prompt), call_id, adapter, _sampling_params(sampling)))

    def cancel(self, call_id: str) -> None:
        """Drop a request, if it is still there."""
        self._engine.cancel(call_id)

    def step(self) -> Iterable[Piece]:
        """Run one step."""
        return map(_piece, self._engine.step())

    def counters(self) -> Mapping[str, float]:
        """Adapter switches and the seconds that they took."""
        switches = self._engine.metrics.total().adapter_switches
        return {"adapter_switches": switches, "adapter_switch_s": self._engine.backend.adapter_switch_s}

    def _token_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.messages is None:
            return tuple(self._engine.tokenizer.encode(prompt.text or ""))
        return tuple(self._engine.tokenizer.render_chat(prompt.messages, tools=prompt.tools))


def _sampling_params(document: Mapping[str, Any]) -> SamplingParams:
    try:
        return from_document(SamplingParams, dict(document))
    except DecodeError as error:
        raise InvalidInputError(str(error)) from error


def _piece(output: Output) -> Piece:
    usage = output.usage
    timing = (
        None
        if usage is None
        else Timing(usage.prompt_tokens, usage.completion_tokens, usage.ttft_s, usage.prefill_s, usage.decode_s)
    )
    return Piece(
        output.request_id,
        output.text,
        len(output.token_ids),
        finish_reason=output.finish_reason,
        timing=timing,
        error=output.error,
    )


def open_runtime(bundle: Path, config: Mapping[str, Any]) -> RuntimeEngine:
    """Open the real engine."""
    return RuntimeEngine(Engine.open(bundle, EngineConfig.from_mapping(config)))


if __name__ == "__main__":
    serve(open_runtime)
