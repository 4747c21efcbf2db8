from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.layout import (
    ZERO_POINT,
    block_bytes,
    dequantise,
    dequantise_low_rank,
    dequantise_rows,
    int8_scales,
    low_rank_block_bytes,
    low_rank_scales,
    pack_int4,
    pack_int8,
    pack_low_rank,
    pack_planes,
    unpack,
    unpack_low_rank,
)

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 300))
KINDS = ("int4", "int8", "planes")
BITS = {"int4": 4, "int8": 8, "planes": 8}


def random_matrix(kind, shape, seed=0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks, the values in them, and the scale of each 32 inputs."""
    generator = np.random.default_rng(seed)
    rows, inputs = shape
    lowest, highest = {"int4": (0, 15), "int8": (0, 255), "planes": (9, 247)}[kind]
    values = generator.integers(lowest, highest + 1, shape, dtype=np.uint8)
    scales = generator.normal(size=(rows, -(-inputs // 128))).astype(np.float16)
    multipliers = generator.integers(-15, 16, (rows, -(-inputs // 32)), dtype=np.int8)
    group_of = np.arange(multipliers.shape[1]) // 4
    if kind == "int8":
        return pack_int8(values, scales), values, scales.astype(np.float32)[:, group_of]
    pack = pack_int4 if kind == "int4" else pack_planes
    return pack(values, multipliers, scales), values, scales.astype(np.float32)[:, group_of] * multipliers


@pytest.mark.parametrize("kind", KINDS)
@given(SHAPES, st.integers(0, 9))
def test_unpack_undoes_pack(kind, shape, seed) -> None:
    blocks, values, scales = random_matrix(kind, shape, seed)
    bits = 8 if kind == "int8" else 4
    assert blocks.shape[-3:] == (-(-shape[0] // 16), -(-shape[1] // 128), block_bytes(bits))
    unpacked, unpacked_scales = unpack(blocks, BITS[kind], *shape)
    assert (unpacked == values).all()
    assert (unpacked_scales == scales).all()


@pytest.mark.parametrize("kind", KINDS)
@given(SHAPES)
def test_weight_is_value_less_zero_point_times_scale(kind, shape) -> None:
    blocks, values, scales = random_matrix(kind, shape)
    weights = dequantise(blocks, BITS[kind], *shape)
    expected = (values.astype(np.float32) - ZERO_POINT[BITS[kind]]) * np.repeat(scales, 32, axis=1)[:, : shape[1]]
    assert (weights == expected).all()


@given(SHAPES, st.integers(0, 9))
def test_low_rank_blocks_come_back_too(shape, seed) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 256, shape, dtype=np.uint8)
    scales = generator.normal(size=len(values)).astype(np.float16)
    blocks = pack_low_rank(values, scales)
    assert blocks.shape == (-(-shape[0] // 16), low_rank_block_bytes(shape[1]))
    unpacked, unpacked_scales = unpack_low_rank(blocks, *shape)
    assert (unpacked == values).all()
    assert (unpacked_scales == scales).all()
    expected = (values.astype(np.float32) - 128) * scales.astype(np.float32)[:, None]
    assert (dequantise_low_rank(blocks, *shape) == expected).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole(kind) -> None:
    blocks, _, _ = random_matrix(kind, (37, 170))
    indices = np.array([0, 36, 17, 17])
    rows = dequantise_rows(blocks, BITS[kind], indices, 170)
    np.testing.assert_allclose(rows, dequantise(blocks, BITS[kind], 37, 170)[indices], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_adds_nothing(kind) -> None:
    blocks, _, _ = random_matrix(kind, (3, 33))
    padded = dequantise(blocks, BITS[kind], 16, 128)
    assert not padded[3:].any()
    assert not padded[:, 33:].any()


def test_padding_of_low_rank_blocks_adds_nothing() -> None:
    blocks = pack_low_rank(np.full((3, 5), 200, np.uint8), np.ones(3, np.float16))
    padded = dequantise_low_rank(blocks, 16, 8)
    assert (padded[:3, :5] == 72).all()
    assert not padded[3:].any()
    assert not padded[:, 5:].any()


def test_bytes_of_int4_lie_as_drawn() -> None:
    """Inputs 4v .. 4v+3 of a subgroup are the low nibbles of lane r of its vector v; inputs 16 on the high ones."""
    values = np.full((16, 128), 8, np.uint8)
    values[5, 70], values[5, 86] = 3, 12  # inputs 6 and 22 of subgroup 2
    multipliers = np.arange(64, dtype=np.int8).reshape(16, 4) % 15
    (block,) = pack_int4(values, multipliers, np.arange(16, dtype=np.float16)[:, None])[0]
    assert block[:64].tolist() == multipliers.ravel().tolist()
    assert block[64:96].view(np.float16).tolist() == list(range(16))
    assert block[96 + (2 * 4 + 1) * 64 + 5 * 4 + 2] == 3 | 12 << 4


def test_bytes_of_int8_lie_as_drawn() -> None:
    values = np.full((16, 128), 128, np.uint8)
    values[5, 70] = 3
    (block,) = pack_int8(values, np.arange(16, dtype=np.float16)[:, None])[0]
    assert block[17 * 64 + 5 * 4 + 2] == 3
    assert block[2048:2080].view(np.float16).tolist() == list(range(16))


def test_bytes_of_low_rank_blocks_lie_as_drawn() -> None:
    values = np.full((32, 7), 128, np.uint8)
    values[21, 6] = 3  # row 5 of the second tile
    block = pack_low_rank(values, np.arange(32, dtype=np.float16))[1]
    assert block[64 + 5 * 4 + 2] == 3
    assert block[128:].view(np.float16).tolist() == list(range(16, 32))


def test_scales_are_found_where_they_lie() -> None:
    scales = np.arange(64, dtype=np.float16).reshape(32, 2)
    int8 = pack_int8(np.zeros((32, 200), np.uint8), scales)
    assert (int8_scales(int8) == scales.reshape(2, 16, 2).transpose(0, 2, 1)).all()
    low_rank = pack_low_rank(np.zeros((32, 9), np.uint8), scales[:, 0])
    assert (low_rank_scales(low_rank) == scales[:, 0].reshape(2, 16)).all()
    low_rank_scales(low_rank)[1, 3] = -1.0
    assert unpack_low_rank(low_rank, 32, 9)[1][19] == -1.0


@given(SHAPES, st.integers(0, 9))
def test_the_high_plane_is_the_matrix_in_4_bits(shape, seed) -> None:
    planes, _, scales = random_matrix("planes", shape, seed)
    coarse = dequantise(planes[0], 4, *shape)
    steps = np.repeat(np.abs(scales), 32, axis=1)[:, : shape[1]]
    assert (np.abs(coarse - dequantise(planes, 8, *shape)) <= 8.001 * steps).all()
