"""What only shows on a whole engine process: memory with many adapters, cached prompts, its return after a crash."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from typing import Any, Final

from deploy.bench.plugins.device import Device, device
from deploy.bench.plugins.figures import percentile
from deploy.bench.plugins.models import Models
from deploy.demo.lexicon import COMMON_HANZI

_HANG_S: Final = 2.0
_PREFIX_TOKENS: Final = 1000
_QUESTION: Final = {"messages": [{"role": "user", "content": "把客厅的灯打开"}], "temperature": 0.0, "max_tokens": 8}


async def measure_memory(models: Models, num_adapters: int) -> dict[str, Any]:
    """The engine's memory after all adapters have answered, beside what their files take, and what its ledger says."""
    adapters = {f"adapter-{index}": path for index, path in enumerate(models.adapters[:num_adapters])}
    async with device(models, adapters, engine={"adapter_budget_bytes": 4 << 30}, heartbeat_interval_s=0.1) as running:
        for name in adapters:
            await _ask(running, name)
        child = running.served.child
        await asyncio.sleep(2.0)  # an engine looks at its memory every tenth heartbeat
        pss_bytes, by_kind = child.pss_bytes(), dict(child.memory_bytes)
    files_bytes = Models(models.base, tuple(adapters.values())).files_bytes
    ledger_bytes = sum(size for kind, size in by_kind.items() if kind != "pss")
    return {
        "num_adapters": len(adapters),
        "files_mib": files_bytes / 2**20,
        "pss_mib": pss_bytes / 2**20,
        "pss_to_files": pss_bytes / files_bytes,
        "ledger_mib": {kind: size / 2**20 for kind, size in by_kind.items()},
        "ledger_to_pss": ledger_bytes / by_kind["pss"],
    }


async def measure_prefix(models: Models, num_pairs: int) -> dict[str, Any]:
    """A prompt of 1,000 tokens that is new, then the same with another end, in turns; and whether answers agree."""
    adapters = {"cached": models.adapter_of("home"), "plain": models.adapter_of("home", 1)}
    businesses = {"cached": {"prompt_cache": True}}
    cold_s, warm_s, cached_tokens, is_same = [], [], [], True
    async with device(models, adapters, engine={"prefix_cache_bytes": 1 << 30}, businesses=businesses) as running:
        for number in range(num_pairs):
            prefix = _random_text(number)
            for end, seconds in ((0, cold_s), (1, warm_s)):
                prompt = f"{prefix} {end}"
                answer = await _complete(running, "cached", prompt)
                seconds.append(answer["socle"]["ttft_s"])
                plain = await _complete(running, "plain", prompt)
                is_same = is_same and answer["choices"][0]["text"] == plain["choices"][0]["text"]
            cached_tokens.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            num_prompt_tokens = answer["usage"]["prompt_tokens"]
    return {
        "prompt_tokens": num_prompt_tokens,
        "cached_tokens": min(cached_tokens),
        "cold_ttft_ms": 1000 * percentile(cold_s, 50),
        "cached_ttft_ms": 1000 * percentile(warm_s, 50),
        "ratio": percentile(warm_s, 50) / percentile(cold_s, 50),
        "ratio_range": sorted(warm / cold for warm, cold in zip(warm_s, cold_s, strict=True))[:: max(1, num_pairs - 1)],
        "answers_agree": is_same,
    }


async def measure_restarts(models: Models, count: int) -> dict[str, Any]:
    """From the end of an engine process to its successor's first answer: after a kill, and after a hang was noticed."""
    adapters = {"home": models.adapter_of("home")}
    after_kill_s, after_hang_s = [], []
    async with device(models, adapters, engine={}, hang_timeout_s=_HANG_S, heartbeat_interval_s=0.1) as running:
        for signal_number, seconds in ((signal.SIGKILL, after_kill_s), (signal.SIGSTOP, after_hang_s)):
            for _ in range(count):
                seconds.append(await _time_to_return(running, signal_number))
    return {
        "count": count,
        "after_kill_s": [round(value, 2) for value in sorted(after_kill_s)],
        "after_hang_s": [round(value, 2) for value in sorted(after_hang_s)],
        "hang_noticed_after_s": _HANG_S,
    }


async def _time_to_return(running: Device, signal_number: int) -> float:
    await _ask(running, "home")
    child = running.served.child
    os.kill(child.pid, signal_number)
    while child.is_alive:
        await asyncio.sleep(0.002)
    gone_s = time.perf_counter()
    await running.until_serving()
    await _ask(running, "home")
    return time.perf_counter() - gone_s


async def _ask(running: Device, model: str) -> None:
    (await running.api.post("/v1/chat/completions", json={"model": model, **_QUESTION})).raise_for_status()


async def _complete(running: Device, model: str, prompt: str) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "temperature": 0.0, "max_tokens": 8}
    response = await running.api.post("/v1/completions", json=body)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def _random_text(seed: int) -> str:
    """Some 1,000 tokens: a common character is one."""
    return "".join(random.Random(seed).choices(COMMON_HANZI, k=_PREFIX_TOKENS))
