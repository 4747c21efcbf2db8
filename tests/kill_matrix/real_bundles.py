"""Tiny bundles with weights for the real engine, and what it answers with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from engine.config import EngineConfig
from engine.convert import convert_adapter, convert_base
from engine.runtime import Engine
from engine.sampling import SamplingParams
from tests.engine.golden_cases import GOLDEN_CASES
from tests.kill_matrix.agent import MAX_TOKENS, MESSAGES

_BASES = {"real-base-a": "qwen3", "real-base-b": "llama"}
_ADAPTERS = {"real-home-1": ("real-base-a", 1), "real-home-2": ("real-base-a", 4), "real-home-b": ("real-base-b", 1)}
"""Directory: that of its base, and how many times stronger it is than the committed one."""


def make_real_bundles(directory: Path) -> Mapping[str, str]:
    """Directories of bundles, and the names of the models that they are."""
    sources = {name: next(c for c in GOLDEN_CASES if c.name == case) for name, case in _BASES.items()}
    for name, case in sources.items():
        convert_base(case.checkpoint, directory / name, weights="float32")
    for name, (base, strength) in _ADAPTERS.items():
        source = Path(shutil.copytree(sources[base].adapter, directory / f"{name}.source"))
        config = json.loads((source / "adapter_config.json").read_text())
        config["lora_alpha"] *= strength
        (source / "adapter_config.json").write_text(json.dumps(config))
        convert_adapter(source, directory / base, directory / name)
    return dict.fromkeys(_BASES, "base") | dict.fromkeys(_ADAPTERS, "home")


def real_answers(directory: Path) -> dict[str, str]:
    """What each adapter answers, by directory; from an engine in this process."""
    return {name: _answer(directory / base, directory / name) for name, (base, _) in _ADAPTERS.items()}


def _answer(base: Path, adapter: Path) -> str:
    engine = Engine.open(base, EngineConfig(num_threads=1))
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    outputs = engine.generate(MESSAGES, adapter=engine.load_adapter(adapter), sampling=greedy)
    answer = "".join(output.text for output in outputs)
    engine.close()
    return answer
