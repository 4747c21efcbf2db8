"""Engines on a scripted back end, whose clock ticks once at every look."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from engine.artifact import read_base
from engine.config import EngineConfig
from engine.runtime import Base, Engine
from engine.sequence import Output
from tests.engine.scripted_backend import END, ScriptedBackend, SpellingTokenizer

PROMPT = (1, 2, 3)
Script = Callable[[list[int], str | None], int | float]


def open_scripted_engine(
    base: Path, script: Script, tokenizer: SpellingTokenizer | None = None, **config: Any
) -> Engine:
    manifest, digest = read_base(base)
    ticks = itertools.count()
    return Engine(
        EngineConfig(**config),
        base=Base(manifest, digest, tokenizer or SpellingTokenizer()),
        backend=ScriptedBackend(script),
        clock=lambda: float(next(ticks)),
    )


def saying(text: str, *, end: int = END) -> Script:
    """A script that answers the three-token prompt with this text."""
    answer = [ord(character) for character in text] + [end]
    return lambda token_ids, _adapter: answer[len(token_ids) - len(PROMPT)]


def drain(engine: Engine) -> dict[str, list[Output]]:
    """All outputs by request, until there is no work."""
    outputs: dict[str, list[Output]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def text_of(outputs: Iterable[Output]) -> str:
    return "".join(output.text for output in outputs)
