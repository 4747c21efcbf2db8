from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.artifact import read_manifest
from engine.chunk_index import ChunkIndex, IndexMismatchError, encode_index, parse_index
from registry.chunking import index_bundle
from tests.simulators.bundles import make_adapter, make_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_base(tmp_path / "base", "base", size_bytes=3 << 20)
    return tmp_path / "base"


def parsed(bundle: Path, data: bytes) -> ChunkIndex:
    manifest, digest = read_manifest(bundle)
    return parse_index(data, digest, manifest)


def test_what_was_written_is_read(base: Path, tmp_path: Path) -> None:
    made = index_bundle(base, tmp_path / "scratch")
    assert parsed(base, made.path.read_bytes()) == made.index
    assert encode_index(made.index) == made.path.read_bytes()
    assert [(f.path, len(f.chunks)) for f in made.index.files] == [("tokenizer.json", 1), ("weights.safetensors", 3)]


def test_the_index_of_an_adapter_names_its_base(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", base, "adapter")
    index = index_bundle(tmp_path / "adapter", tmp_path / "scratch").index
    assert (index.kind, index.base) == ("adapter", read_manifest(base)[1])


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets one value, given as `files.1.size_bytes`."""

    def apply(document: dict[str, Any]) -> None:
        *places, last = [int(p) if p.isdecimal() else p for p in path.split(".")]
        for place in places:
            document = document[place]
        document[last] = value

    return apply


REFUSED = {
    "another release": (change("release", "0" * 64), "another release"),
    "another kind": (change("kind", "adapter"), "another release"),
    "another base": (change("base", "0" * 64), "another release"),
    "a newer format": (change("format", 2), "update the agent"),
    "an unknown field": (change("colour", "red"), "bad index"),
    "a path out of the directory": (change("files.1.path", "../x"), "other files"),
    "another size": (change("files.1.size_bytes", 1 << 60), "other files"),
    "another file": (change("files.1.sha256", "0" * 64), "other files"),
    "a file too few": (lambda document: document["files"].pop(), "other files"),
    "an object that is no digest": (change("files.1.object_sha256", "../../etc/passwd"), "of its object"),
    "a chunk that is no digest": (change("files.1.chunks.0.sha256", "x"), "of chunk 0"),
    "a chunk too large": (change("files.1.chunks.0.size_bytes", 1 << 30), "chunk 0 has"),
    "a chunk too small": (change("files.1.chunks.0.size_bytes", 1), "chunk 0 has"),
    "an empty chunk": (change("files.1.chunks.2.size_bytes", 0), "chunk 2 has"),
    "a negative size": (change("files.1.chunks.0.size_bytes", -1), "chunk 0 has"),
    "packed larger than it is": (change("files.1.chunks.0.packed_bytes", 1 << 20), "is packed in"),
    "packed in less than nothing": (change("files.1.chunks.0.packed_bytes", -1), "is packed in"),
    "packed in the file itself": (change("files.1.chunks.0.packed_bytes", 5), "the file itself"),
    "a chunk too few": (lambda document: document["files"][1]["chunks"].pop(), "add up"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_index_that_is_refused(base: Path, tmp_path: Path, case: str) -> None:
    spoil, words = REFUSED[case]
    document = json.loads(index_bundle(base, tmp_path / "scratch").path.read_bytes())
    spoil(document)
    with pytest.raises(IndexMismatchError, match=words):
        parsed(base, json.dumps(document).encode())


def test_an_index_without_end_is_not_parsed(base: Path) -> None:
    with pytest.raises(IndexMismatchError, match="are allowed"):
        parsed(base, b"[" * (33 << 20))
