"""How releases are cut, packed and indexed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from engine.artifact import parse_manifest
from engine.chunk_index import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, parse_index
from registry import indexes, queries, tasks
from registry.chunking import chunk_sizes, index_bundle
from registry.garbage import collect_garbage
from registry.models import Release
from registry.storage import blob_store
from tests.registry.releases import put_base
from tests.simulators.bundles import make_base


@given(st.integers(0, 5 << 20), st.lists(st.integers(0, 5 << 20)))
def test_chunks_cover_the_file_and_keep_their_limits(size_bytes: int, starts: list[int]) -> None:
    sizes = list(chunk_sizes(size_bytes, sorted(start for start in starts if start < size_bytes)))
    assert sum(sizes) == size_bytes
    assert all(MIN_CHUNK_BYTES <= size <= MAX_CHUNK_BYTES for size in sizes[:-1])
    assert all(0 < size <= MAX_CHUNK_BYTES for size in sizes)


def chunks_of(bundle: Path, tensors: dict[str, bytes]) -> set[str]:
    make_base(bundle, bundle.name, tensors=tensors)
    index = index_bundle(bundle, bundle.with_suffix(".scratch")).index
    return {chunk.sha256 for file in index.files for chunk in file.chunks}


def test_a_tensor_that_two_releases_share_is_cut_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors = {name: rng.bytes(1_500_032) for name in "abc"}
    one = chunks_of(tmp_path / "one", tensors)
    two = chunks_of(tmp_path / "two", {"new": rng.bytes(400_000), **tensors, "a": rng.bytes(1_500_032)})
    assert len(one & two) >= 4  # b and c, two chunks each


@pytest.mark.django_db
def test_a_published_release_has_an_index_that_fits_it(publisher) -> None:
    publisher.publish_base()
    release = queries.find_release("tiny")
    data = indexes.read_index(release)
    index = parse_index(data, release.digest, parse_manifest(queries.manifest_bytes(release)))
    for file in index.files:
        stored = blob_store().path(file.object_sha256).read_bytes()
        assert hashlib.sha256(stored).hexdigest() == file.object_sha256
        row = release.files.get(path=file.path)
        assert (row.object_sha256, row.object_size_bytes) == (file.object_sha256, len(stored))
        pieces = []
        for place in file.placed():
            piece = stored[place.stored_offset : place.stored_end]
            pieces.append(zstandard.decompress(piece) if place.chunk.packed_bytes else piece)
            assert hashlib.sha256(pieces[-1]).hexdigest() == place.chunk.sha256
        assert hashlib.sha256(b"".join(pieces)).hexdigest() == file.sha256


@pytest.mark.django_db
def test_what_shrinks_is_packed_and_the_rest_is_left_alone(publisher) -> None:
    publisher.publish_base()
    release = queries.find_release("tiny")
    objects = {row.path: (row.object_sha256 != row.sha256) for row in release.files.all()}
    assert objects["tokenizer.json"]
    assert not objects["chat_template.jinja"]


@pytest.mark.django_db
def test_an_old_release_gets_its_index_from_a_worker(blob_dir: Path, tmp_path: Path, stored) -> None:
    release = put_base(tmp_path, "tiny@1.0.0", content="words " * 10_000)
    assert indexes.read_index(release) is None
    tasks.send_for_index(release.digest)
    data = indexes.ensure_index(release)
    assert indexes.read_index(queries.find_release("tiny")) == data
    collect_garbage()
    assert len(stored()) == 3  # file, packed object, index


@pytest.mark.django_db
def test_releases_of_the_same_content_share_their_index(blob_dir: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        put_base(tmp_path, f"tiny@{version}", content="words " * 10_000)
    indexes.ensure_index(queries.find_release("tiny@1.0.0"))
    names = set(Release.objects.values_list("index_sha256", flat=True))
    assert len(names) == 1
    assert names != {""}
