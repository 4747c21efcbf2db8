"""A back end whose next token is a function of the tokens so far, and a tokenizer that spells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from engine.artifact import ADAPTER_WEIGHTS
from engine.backends import Logits, Segment
from engine.sampling import next_token

VOCAB_SIZE = 128
END = 0


class ScriptedState:
    def __init__(self, max_tokens: int) -> None:
        self.token_ids: list[int] = []
        self.max_tokens = max_tokens
        self.size_bytes = 10 * max_tokens
        self.is_open = True

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def rewind(self, num_tokens: int) -> None:
        del self.token_ids[num_tokens:]

    def close(self) -> None:
        self.is_open = False


class ScriptedBackend:
    """Answers with `script(token_ids, adapter)`; every step and every open state is on record."""

    name = "scripted"
    next_token = staticmethod(next_token)

    def __init__(self, script: Callable[[list[int], str | None], int | float], *, max_step_rows: int = 64) -> None:
        self.script = script
        self.max_step_rows = max_step_rows
        self.adapter_switch_s = 0.0
        self.steps: list[list[Segment]] = []
        self.states: list[ScriptedState] = []
        self.adapters: dict[str, Path] = {}

    def load_adapter(self, digest: str, bundle: Path) -> int:
        assert digest not in self.adapters
        self.adapters[digest] = bundle
        return (bundle / ADAPTER_WEIGHTS).stat().st_size

    def unload_adapter(self, digest: str) -> None:
        del self.adapters[digest]

    def check_adapter(self, digest: str) -> None:
        assert digest in self.adapters

    def state_bytes(self, max_tokens: int) -> int:
        return 10 * max_tokens

    def new_state(self, max_tokens: int) -> ScriptedState:
        self.states.append(ScriptedState(max_tokens))
        return self.states[-1]

    def step(self, segments: Sequence[Segment]) -> list[Logits]:
        assert sum(len(segment.token_ids) for segment in segments) <= self.max_step_rows
        self.steps.append(list(segments))
        return [self._run(segment) for segment in segments]

    def close(self) -> None:
        self.adapters.clear()

    def _run(self, segment: Segment) -> Logits:
        state = segment.state
        assert isinstance(state, ScriptedState)
        assert state.is_open
        assert segment.adapter is None or segment.adapter in self.adapters
        state.token_ids += segment.token_ids.tolist()
        assert state.num_tokens <= state.max_tokens
        logits = np.zeros((len(segment.logit_rows), VOCAB_SIZE), np.float32)
        for row, logit_row in zip(logits, segment.logit_rows, strict=True):
            seen = state.token_ids[: state.num_tokens - len(segment.token_ids) + logit_row + 1]
            answer = self.script(seen, segment.adapter)
            if np.isnan(answer):
                row[:] = np.nan
            else:
                row[int(answer)] = 20.0
        return logits


class SpellingTokenizer:
    """Token n is the character of code n; `pieces` names tokens with longer texts."""

    eos_token_ids = frozenset({END})

    def __init__(self, pieces: dict[int, str] | None = None) -> None:
        self.pieces = pieces or {}

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def render_chat(self, messages: Iterable[dict[str, str]]) -> list[int]:
        return self.encode("".join(f"{message['role'][0]}:{message['content']}\n" for message in messages))

    def stream(self) -> SpellingStream:
        return SpellingStream(self.pieces)


class SpellingStream:
    """Gives each token's text one token late, as a real stream does in the middle of a character."""

    def __init__(self, pieces: dict[int, str]) -> None:
        self._pieces = pieces
        self._late = ""

    def push(self, token_id: int) -> str:
        text, self._late = self._late, self._pieces.get(token_id, chr(token_id))
        return text

    def flush(self) -> str:
        text, self._late = self._late, ""
        return text
