"""Unpacking what is hostile. Refusals that people meet are tested over HTTP in `test_publish`."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.archives import ArchiveError, Limits, TruncatedArchiveError, UnpackedTooLargeError, unpack
from tests.registry.sources import Files, entry, tar_of, zip_of

LIMITS = Limits(max_total_bytes=1 << 20)
FILES: Files = {"config.json": b"{}", "model.safetensors": b"\x01" * 5000, "README.md": b"text"}
NEEDED = {"config.json", "model.safetensors"}


def unpacked(data: bytes, tmp_path: Path, limits: Limits = LIMITS) -> Path:
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    return unpack(archive, tmp_path / "unpacked" / "target", limits=limits)


def code_of(data: bytes, tmp_path: Path, limits: Limits = LIMITS) -> str:
    with pytest.raises(ArchiveError) as caught:
        unpacked(data, tmp_path, limits)
    return caught.value.code


@pytest.mark.parametrize("top", ["", "./", "model/", "./model/"])
@pytest.mark.parametrize("pack", [tar_of, zip_of, lambda files, top: tar_of(files, mode="w:gz", top=top)])
def test_only_needed_files_reach_the_disk(tmp_path, pack, top) -> None:
    root = unpacked(pack(FILES, top=top), tmp_path)
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {name: FILES[name] for name in NEEDED}
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == NEEDED | {"archive"}


def test_entries_of_directories_are_no_files(tmp_path) -> None:
    data = tar_of(FILES, extra=[entry("empty", tarfile.DIRTYPE), entry("more.json", tarfile.DIRTYPE)])
    assert {path.name for path in unpacked(data, tmp_path).iterdir()} == NEEDED


def test_modes_in_the_archive_mean_nothing(tmp_path) -> None:
    info = entry("config.json", tarfile.REGTYPE)
    info.mode = 0o6777
    root = unpacked(tar_of({}, extra=[info]), tmp_path)
    assert (root / "config.json").stat().st_mode & 0o7111 == 0


def test_long_names_in_other_scripts_are_fine(tmp_path) -> None:
    name = "分词器" * 20 + ".json"
    assert (unpacked(tar_of({name: b"{}", "b.json": b""}), tmp_path) / name).read_bytes() == b"{}"


def with_flipped_byte(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def pax_of(size: int) -> bytes:
    """A tar whose extended header has `size` bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("config.json")
        info.pax_headers = {"comment": "x" * size}
        archive.addfile(info)
    return buffer.getvalue()


def lying_zip(declared: int) -> bytes:
    """A zip whose directory declares another size than the file has."""
    data = zip_of({"zeros.json": bytes(100_000)})
    return data.replace((100_000).to_bytes(4, "little"), declared.to_bytes(4, "little"))


def sparse_tar() -> bytes:
    info = entry("huge.json", tarfile.GNUTYPE_SPARSE)
    return tar_of({}, extra=[info])


def zip_with_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link.json")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def encrypted_zip() -> bytes:
    data = bytearray(zip_of({"config.json": b"{}"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


HOSTILE = {
    "path_traversal in a hidden part": tar_of({".hidden/../../x.txt": b""}),
    "path_traversal by a drive": zip_of({"C:x.json": b""}),
    "path_traversal by a control character": tar_of({"a\nb.json": b""}),
    "path_traversal by length": tar_of({"a" * 241 + ".json": b""}),
    "duplicate_entry file and directory": tar_of({"a.json": b"", "a.json/b.json": b""}),
    "duplicate_entry directory and file": tar_of({"a.json/b.json": b"", "a.json": b""}),
    "duplicate_entry that is not needed": tar_of({"a.md": b""}, extra=[entry("./a.md", tarfile.REGTYPE)]),
    "unsupported_entry fifo": tar_of({}, extra=[entry("pipe.json", tarfile.FIFOTYPE)]),
    "unsupported_entry sparse": sparse_tar(),
    "unsupported_entry link in a zip": zip_with_link(),
    "unsupported_entry encrypted": encrypted_zip(),
    "pickle_file in a directory": tar_of({"checkpoint-1/optimizer.pt": b""}),
    "too_large header": pax_of(5 << 20),
    "too_large file": tar_of({"a.json": bytes((1 << 20) + 1)}),
    "too_large although not needed": tar_of({"a.md": bytes((1 << 20) + 1)}),
    "truncated_archive flipped zip": with_flipped_byte(zip_of({"a.json": bytes(range(256)) * 9}), 60),
    "truncated_archive flipped gz": with_flipped_byte(tar_of(FILES, mode="w:gz"), -6),
    "truncated_archive zip that is longer": lying_zip(200_000),
    "truncated_archive zip that is shorter": lying_zip(50_000),
    "truncated_archive tar in its first header": tar_of(FILES)[:400],
    "unsupported_archive gz of something else": gzip.compress(b"no tar in here" * 100),
    "unsupported_archive bzip2": tar_of(FILES, mode="w:bz2"),
    "unsupported_archive empty": b"",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(tmp_path, case) -> None:
    assert code_of(HOSTILE[case], tmp_path) == case.split()[0]


def test_a_bomb_is_refused_before_it_is_written(tmp_path) -> None:
    limits = Limits(max_total_bytes=1 << 40, ratio_free_bytes=1 << 20)
    assert code_of(tar_of({"zeros.json": bytes(64 << 20)}, mode="w:gz"), tmp_path, limits) == "too_large"
    assert sum(path.stat().st_size for path in (tmp_path / "unpacked").rglob("*") if path.is_file()) == 0


def test_padding_after_the_end_is_bounded(tmp_path) -> None:
    padded = gzip.compress(tar_of(FILES) + bytes(1 << 20))
    assert unpacked(padded, tmp_path).is_dir()
    other = tmp_path / "other"
    other.mkdir()
    assert code_of(gzip.compress(tar_of(FILES) + bytes(8 << 20)), other) == "too_large"


@pytest.mark.parametrize("pack", [tar_of, zip_of, lambda files: tar_of(files, mode="w:gz")])
def test_a_cut_anywhere_is_noticed(tmp_path, pack) -> None:
    data = pack(FILES)
    whole = len(data.rstrip(b"\0")) if pack is tar_of else len(data)
    for length in range(600, whole, 97):
        folder = tmp_path / str(length)
        folder.mkdir()
        with pytest.raises((TruncatedArchiveError, UnpackedTooLargeError)):
            unpacked(data[:length], folder)


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from([tar_of(FILES), zip_of(FILES), tar_of(FILES, mode="w:gz"), pax_of(10)]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
def test_no_damage_does_anything_but_a_refusal(data, changes) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    with TemporaryDirectory() as folder:
        with suppress(ArchiveError):
            unpacked(bytes(damaged), Path(folder))
        written = {path for path in Path(folder).rglob("*") if path.is_file() and path.name != "archive"}
        assert all(path.is_relative_to(Path(folder) / "unpacked" / "target") for path in written)
