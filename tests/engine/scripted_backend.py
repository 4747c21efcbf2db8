"""A back end whose next token is a function of the tokens so far, and a tokenizer that spells."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.artifact import ADAPTER_WEIGHTS
from engine.backends import NO_PREFIX, BackendMemory, Logits, Prefix, Segment
from engine.sampling import next_token

VOCAB_SIZE = 128
END = 0
BLOCK_TOKENS = 8


@dataclass(frozen=True, eq=False)
class ScriptedBlock:
    """Its tokens, and a mark of the adapter that it was computed with."""

    token_ids: tuple[int, ...]
    mark: int
    resident_bytes = 10 * BLOCK_TOKENS

    @property
    def data(self) -> NDArray[np.uint8]:
        padded = (*self.token_ids, *[END] * (BLOCK_TOKENS - len(self.token_ids)))
        return np.array((*padded, self.mark), np.uint8)


class ScriptedState:
    """Its tokens; those of one state must all be computed with the same adapter."""

    def __init__(self, max_tokens: int, token_ids: Sequence[int] = (), marks: Iterable[int] = ()) -> None:
        self.token_ids: list[int] = list(token_ids)
        self.marks = set(marks)
        self.max_tokens = max_tokens
        self.size_bytes = self.resident_bytes = 10 * max_tokens
        self.is_open = True

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def rewind(self, num_tokens: int) -> None:
        del self.token_ids[num_tokens:]

    def block(self, index: int) -> ScriptedBlock:
        if not 0 <= index < len(self.token_ids) // BLOCK_TOKENS:
            raise ValueError("not full")
        return self._cut(index * BLOCK_TOKENS)

    def take(self) -> tuple[ScriptedBlock, ...]:
        self.is_open = False
        return tuple(self._cut(start) for start in range(0, len(self.token_ids), BLOCK_TOKENS))

    def fork(self, max_tokens: int) -> ScriptedState:
        return ScriptedState(max_tokens, self.token_ids, self.marks)

    def close(self) -> None:
        self.is_open = False

    def _cut(self, start: int) -> ScriptedBlock:
        (mark,) = self.marks
        return ScriptedBlock(tuple(self.token_ids[start : start + BLOCK_TOKENS]), mark)


class ScriptedBackend:
    """Answers with `script(token_ids, adapter)`; every step and every open state is on record."""

    name = "scripted"
    numerics = "scripted-1"
    block_tokens = BLOCK_TOKENS
    block_bytes = 10 * BLOCK_TOKENS
    shares_blocks = True
    cuts_anywhere = True
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

    def memory(self) -> BackendMemory:
        return BackendMemory(0, are_weights_mapped=False, scratch_bytes=0, resident_scratch_bytes=0)

    def block_from(self, data: NDArray[np.uint8]) -> ScriptedBlock:
        if len(data) != BLOCK_TOKENS + 1:
            raise ValueError(f"{len(data)} bytes")
        return ScriptedBlock(tuple(data[:-1].tolist()), int(data[-1]))

    def new_state(self, max_tokens: int, prefix: Prefix = NO_PREFIX) -> ScriptedState:
        tokens = [token for block in prefix.blocks for token in block.token_ids][: prefix.num_tokens]
        assert len(tokens) == prefix.num_tokens
        self.states.append(ScriptedState(max_tokens, tokens, {block.mark for block in prefix.blocks}))
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
        state.marks.add(_mark(segment.adapter))
        assert len(state.marks) == 1
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


def _mark(adapter: str | None) -> int:
    return 0 if adapter is None else 1 + zlib.crc32(adapter.encode()) % 255


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
