"""Tries a staged set on the real engine before it is committed.

Golden prompts are asked greedily and compared with their answers; an adapter must change something; the device must be
fast enough and have memory left.

Knows what a good answer is; how a set gets onto an engine and what follows from a failure are others' matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from edge_agent.business import Profile
from edge_agent.engine_wire import Prompt, TokenLogprobs
from edge_agent.errors import EngineRefusedError, ProbeError, TransientError
from edge_agent.memory import available_bytes
from edge_agent.served import Model, Served
from engine.artifact import AdapterManifest, GoldenPrompt, Manifest
from engine.metrics import Usage

_GREETING = Prompt(messages=({"role": "user", "content": "Hi"},))
_GREETING_TOKENS = 4
_SPARE_TOKENS = 16
_COMPARED_TOKENS = 8
_COMPARED_LOGPROBS = 5


@dataclass(frozen=True, slots=True)
class Trial:
    """A model to try, with the manifest that says what it shall answer."""

    model: Model
    manifest: Manifest | None

    @property
    def golden(self) -> Sequence[GoldenPrompt]:
        """What it must answer; a base has none."""
        return self.manifest.golden_prompts if isinstance(self.manifest, AdapterManifest) else ()


@dataclass(frozen=True, slots=True)
class Floors:
    """What a set must leave or reach to be committed. `most_memory_bytes`: of the engine process, None for any."""

    decode_tokens_per_s: float = 0.0
    free_memory_bytes: int = 0
    most_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    """A whole answer, and what it took."""

    text: str
    usage: Usage | None
    logprobs: Sequence[TokenLogprobs]


async def probe(
    staged: Served, trials: Sequence[Trial], floors: Floors, free_bytes: Callable[[], int] = available_bytes
) -> None:
    """Raise unless every model passes, with evidence.

    `ProbeError`: an answer is not what a golden prompt says, or an adapter changes nothing. `TransientError`: the
    device is too slow or has too little memory left, which may be otherwise later.
    """
    for trial in trials:
        answers = [await _check_golden(trial.model, prompt) for prompt in trial.golden]
        if not answers:
            answers = [await _ask(trial.model, _GREETING, max_tokens=_GREETING_TOKENS)]
        if trial.model.adapter is not None:
            await _check_changes(trial, staged.base_model)
        _check_speed(trial.model, answers, floors.decode_tokens_per_s)
    _check_memory(staged, floors, free_bytes())


async def _check_golden(model: Model, golden: GoldenPrompt) -> _Answer:
    # A token is at least one byte, so a right answer always has room; a wrong one is cut off.
    max_tokens = len(golden.answer.encode()) + _SPARE_TOKENS
    answer = await _ask(model, Prompt(messages=golden.messages), max_tokens=max_tokens)
    if answer.text != golden.answer:
        raise ProbeError(
            f"{model.name} {model.release.version} gives another answer on this device than its golden prompt says: "
            "publish it again with golden prompts that its base, quantised as it is, answers",
            code="golden_prompt_failed",
            evidence={
                "model": model.name,
                "prompt": golden.messages[-1].get("content", "")[:200],
                "expected": golden.answer[:400],
                "got": answer.text[:400],
            },
        )
    return answer


async def _check_changes(trial: Trial, base: Model) -> None:
    """Raise if the bare base says the very same, with the very same probabilities, to all of the prompts."""
    prompts = [Prompt(messages=golden.messages) for golden in trial.golden] or [_GREETING]
    bare = replace(base, profile=trial.model.profile)
    sampling = {"max_tokens": _COMPARED_TOKENS, "logprobs": _COMPARED_LOGPROBS}
    for prompt in prompts:
        with_adapter, without = await _ask(trial.model, prompt, **sampling), await _ask(bare, prompt, **sampling)
        if (with_adapter.text, with_adapter.logprobs) != (without.text, without.logprobs):
            return
    raise ProbeError(
        f"{trial.model.name} {trial.model.release.version} changes nothing: the bare base gives the same answers "
        "with the same probabilities. Look at how the adapter was trained and exported, and publish it again",
        code="adapter_changes_nothing",
        evidence={"model": trial.model.name, "prompts": str(len(prompts)), "got": without.text[:400]},
    )


def _check_speed(model: Model, answers: Sequence[_Answer], floor_tokens_per_s: float) -> None:
    """Raise if all the answers together came too slowly; the first token of each is the prompt's."""
    usages = [answer.usage for answer in answers if answer.usage]
    num_tokens = sum(max(usage.completion_tokens - 1, 0) for usage in usages)
    decode_s = sum(usage.decode_s for usage in usages)
    if num_tokens and num_tokens < floor_tokens_per_s * decode_s:
        raise TransientError(
            f"{model.name} makes {num_tokens / decode_s:.1f} tokens/s on this device, {floor_tokens_per_s:.1f} are "
            "demanded: look at what else runs on it, or roll out a smaller base",
            code="too_slow",
            evidence={
                "model": model.name,
                "tokens_per_s": f"{num_tokens / decode_s:.1f}",
                "floor": f"{floor_tokens_per_s:.1f}",
            },
        )


def _check_memory(staged: Served, floors: Floors, free_bytes: int) -> None:
    taken_bytes, most_bytes = staged.child.pss_bytes(), floors.most_memory_bytes
    if most_bytes is not None and taken_bytes > most_bytes:
        raise TransientError(
            f"the engine takes {taken_bytes} bytes of memory with this set, {most_bytes} are allowed: "
            "roll out a smaller base or fewer adapters",
            code="not_enough_memory",
            evidence={"engine_bytes": str(taken_bytes), "limit_bytes": str(most_bytes)},
        )
    if free_bytes < floors.free_memory_bytes:
        raise TransientError(
            f"this set leaves {free_bytes} bytes of memory free, {floors.free_memory_bytes} are demanded: "
            "look at what else runs on the device, or roll out a smaller base or fewer adapters",
            code="not_enough_memory",
            evidence={"free_bytes": str(free_bytes), "floor_bytes": str(floors.free_memory_bytes)},
        )


async def _ask(model: Model, prompt: Prompt, **sampling: int) -> _Answer:
    """The greedy answer; a request that the engine turns down is a failed probe."""
    try:
        profile = Profile(model.profile.business, {"temperature": 0.0, **sampling})
        with closing(model.child.submit([prompt], adapter=model.adapter, profile=profile)) as coming:
            pieces = [piece async for piece in coming]
    except EngineRefusedError as error:
        raise ProbeError(
            f"{model.name} can't answer: {error}", code=error.code, evidence={"model": model.name}
        ) from error
    text = "".join(piece.text for piece in pieces)
    return _Answer(text, pieces[-1].usage, [logprobs for piece in pieces for logprobs in piece.logprobs])
