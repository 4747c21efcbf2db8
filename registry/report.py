"""What people want to know of a release at a glance, from its manifest. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from engine.artifact import AdapterManifest, Architecture, BaseManifest, Manifest


def describe(manifest: Manifest) -> dict[str, Any]:
    """The report that is kept with a release, as plain JSON."""
    return _base(manifest) if isinstance(manifest, BaseManifest) else _adapter(manifest)


def _base(manifest: BaseManifest) -> dict[str, Any]:
    return {
        "weights": manifest.weights,
        "num_parameters": num_parameters(manifest.architecture),
        "kv_bytes_per_token": manifest.architecture.kv_bytes_per_token(),
        "architecture": asdict(manifest.architecture),
        "agreement": dict(manifest.agreement),
    }


def _adapter(manifest: AdapterManifest) -> dict[str, Any]:
    ranks = manifest.ranks.values()
    return {
        "num_modules": len(ranks),
        "max_rank": max(ranks, default=0),
        "modules": sorted({path.rsplit(".", 1)[-1] for path in manifest.ranks}),
        "business": dict(manifest.business),
        "num_golden_prompts": len(manifest.golden_prompts),
    }


def num_parameters(architecture: Architecture) -> int:
    """Weights of the model, a tied head counted once."""
    a = architecture
    query, key_value = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    attention = a.hidden_size * (2 * query + 2 * key_value)
    biases = query + 2 * key_value if a.attention_bias else 0
    norms = 2 * a.hidden_size + (2 * a.head_dim if a.qk_norm else 0)
    layer = attention + biases + 3 * a.hidden_size * a.intermediate_size + norms
    embeddings = math.prod((a.vocab_size, a.hidden_size, 1 if a.tie_word_embeddings else 2))
    return a.num_hidden_layers * layer + embeddings + a.hidden_size
