"""Tries a staged set before it is committed: golden prompts on the real engine, greedily, compared with their answers.

Knows what a good answer is; how a set gets onto an engine and what follows from a failure are others' matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

from edge_agent.business import Profile
from edge_agent.engine_wire import Prompt
from edge_agent.errors import EngineRefusedError, ProbeError
from edge_agent.served import Model
from engine.artifact import AdapterManifest, GoldenPrompt, Manifest

_GREETING = Prompt(messages=({"role": "user", "content": "Hi"},))
_GREETING_TOKENS = 4
_SPARE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Trial:
    """A model to try, with the manifest that says what it shall answer."""

    model: Model
    manifest: Manifest | None


async def probe(trials: Iterable[Trial]) -> None:
    """Raise `ProbeError` with evidence unless every model answers as its golden prompts say."""
    for trial in trials:
        await _try(trial)


async def _try(trial: Trial) -> None:
    manifest = trial.manifest
    golden = manifest.golden_prompts if isinstance(manifest, AdapterManifest) else ()
    for prompt in golden:
        await _check_golden(trial.model, prompt)
    if not golden:
        await _answer(trial.model, _GREETING, _GREETING_TOKENS)


async def _check_golden(model: Model, golden: GoldenPrompt) -> None:
    # A token is at least one byte, so a right answer always has room; a wrong one is cut off.
    max_tokens = len(golden.answer.encode()) + _SPARE_TOKENS
    answer = await _answer(model, Prompt(messages=golden.messages), max_tokens)
    if answer != golden.answer:
        raise ProbeError(
            f"{model.name} {model.release.version} gives another answer on this device than its golden prompt says: "
            "publish it again with golden prompts that its base, quantised as it is, answers",
            code="golden_prompt_failed",
            evidence={
                "model": model.name,
                "prompt": golden.messages[-1].get("content", "")[:200],
                "expected": golden.answer[:400],
                "got": answer[:400],
            },
        )


async def _answer(model: Model, prompt: Prompt, max_tokens: int) -> str:
    """The greedy answer; a request that the engine turns down is a failed probe."""
    sampling = {"temperature": 0.0, "max_tokens": max_tokens}
    try:
        profile = Profile(model.profile.business, sampling)
        with closing(model.child.submit([prompt], adapter=model.adapter, profile=profile)) as pieces:
            return "".join([piece.text async for piece in pieces])
    except EngineRefusedError as error:
        raise ProbeError(
            f"{model.name} can't answer: {error}", code=error.code, evidence={"model": model.name}
        ) from error
