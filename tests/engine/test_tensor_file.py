from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.tensor_file import TensorFile, TensorFileError, TensorSpec, write_tensor_file

DTYPES = {"F16": np.float16, "F32": np.float32, "U8": np.uint8, "I64": np.int64}
ARRAYS = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
)
TENSORS = st.dictionaries(st.text("abz._0", min_size=1, max_size=8), ARRAYS, max_size=6)


def specs_of(arrays) -> list[TensorSpec]:
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    return [TensorSpec(name, names[array.dtype], array.shape) for name, array in arrays.items()]


def file_of(folder: Path, header: bytes, data: bytes = b"") -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@given(TENSORS)
def test_what_is_written_reads_back_here_and_elsewhere(tmp_path_factory, arrays) -> None:
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    write_tensor_file(path, specs_of(arrays), arrays.__getitem__)
    elsewhere, here = safetensors.numpy.load_file(path), TensorFile(path)
    assert set(here) == set(elsewhere) == set(arrays)
    for name, array in arrays.items():
        assert here[name].shape == array.shape
        assert here.view(name).tobytes() == elsewhere[name].tobytes() == array.tobytes()


@given(TENSORS)
def test_what_others_write_reads_here(tmp_path_factory, arrays) -> None:
    path = tmp_path_factory.mktemp("foreign") / "x.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    file = TensorFile(path)
    assert len(file) == len(arrays)
    assert all(file.view(name).tobytes() == array.tobytes() for name, array in arrays.items())


def test_whole_vectors_come_first_and_lie_aligned(tmp_path) -> None:
    arrays = {"odd": np.zeros(3, np.float32), "even": np.ones((2, 64), np.uint8), "also": np.ones(16, np.float32)}
    path = tmp_path / "x.safetensors"
    write_tensor_file(path, specs_of(arrays), arrays.__getitem__)
    file = TensorFile(path)
    assert list(file) == ["even", "also", "odd"]
    for name in ("even", "also"):
        assert file.view(name).__array_interface__["data"][0] % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        file.view("odd")[0] = 1


