"""Bundles of random weights for the measurements, and how they get into the catalogue without a conversion.

`python -m deploy.bench.ota.releases NAME@VERSION=DIRECTORY ...` publishes bundles in the database that the environment
names.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from engine.artifact import BASE_WEIGHTS, Architecture, BaseManifest, TokenizerInfo, describe_files, write_manifest
from engine.tensor_file import TensorSpec, write_tensor_file

_ARCHITECTURE: Final = Architecture(
    family="qwen3",
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151_936,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    attention_bias=False,
    qk_norm=True,
)
_TOKENIZER: Final = TokenizerInfo("0" * 64, "1" * 64, eos_token_ids=(1,))
_LAYER_TENSORS: Final = {"norm": 4 << 10, "qkv": 1100 << 10, "out": 560 << 10, "gate": 1700 << 10, "down": 1700 << 10}
_EMBEDDING_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle, its release digest, and the size of its weights in bytes."""

    directory: Path
    digest: str
    size_bytes: int


def tensor_sizes(size_bytes: int) -> dict[str, int]:
    """Names and sizes of tensors that make up about so many bytes, in the proportions of a small model."""
    layer_bytes = sum(_LAYER_TENSORS.values())
    num_layers = max(1, round(size_bytes * (1 - _EMBEDDING_SHARE) / layer_bytes))
    sizes = {f"layers.{n}.{name}": size for n in range(num_layers) for name, size in _LAYER_TENSORS.items()}
    return {"embedding": max(64, int(size_bytes * _EMBEDDING_SHARE) // 64 * 64), **sizes}


def make_bundle(directory: Path, sizes: Mapping[str, int], seeds: Mapping[str, int], text: str = "{}") -> Bundle:
    """A base with these tensors; each one's bytes depend on its seed alone. `text` is its tokenizer file."""
    directory.mkdir(parents=True)
    specs = [TensorSpec(name, "U8", (size,)) for name, size in sizes.items()]

    def produce(name: str) -> np.ndarray:
        return np.frombuffer(np.random.default_rng(seeds[name]).bytes(sizes[name]), np.uint8)

    write_tensor_file(directory / BASE_WEIGHTS, specs, produce)
    (directory / "tokenizer.json").write_text(text)
    files = describe_files(directory, [BASE_WEIGHTS, "tokenizer.json"])
    digest = write_manifest(directory, BaseManifest(_ARCHITECTURE, _TOKENIZER, "int4", files))
    return Bundle(directory, digest, sum(sizes.values()))


def changed(sizes: Mapping[str, int], seeds: Mapping[str, int], share: float, rng: random.Random) -> dict[str, int]:
    """Seeds of which tensors of at most this share of all bytes are new, chosen at random."""
    budget, new = share * sum(sizes.values()), dict(seeds)
    for name in rng.sample(sorted(sizes), len(sizes)):
        if sizes[name] <= budget:
            budget -= sizes[name]
            new[name] = seeds[name] + 1_000_000
    return new


def _publish(ref: str, bundle: Path) -> None:
    from django.conf import settings  # noqa: PLC0415 - Django has to be set up first

    from registry import publications  # noqa: PLC0415
    from registry.chunking import index_bundle  # noqa: PLC0415
    from registry.models import Publication  # noqa: PLC0415
    from registry.states import PublicationState  # noqa: PLC0415

    name, version = ref.split("@")
    row = Publication.objects.create(
        kind="base",
        name=name,
        version=version,
        archive_sha256="0" * 64,
        archive_size_bytes=1,
        state=PublicationState.CONVERTING,
        created_by="bench",
    )
    scratch = Path(settings.SOCLE_BLOB_DIR) / "staging" / str(row.pk)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    indexed = index_bundle(bundle, scratch)
    publications.publish(claim=publications.Claim(row.pk, row.attempt), bundle=bundle, indexed=indexed)


if __name__ == "__main__":
    import django

    django.setup()
    for argument in sys.argv[1:]:
        its_ref, _, its_directory = argument.partition("=")
        _publish(its_ref, Path(its_directory))
