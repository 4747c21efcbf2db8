from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.convert.errors import NotFiniteError
from engine.convert.quantise import quantise_int4, quantise_int8, quantise_low_rank, quantise_pair, quantise_planes
from engine.layout import dequantise, dequantise_low_rank, pack_int4, unpack

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 100))


def normal(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def round_trip(quantise, bits, weight) -> np.ndarray:
    return dequantise(quantise("w", weight), bits, *weight.shape)


def round_to_nearest(weight) -> np.ndarray:
    """Four bits without a search: the value of largest magnitude of a group becomes -8."""
    groups = weight.reshape(len(weight), -1, 32)
    peak = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], axis=-1)
    scale = (peak / -8).astype(np.float16).astype(np.float32)
    return (np.clip(np.rint(groups / scale), -8, 7) * scale).reshape(weight.shape)


@pytest.mark.parametrize(("quantise", "highest"), [(quantise_int8, 127), (quantise_planes, 119)])
@given(SHAPES, st.integers(0, 20))
def test_8_bits_are_within_half_a_step(quantise, highest, shape, seed) -> None:
    weight = normal(shape, seed)
    error = np.abs(round_trip(quantise, 8, weight) - weight)
    assert error.max() <= np.abs(weight).max() / highest * 0.51


@given(SHAPES, st.integers(0, 20))
def test_int4_is_no_worse_than_zero_and_within_its_range(shape, seed) -> None:
    weight = normal(shape, seed)
    error = round_trip(quantise_int4, 4, weight) - weight
    assert (error**2).sum() <= (weight**2).sum() * 0.02 + 1e-6


def test_scale_search_beats_rounding_to_nearest() -> None:
    weight = normal((256, 256))
    searched = ((round_trip(quantise_int4, 4, weight) - weight) ** 2).mean()
    nearest = ((round_to_nearest(weight) - weight) ** 2).mean()
    assert searched < 0.92 * nearest  # whose scales may be any number


def test_every_chunk_is_searched() -> None:
    weight = normal((300, 32 * 40))  # 12,000 groups: more than one chunk, and not a whole number of them
    error = ((round_trip(quantise_int4, 4, weight) - weight) ** 2).reshape(300, 40, 32).mean(axis=-1)
    assert error.max() < 0.1


def test_values_on_the_grid_are_kept() -> None:
    values = np.random.default_rng(1).integers(0, 16, (32, 128), dtype=np.uint8)
    values[:, ::32] = 0  # the end of the range occurs in each subgroup
    multipliers = np.tile(np.array([15, -15, 3, 7], np.int8), (32, 1))
    weight = dequantise(pack_int4(values, multipliers, np.full((32, 1), 0.25, np.float16)), 4, 32, 128)
    assert (round_trip(quantise_int4, 4, weight) == weight).all()


@pytest.mark.parametrize(("quantise", "bits"), [(quantise_int4, 4), (quantise_int8, 8), (quantise_planes, 8)])
def test_zero_stays_zero_and_tiny_values_vanish(quantise, bits) -> None:
    weight = np.zeros((20, 64), np.float32)
    weight[3] = 1e-30
    weight[4, 5] = 1.0
    restored = round_trip(quantise, bits, weight)
    assert restored[4, 5] == pytest.approx(1.0, rel=1e-3)
    restored[4, 5] = 0
    assert not restored.any()


@pytest.mark.parametrize(("quantise", "bits"), [(quantise_int4, 4), (quantise_int8, 8), (quantise_planes, 8)])
def test_padding_has_scale_zero(quantise, bits) -> None:
    _, scales = unpack(quantise("w", normal((3, 40))), bits, 16, 64)
    assert scales[:3].all()
    assert not scales[3:].any()


@pytest.mark.parametrize("quantise", [quantise_int4, quantise_int8, quantise_planes, quantise_low_rank])
def test_what_does_not_fit_float16_scales_is_refused(quantise) -> None:
    weight = normal((4, 32))
    weight[1, 2] = 3e37
    with pytest.raises(NotFiniteError, match="too large"):
        quantise("model.w", weight)


# Adapters


@given(SHAPES, st.integers(0, 20))
def test_every_row_of_a_low_rank_matrix_is_within_half_a_step_of_its_own(shape, seed) -> None:
    weight = normal(shape, seed) * np.logspace(-2, 2, shape[0], dtype=np.float32)[:, None]
    error = np.abs(dequantise_low_rank(quantise_low_rank("b", weight), *shape) - weight)
    assert (error.max(axis=1) <= np.abs(weight).max(axis=1) / 127 * 0.51).all()


def product_of(blocks, a, b) -> np.ndarray:
    return dequantise_low_rank(blocks[1], *b.shape) @ dequantise(blocks[0], 8, *a.shape)


@pytest.mark.parametrize(("size_a", "size_b"), [(1e-8, 1e4), (1e-3, 1e-3), (1.0, 1.0), (1e8, 1e-12), (1e6, 1e2)])
def test_the_product_of_a_pair_is_kept_whatever_the_sizes_of_both(size_a, size_b) -> None:
    a, b = np.float32(size_a) * normal((5, 300), 1), np.float32(size_b) * normal((70, 5), 2)
    product = product_of(quantise_pair("m", a, b), a, b)
    assert np.linalg.norm(product - b @ a) < 0.02 * np.linalg.norm(b @ a)


def test_a_pair_has_the_same_bytes_however_its_size_is_split() -> None:
    a, b = normal((4, 200), 1), normal((40, 4), 2)
    expected = quantise_pair("m", a, b)
    for exponent in (-30, -1, 7):
        blocks = quantise_pair("m", np.ldexp(a, exponent), np.ldexp(b, -exponent))
        assert all((mine == its).all() for mine, its in zip(blocks, expected, strict=True))


def test_a_pair_of_zeros_is_zero() -> None:
    a, b = normal((4, 128)), np.zeros((20, 4), np.float32)
    assert not product_of(quantise_pair("m", a, b), a, b).any()
