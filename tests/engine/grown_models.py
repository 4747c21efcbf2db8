"""The demo's directories, and small odd shapes to grow into: every size differs from the small model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.convert.growth import Shape

DEMO_MODELS = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "models"
DEMO_BASE = DEMO_MODELS / "base"

# For the demo's base. 322 / 256 is no square, and half of the 66 spare dimensions is an odd number.
ODD_SHAPE = Shape(
    hidden_size=322,
    num_hidden_layers=8,
    intermediate_size=832,
    num_attention_heads=12,
    num_key_value_heads=4,
    vocab_size=8100,
)


def demo_adapter(name: str) -> Path:
    """A PEFT directory."""
    return DEMO_MODELS / "adapters" / name


def golden_prompts(adapter: str) -> list[dict[str, Any]]:
    """Held-out requests with the answers that the adapter must give."""
    prompts: list[dict[str, Any]] = json.loads((demo_adapter(adapter) / "socle.json").read_text())["golden_prompts"]
    return prompts