def test_every_float_becomes_float32(tmp_path) -> None:
    values = np.array([1.5, -2.0, 0.0, 3.0e38], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps({"b": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    bfloat16 = TensorFile(file_of(tmp_path, header, bits)).float32("b")
    assert bfloat16.dtype == np.float32
    assert bfloat16[:3].tolist() == [1.5, -2.0, 0.0]
    assert bfloat16[3] == pytest.approx(3.0e38, rel=0.01)
    safetensors.numpy.save_file({"d": np.array([1e300]), "i": np.array([1])}, tmp_path / "d.safetensors")
    assert np.isinf(TensorFile(tmp_path / "d.safetensors").float32("d")[0])
    with pytest.raises(TensorFileError, match="I64"):
        TensorFile(tmp_path / "d.safetensors").float32("i")


def test_writer_refuses_what_was_not_announced(tmp_path) -> None:
    with pytest.raises(ValueError, match="announced"):
        write_tensor_file(tmp_path / "x", [TensorSpec("a", "F32", (2,))], lambda _: np.zeros(3, np.float32))


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


HOSTILE = {
    "no header": (b"", b""),
    "no json": (b"{", b""),
    "no object": (b"[1]", b""),
    "a number": (b"7", b""),
    "deep": (b"[" * 100_000, b""),
    "not utf-8": (b'{"\xff": 1}', b""),
    "entry is no object": (b'{"a": 3}', b""),
    "entry is a list": (b'{"a": []}', b""),
    "keys missing": (b'{"a": {"dtype": "F32"}}', b""),
    "unknown type": (entry(dtype="F77"), b"1234"),
    "type is a list": (entry(dtype=["F32"]), b"1234"),
    "shape is a number": (entry(shape=1), b"1234"),
    "negative shape": (entry(shape=[-1]), b"1234"),
    "shape of booleans": (entry(shape=[True]), b"1234"),
    "shape of floats": (entry(shape=[1.0]), b"1234"),
    "product overflows": (entry(shape=[2**40, 2**40, 4]), b"1234"),
    "many dimensions": (entry(shape=[1] * 99), b"1234"),
    "three offsets": (entry(offsets=[0, 2, 4]), b"1234"),
    "offsets backwards": (entry(offsets=[4, 0]), b"1234"),
    "offset is text": (entry(offsets=["0", 4]), b"1234"),
    "huge number": (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1' + b"0" * 5000 + b"]}}", b"1234"),
    "too little for its shape": (entry(shape=[2]), b"1234"),
    "ends outside": (entry(offsets=[4, 8]), b"1234"),
    "hole": (entry(offsets=[4, 8]), b"12345678"),
    "tail": (entry(), b"12345678"),
    "cut short": (entry(), b"12"),
    "name twice": (entry()[:-1] + b"," + entry()[1:], b"1234"),
    "name of control characters": (entry().replace(b'"a"', b'"a\\u0000"'), b"1234"),
    "name of half a pair": (entry().replace(b'"a"', b'"\\ud800"'), b"1234"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_is_a_typed_error(tmp_path, name) -> None:
    with pytest.raises(TensorFileError):
        TensorFile(file_of(tmp_path, *HOSTILE[name]))


def test_overlapping_tensors_are_refused(tmp_path) -> None:
    header = {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}
    with pytest.raises(TensorFileError, match="overlap"):
        TensorFile(file_of(tmp_path, json.dumps(header).encode(), b"1234"))


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}", b"\0" * 64])
def test_hostile_beginning_is_a_typed_error(tmp_path, content) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(TensorFileError):
        TensorFile(path)


def test_missing_file_is_a_typed_error(tmp_path) -> None:
    with pytest.raises(TensorFileError, match="cannot read"):
        TensorFile(tmp_path / "none")


@given(st.data())
def test_flipped_bytes_are_read_or_refused(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("flipped") / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32), "b": np.ones((2, 3), np.uint8)}, path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        file = TensorFile(path)
    except TensorFileError:
        return
    for name in file:
        file.view(name)


@pytest.fixture
def path(tmp_path) -> Path:
    """A file that was written long ago: its next change has another time, however coarse the clock."""
    path = tmp_path / "x.safetensors"
    write_tensor_file(path, specs_of({"a": np.zeros(100, np.uint8)}), {"a": np.zeros(100, np.uint8)}.__getitem__)
    os.utime(path, (0, 0))
    return path


def test_a_file_that_is_cut_after_it_was_mapped_is_noticed(path) -> None:
    file = TensorFile(path)
    file.check_size()
    with path.open("ab") as longer:
        longer.write(b"more")
    file.check_size()
    os.truncate(path, 80)
    with pytest.raises(TensorFileError, match=r"x\.safetensors changed while it was in use"):
        file.check_size()


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")


def cut_unseen(path: Path) -> None:
    os.truncate(path, 80)
    os.utime(path, (0, 0))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"another file")
    other.rename(path)


CHANGES = {"cut": cut_unseen, "longer": lambda p: os.truncate(p, 800), "written": overwrite}
NO_CHANGES = {"read": Path.read_bytes, "removed": Path.unlink, "replaced": replace, "mode": lambda p: p.chmod(0o400)}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_mapped_file_is_noticed(path, change) -> None:
    file = TensorFile(path)
    file.check_unchanged()
    CHANGES[change](path)
    with pytest.raises(TensorFileError, match=r"x\.safetensors changed while it was in use"):
        file.check_unchanged()


@pytest.mark.parametrize("change", NO_CHANGES)
def test_what_leaves_the_mapped_bytes_alone_is_no_change(path, change) -> None:
    file = TensorFile(path)
    NO_CHANGES[change](path)
    file.check_unchanged()
    assert not file.view("a").any()


def test_a_file_is_given_back_with_the_last_view(path) -> None:
    def is_open() -> bool:
        return any(link.is_symlink() and link.readlink() == path for link in Path("/proc/self/fd").iterdir())

    def is_mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")

    file = TensorFile(path)
    view = file.view("a")
    assert is_open()
    del file
    assert is_mapped()
    assert not view.any()
    del view
    assert not is_mapped()
    assert not is_open()
