from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent.part_file import Pieces
from edge_agent.store import Store
from engine.artifact import MANIFEST_NAME, read_manifest
from engine.errors import BundleError
from registry.chunking import index_bundle
from tests.simulators.bundles import make_adapter, make_base


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def bring(store: Store, source: Path) -> str:
    """All files of a bundle into the partial directory, as the fetcher leaves them."""
    manifest, digest = read_manifest(source)
    store.begin(digest, (source / MANIFEST_NAME).read_bytes())
    index = store.keep_index(digest, manifest, index_bundle(source, source.with_suffix(".index")).path.read_bytes())
    for file in index.files:
        content = (source / file.path).read_bytes()
        with store.open_part(digest, file) as part:
            for place in part.missing():
                assert part.land(place, [content[place.offset : place.offset + place.chunk.size_bytes]])
            store.finish_file(part)
    return digest


def test_a_bundle_counts_once_it_is_whole(store: Store, tmp_path: Path) -> None:
    make_base(tmp_path / "base", "base")
    digest = bring(store, tmp_path / "base")
    assert not store.holds(digest)
    store.complete(digest)
    assert store.holds(digest)
    assert read_manifest(store.bundle(digest))[1] == digest
    store.complete(digest)


def test_a_manifest_of_another_digest_is_refused(store: Store, tmp_path: Path) -> None:
    make_base(tmp_path / "base", "base")
    with pytest.raises(BundleError, match="another digest"):
        store.begin("0" * 64, (tmp_path / "base" / MANIFEST_NAME).read_bytes())


def test_rot_between_download_and_use_is_found(store: Store, tmp_path: Path) -> None:
    digest = make_base(tmp_path / "base", "base")
    bring(store, tmp_path / "base")
    weights = tmp_path / "state" / "partial" / digest / "weights.safetensors"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    with pytest.raises(BundleError, match="SHA-256"):
        store.complete(digest)
    assert not store.holds(digest)
    assert [entry.path for entry in store.missing_files(digest, store.manifest(digest))] == ["weights.safetensors"]


def test_a_part_takes_its_room_at_once(store: Store, tmp_path: Path) -> None:
    digest = make_base(tmp_path / "base", "base", size_bytes=1_000_000)
    manifest = store.begin(digest, (tmp_path / "base" / MANIFEST_NAME).read_bytes())
    assert store.room_needed(digest, manifest) == 1_000_002
    index = store.keep_index(digest, manifest, index_bundle(tmp_path / "base", tmp_path / "index").path.read_bytes())
    weights = next(file for file in index.files if file.size_bytes == 1_000_000)
    store.open_part(digest, weights).close()
    assert store.room_needed(digest, manifest) == 2
    assert store.missing_bytes(digest, manifest) == 1_000_002


def test_a_chunk_is_written_only_if_it_is_right_and_the_part_is_open(store: Store, tmp_path: Path) -> None:
    digest = make_base(tmp_path / "base", "base")
    manifest = store.begin(digest, (tmp_path / "base" / MANIFEST_NAME).read_bytes())
    index = store.keep_index(digest, manifest, index_bundle(tmp_path / "base", tmp_path / "index").path.read_bytes())
    with store.open_part(digest, index.files[0]) as part:
        (place,) = part.missing()
        assert not part.land(place, [b"{]"])
    assert not part.land(place, [b"{}"])
    assert part.path.read_bytes() == b"\0\0"


def test_a_file_that_another_bundle_has_is_not_fetched(store: Store, tmp_path: Path) -> None:
    make_base(tmp_path / "one", "one")
    store.complete(bring(store, tmp_path / "one"))
    digest = make_base(tmp_path / "two", "two")
    manifest = store.begin(digest, (tmp_path / "two" / MANIFEST_NAME).read_bytes())
    reused = {entry.path: store.reuse_file(digest, entry) for entry in manifest.files}
    assert reused == {"tokenizer.json": True, "weights.safetensors": False}


