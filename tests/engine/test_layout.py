from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.layout import ZERO_POINT, block_bytes, dequantise, dequantise_rows, pack, pack_planes, unpack

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 100))


def random_matrix(shape, bits, seed=0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 2**bits, shape, dtype=np.uint8)
    scales = generator.normal(size=(shape[0], -(-shape[1] // 32))).astype(np.float16)
    return values, scales


@pytest.mark.parametrize("bits", [4, 8])
@given(SHAPES, st.integers(0, 9))
def test_unpack_undoes_pack(bits, shape, seed) -> None:
    values, scales = random_matrix(shape, bits, seed)
    blocks = pack(values, scales, bits)
    assert blocks.shape == (-(-shape[0] // 16), scales.shape[1], block_bytes(bits))
    unpacked, unpacked_scales = unpack(blocks, bits, *shape)
    assert (unpacked == values).all()
    assert (unpacked_scales == scales).all()


@pytest.mark.parametrize("bits", [4, 8])
@given(SHAPES)
def test_weight_is_value_less_zero_point_times_scale(bits, shape) -> None:
    values, scales = random_matrix(shape, bits)
    weights = dequantise(pack(values, scales, bits), bits, *shape)
    for row, column in np.ndindex(shape):
        expected = np.float32(int(values[row, column]) - ZERO_POINT[bits]) * np.float32(scales[row, column // 32])
        assert weights[row, column] == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_those_of_the_whole(bits) -> None:
    values, scales = random_matrix((37, 70), bits)
    blocks = pack(values, scales, bits)
    indices = np.array([0, 36, 17, 17])
    assert (dequantise_rows(blocks, bits, indices, 70) == dequantise(blocks, bits, 37, 70)[indices]).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_padding_adds_nothing(bits) -> None:
    values, scales = random_matrix((3, 33), bits)
    padded = dequantise(pack(values, scales, bits), bits, 16, 64)
    assert not padded[3:].any()
    assert not padded[:, 33:].any()


def test_bytes_lie_as_drawn() -> None:
    """Row r, inputs 4v .. 4v+3 are the low nibbles of lane r of vector v; inputs 16 on are the high ones."""
    values = np.full((16, 32), 8, np.uint8)
    values[5, 6], values[5, 22] = 3, 12
    (block,) = pack(values, np.arange(16, dtype=np.float16)[:, None], 4)[0]
    assert block[:32].view(np.float16).tolist() == list(range(16))
    assert block[32 + 1 * 64 + 5 * 4 + 2] == 3 | 12 << 4


@given(SHAPES, st.integers(0, 9))
def test_planes_hold_8_bits_and_the_high_one_is_the_matrix_in_4(shape, seed) -> None:
    values, scales = random_matrix(shape, 8, seed)
    values = np.clip(values, 9, 247)
    planes = pack_planes(values, scales)
    assert planes.shape == (2, -(-shape[0] // 16), scales.shape[1], block_bytes(4))
    unpacked, unpacked_scales = unpack(planes, 8, *shape)
    assert (unpacked == values).all()
    assert (unpacked_scales == scales).all()
    coarse = dequantise(planes[0], 4, *shape)
    steps = np.repeat(np.abs(scales.astype(np.float32)), 32, axis=1)[:, : shape[1]]
    assert (np.abs(coarse - dequantise(planes, 8, *shape)) <= 8 * steps).all()


def test_rows_of_planes_are_those_of_the_whole() -> None:
    values, scales = random_matrix((37, 70), 8)
    planes = pack_planes(np.clip(values, 9, 247), scales)
    indices = np.array([0, 36, 17, 17])
    np.testing.assert_allclose(
        dequantise_rows(planes, 8, indices, 70), dequantise(planes, 8, 37, 70)[indices], rtol=1e-5
    )
