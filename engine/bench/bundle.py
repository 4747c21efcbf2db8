"""`python -m engine.bench bundle PATH`: speeds of a base with and without adapters, and memory.

Figures are medians over rounds in which all models take turns, so that they can be compared within one run. Prompts are
random tokens from a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from engine.config import EngineConfig
from engine.errors import EngineError
from engine.metrics import Usage
from engine.runtime import Engine
from engine.sampling import SamplingParams

PROMPT_SEED = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one model: the bare base, or the base with an adapter."""

    model: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_ms: float


def main(arguments: list[str]) -> None:
    """Measure and print; ends with status 1 and what to mend if a bundle is bad."""
    options = _parser().parse_args(arguments)
    try:
        _measure_and_print(options)
    except EngineError as error:
        sys.exit(f"{error.code}: {error}")


def _measure_and_print(options: argparse.Namespace) -> None:
    config = EngineConfig.from_mapping(options.config)
    started_at = time.perf_counter()
    engine = Engine.open(options.bundle, config)
    open_s = time.perf_counter() - started_at
    models = {"base": None} | {path.name: engine.load_adapter(path) for path in options.adapter}
    speeds = measure(engine, models, options.prompt_tokens, options.answer_tokens, options.rounds)
    stats = engine.stats()
    print(_table(speeds))
    report = {
        "backend": stats.backend,
        "open_s": open_s,
        "adapter_load_s": stats.adapter_load_s,
        "adapter_switch_s": stats.adapter_switch_s / max(1, stats.total.adapter_switches),
        "prompt_tokens": options.prompt_tokens,
        "answer_tokens": options.answer_tokens,
        "memory": asdict(stats.memory),
        "speeds": [asdict(speed) for speed in speeds],
    }
    print(json.dumps(report))
    engine.close()


def measure(
    engine: Engine, models: Mapping[str, str | None], prompt_tokens: int, answer_tokens: int, rounds: int
) -> list[Speed]:
    """Speeds by model; one round before the first one warms up."""
    generator = np.random.default_rng(PROMPT_SEED)
    prompt = generator.integers(0, engine.base.manifest.architecture.vocab_size, prompt_tokens).tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=answer_tokens, ignore_eos=True)
    usages: dict[str, list[Usage]] = {name: [] for name in models}
    for _ in range(1 + rounds):
        for name, adapter in models.items():
            outputs = list(engine.generate(prompt, adapter=adapter, sampling=sampling))
            usage = outputs[-1].usage
            assert usage is not None
            usages[name].append(usage)
    return [_speed(name, of_model[1:]) for name, of_model in usages.items()]


def _speed(model: str, usages: list[Usage]) -> Speed:
    return Speed(
        model,
        prefill_tokens_per_s=median(usage.prompt_tokens / usage.prefill_s for usage in usages),
        decode_tokens_per_s=median((usage.completion_tokens - 1) / usage.decode_s for usage in usages),
        ttft_ms=median(1000 * usage.ttft_s for usage in usages),
    )


def _table(speeds: list[Speed]) -> str:
    lines = [f"{'model':<24}{'prefill tokens/s':>18}{'decode tokens/s':>18}{'first token ms':>18}"]
    lines += [
        f"{s.model:<24}{s.prefill_tokens_per_s:>18.0f}{s.decode_tokens_per_s:>18.1f}{s.ttft_ms:>18.1f}" for s in speeds
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.bench bundle", description="Measure a base bundle.")
    parser.add_argument("bundle", type=Path, help="directory of the base bundle")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="adapter bundle; may be repeated")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=_at_least_two, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", type=json.loads, default={}, help='engine configuration, {"num_threads": 2, ...}')
    return parser


def _at_least_two(text: str) -> int:
    """The first token of an answer comes out of the prefill, so a decode needs a second one."""
    if (number := int(text)) < 2:
        raise argparse.ArgumentTypeError("at least 2")
    return number
