"""Eight businesses on one device: open-loop arrivals of real requests, and what each business had to wait.

The same arrivals are replayed under "deadlines" and under "first_come". Rates are set so that the device is busy for a
given share of the time, as measured on it before.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deploy.bench.plugins.device import Device
from deploy.demo.data import held_out

_BATCH: Final = 8


@dataclass(frozen=True, slots=True)
class Kind:
    """A business: its class and what it asks; `history_turns` make prompts long, `share` is of the device's time."""

    name: str
    task: str
    deadline: str
    priority: int
    share: float
    history_turns: int = 0
    max_tokens: int = 40

    @property
    def options(self) -> dict[str, Any]:
        """What the device's configuration says of it."""
        return {"name": self.name, "priority": self.priority, "deadline": self.deadline}


KINDS: Final = (
    Kind("voice-home", "home", "urgent", 20, 0.06),
    Kind("voice-car", "car", "urgent", 20, 0.06),
    Kind("panel", "home-2", "interactive", 10, 0.09, history_turns=2),
    Kind("dialogue", "car", "interactive", 10, 0.09, history_turns=4, max_tokens=60),
    Kind("search", "home", "interactive", 10, 0.10, history_turns=6),
    Kind("digest-mail", "summary", "patient", 0, 0.20, history_turns=9, max_tokens=120),
    Kind("digest-chat", "summary", "patient", 0, 0.20, history_turns=9, max_tokens=120),
    Kind("digest-news", "summary", "patient", 0, 0.20, history_turns=12, max_tokens=120),
)
"""Three classes; the patient ones have by far the most work."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request at a moment (seconds from the start)."""

    at_s: float
    kind: Kind
    messages: list[dict[str, str]]


@dataclass(slots=True)
class Got:
    """What came of it, in seconds from its moment; `num_refusals` counts 503 and 429 that were waited out."""

    ask: Ask
    ttft_s: float = 0.0
    completion_s: float = 0.0
    text: str = ""
    num_tokens: int = 0
    num_refusals: int = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """Of the device: tokens/s of a prompt, and of answers that run together."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    def seconds(self, prompt_tokens: float, answer_tokens: float) -> float:
        """What a request takes of the device's time."""
        return prompt_tokens / self.prefill_tokens_per_s + answer_tokens / self.decode_tokens_per_s


@dataclass(slots=True)
class Run:
    """One replay."""

    policy: str
    got: list[Got] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens of all businesses over the whole run."""
        return sum(got.num_tokens for got in self.got) / self.seconds


def conversations(kind: Kind, seed: int) -> Iterator[list[dict[str, str]]]:
    """Requests of a business, each behind a history of its own."""
    samples = held_out(kind.task, "test", 200, seed=seed)
    rng = random.Random(f"{kind.name}-{seed}")
    while True:
        messages: list[dict[str, str]] = []
        for sample in rng.choices(samples, k=kind.history_turns):
            messages += [message.as_dict() for message in sample.messages if message.role == "user"]
            messages.append({"role": "assistant", "content": sample.answer})
        last = rng.choice(samples)
        yield messages + [message.as_dict() for message in last.messages if message.role == "user"]


async def measure_speed(device: Device) -> Speed:
    """Prefill of one long prompt, decode of some answers together."""
    kind = KINDS[-1]
    stream = conversations(kind, seed=99)
    usages = [(await _complete(device, Ask(0, kind, next(stream)), max_tokens=2))["socle"] for _ in range(3)]
    prefill = max(usage["prefill_tokens_per_s"] for usage in usages)
    asks = [Ask(0, KINDS[0], [{"role": "user", "content": f"say {number}"}]) for number in range(_BATCH)]
    body = {"max_tokens": 64, "stop": ["\0never"], "temperature": 1.5, "seed": 1}
    started_s = time.perf_counter()
    answers = await asyncio.gather(*(_complete(device, ask, **body) for ask in asks))
    decode = sum(answer["usage"]["completion_tokens"] for answer in answers) / (time.perf_counter() - started_s)
    return Speed(prefill, decode)


async def _complete(device: Device, ask: Ask, **changes: Any) -> dict[str, Any]:
    response = await device.api.post("/v1/chat/completions", json=_body(ask) | changes)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


async def plan(device: Device, speed: Speed, *, seconds: float, utilisation: float, seed: int) -> list[Ask]:
    """Poisson arrivals of each business, in order of time."""
    asks = []
    for kind in KINDS:
        stream = conversations(kind, seed)
        probe = await _complete(device, Ask(0, kind, next(stream)))
        cost_s = speed.seconds(probe["usage"]["prompt_tokens"], probe["usage"]["completion_tokens"])
        rng, at_s = random.Random(f"{kind.name}-arrivals-{seed}"), 0.0
        while (at_s := at_s + rng.expovariate(kind.share * utilisation / cost_s)) < seconds:
            asks.append(Ask(at_s, kind, next(stream)))
    return sorted(asks, key=lambda ask: ask.at_s)


async def replay(device: Device, policy: str, asks: list[Ask]) -> Run:
    """Send each request at its moment, whatever became of the others."""
    run = Run(policy)
    started_s = time.perf_counter()
    run.got = list(await asyncio.gather(*(_ask_at(device, ask, started_s) for ask in asks)))
    run.seconds = time.perf_counter() - started_s
    return run


async def answers_alone(device: Device, asks: list[Ask]) -> list[str]:
    """The answers to the same requests, one after the other on an idle device."""
    return [(await _stream(device, Got(ask), time.perf_counter())).text for ask in asks]


async def _ask_at(device: Device, ask: Ask, started_s: float) -> Got:
    await asyncio.sleep(max(0.0, started_s + ask.at_s - time.perf_counter()))
    return await _stream(device, Got(ask), started_s + ask.at_s)


async def _stream(device: Device, got: Got, due_s: float) -> Got:
    """One streamed answer; told to come back, it does."""
    body = _body(got.ask) | {"stream": True, "stream_options": {"include_usage": True}}
    while True:
        async with device.api.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code in (429, 503):
                got.num_refusals += 1
                await asyncio.sleep(float(response.headers["Retry-After"]))
                continue
            response.raise_for_status()
            async for line in response.aiter_lines():
                _take(got, line, due_s)
        got.completion_s = time.perf_counter() - due_s
        return got


def _take(got: Got, line: str, due_s: float) -> None:
    if not line.startswith("data: {"):
        return
    chunk: Mapping[str, Any] = json.loads(line.removeprefix("data: "))
    if usage := chunk.get("usage"):
        got.num_tokens = usage["completion_tokens"]
    for choice in chunk["choices"]:
        if text := choice["delta"].get("content"):
            got.ttft_s = got.ttft_s or time.perf_counter() - due_s
            got.text += text


def _body(ask: Ask) -> dict[str, Any]:
    return {"model": ask.kind.name, "messages": ask.messages, "temperature": 0.0, "max_tokens": ask.kind.max_tokens}
