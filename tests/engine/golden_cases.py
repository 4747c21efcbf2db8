"""The committed goldens: checkpoints, adapters and what transformers and peft compute with them.

Use `@pytest.mark.parametrize("case", GOLDEN_CASES, ids=str)` and convert what is needed into a temporary directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.convert import convert_adapter, convert_base

GOLDENS = Path(__file__).resolve().parent / "goldens"


@dataclass(frozen=True)
class GoldenCase:
    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def checkpoint(self) -> Path:
        return GOLDENS / self.name / "checkpoint"

    @property
    def adapter(self) -> Path:
        return GOLDENS / self.name / "adapter"

    def expected(self, name: str) -> np.ndarray:
        """`token_ids` [num_tokens], `base_logits` and `adapter_logits` [num_tokens, vocab_size]."""
        with np.load(GOLDENS / self.name / "expected.npz") as arrays:
            return arrays[name]

    def convert(self, directory: Path) -> tuple[Path, Path]:
        """Base and adapter as float32 bundles in a directory."""
        base, adapter = directory / "base", directory / "adapter"
        convert_base(self.checkpoint, base, weights="float32")
        convert_adapter(self.adapter, base, adapter)
        return base, adapter


GOLDEN_CASES = [GoldenCase(path.parent.name) for path in sorted(GOLDENS.glob("*/expected.npz"))]


def golden_chats() -> dict[str, Any]:
    """Conversations and texts with the tokens that transformers makes of them on the qwen3 checkpoint."""
    return json.loads((GOLDENS / "chats.json").read_text(encoding="utf-8"))