def test_garbage_goes_and_what_is_kept_stays(store: Store, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "base")
    adapter = make_adapter(tmp_path / "adapter", tmp_path / "base", "adapter")
    for name in ("base", "adapter"):
        store.complete(bring(store, tmp_path / name))
    half = make_base(tmp_path / "half", "half")
    store.begin(half, (tmp_path / "half" / MANIFEST_NAME).read_bytes())
    assert store.collect(keep={base}) == 2
    assert store.holds(base)
    assert not store.holds(adapter)
    assert store.manifest(half) is None


class SmallDisk(Store):
    """Has fewer bytes free the more bundles there are."""

    def free_bytes(self) -> int:
        return 10_000 - 1000 * sum(1 for _ in self._bundles.iterdir())


@pytest.fixture
def spare(tmp_path: Path) -> tuple[Store, dict[str, str]]:
    """A base in use and three adapters of 500 bytes, a manifest and an index each."""
    store = SmallDisk(tmp_path / "state")
    digests = {"base": make_base(tmp_path / "base", "base")}
    for name in ("old", "older", "new"):
        digests[name] = make_adapter(tmp_path / name, tmp_path / "base", name)
    for age_s, name in enumerate(["base", "new", "old", "older"]):
        store.complete(bring(store, tmp_path / name))
        os.utime(store.bundle(digests[name]), (1e9 - age_s, 1e9 - age_s))
    return store, digests


def held(store: Store, digests: dict[str, str]) -> set[str]:
    return {name for name, digest in digests.items() if store.holds(digest)}


@pytest.mark.parametrize(
    ("num_fitting", "kept"), [(0, set()), (1, {"new"}), (2, {"new", "old"}), (3, {"new", "old", "older"})]
)
def test_spare_adapters_stay_within_their_bytes(spare, num_fitting: int, kept: set[str]) -> None:
    store, digests = spare
    one = sum(path.stat().st_size for path in store.bundle(digests["older"]).iterdir())
    store.collect({digests["base"]}, num_fitting * (one + 20))
    assert held(store, digests) == {"base", *kept}


def test_an_adapter_in_use_was_used_last(spare) -> None:
    store, digests = spare
    store.collect({digests["base"], digests["older"]}, 1 << 20)
    store.make_room(8000, {digests["base"]})
    assert held(store, digests) == {"base", "older"}


@pytest.mark.parametrize(
    ("free_bytes", "kept"),
    [(6000, {"new", "old", "older"}), (7000, {"new", "old"}), (8000, {"new"}), (1 << 20, set())],
)
def test_room_is_made_by_the_adapter_used_longest_ago(spare, free_bytes: int, kept: set[str]) -> None:
    store, digests = spare
    store.make_room(free_bytes, {digests["base"]})
    assert held(store, digests) == {"base", *kept}


def test_spare_bases_go_at_once(spare) -> None:
    store, digests = spare
    store.collect({digests["new"]}, 1 << 20)
    assert held(store, digests) == {"old", "older", "new"}


def test_damaged_bundles_are_dropped_and_whole_ones_kept(store: Store, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "base")
    adapter = make_adapter(tmp_path / "adapter", tmp_path / "base", "adapter")
    for name in ("base", "adapter"):
        store.complete(bring(store, tmp_path / name))
    (store.bundle(adapter) / "adapter.safetensors").write_bytes(b"rot")
    assert store.drop_damaged([base, adapter]) == [adapter]
    assert store.holds(base)
    assert not store.holds(adapter)
    parts = store.incoming(adapter, "adapter.safetensors").parent
    on_its_way = sorted(path.name for path in parts.iterdir())
    assert store.drop_damaged([adapter]) == []
    assert sorted(path.name for path in parts.iterdir()) == on_its_way


def test_a_disk_that_takes_one_byte_at_a_time_gets_all_of_them(tmp_path: Path) -> None:
    def one_byte(descriptor: int, pieces: Pieces, offset: int) -> int:
        return os.pwrite(descriptor, bytes(pieces[0][:1]), offset)

    store = Store(tmp_path / "state", one_byte)
    make_base(tmp_path / "base", "base")
    store.complete(bring(store, tmp_path / "base"))
