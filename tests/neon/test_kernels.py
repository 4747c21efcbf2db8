"""The tests of the kernels on an emulated Arm processor, and the bits of values that are seldom seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.instruction_sets import PORTABLE, rounded
from tests.engine.test_native_kernels import *  # noqa: F403 - the same tests, with the kernels of another processor
from tests.engine.test_native_kernels import spans
from tests.neon.bits import assert_same_bits

SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-40, 1e-37, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32)

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
sizes = st.integers(1, 130)
some = settings(max_examples=40)


@pytest.fixture(scope="module")
def kernels(arm_set):
    return arm_set


def strewn(generator, *shape):
    """Rows of many magnitudes with zeros, subnormals, and what is not finite strewn in."""
    x = generator.standard_normal(shape) * 10.0 ** generator.uniform(-4, 4, (*shape[:-1], 1))
    is_special = generator.random(shape) < generator.choice([0.02, 0.2])
    return np.where(is_special, generator.choice(SPECIAL, shape), x.astype(np.float32))


@some
@given(generator=seeds, half=sizes)
def test_rows_of_any_kind_have_the_bits_of_the_portable_set(kernels, generator, half):
    x, y = strewn(generator, 2 * half), strewn(generator, 2 * half)
    for ours, theirs in (
        (kernels.rms_norm(x, y, 1e-6), PORTABLE.rms_norm(x, y, 1e-6)),
        (kernels.rotate(x, y[:half], y[half:]), PORTABLE.rotate(x, y[:half], y[half:])),
        (kernels.add(x, y), PORTABLE.add(x, y)),
        (kernels.scale(x, 0.3), PORTABLE.scale(x, 0.3)),
        (kernels.gate(x, y), PORTABLE.gate(x, y)),
    ):
        assert_same_bits(ours, theirs)
    assert_same_bits(kernels.tile_tops(x), PORTABLE.tile_tops(x))


def test_the_exponential_rounds_ties_as_the_portable_set(kernels):
    """Where x / ln 2 lies in the middle of two integers, and beside it."""
    middles = np.arange(-120, 120, dtype=np.float32) + np.float32(0.5)
    x = (middles / np.float32(1.44269504)).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(200))])
    assert np.isin(x * np.float32(1.44269504), middles).mean() > 0.1
    assert_same_bits(kernels.gate(-x, np.ones_like(x)), PORTABLE.gate(-x, np.ones_like(x)))


@some
@given(generator=seeds, num_rows=st.integers(1, 5), num_groups=st.integers(1, 5), exponent=st.integers(-44, 30))
def test_groups_of_any_magnitude_have_the_bits_of_the_portable_set(kernels, generator, num_rows, num_groups, exponent):
    x = (generator.standard_normal((num_rows, 32 * num_groups)) * 10.0**exponent).astype(np.float32)
    x[generator.random(x.shape) < 0.1] = generator.choice(SPECIAL[np.abs(SPECIAL) < 1e-36])
    ours, theirs = kernels.quantise(x), PORTABLE.quantise(x)
    for name in ("values", "scales", "offsets"):
        assert_same_bits(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@some
@given(data=st.data(), generator=seeds, num_positions=sizes, head_dim=sizes)
def test_attention_to_anything_has_the_bits_of_the_portable_set(
    kernels, kv_type, data, generator, num_positions, head_dim
):
    keys, values = strewn(generator, num_positions, head_dim), strewn(generator, num_positions, head_dim)
    seen = data.draw(spans(num_positions))
    queries = strewn(generator, len(seen), head_dim)
    ours, theirs = (k.attend(kv_type, keys, values, queries, seen) for k in (kernels, PORTABLE))
    assert_same_bits(ours, theirs)


def test_every_half_is_rounded_as_by_numpy(kernels):
    """All fp16 values, the middles between neighbours, where rounding is decided, and what is beside the middles."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)
    for x in (halves, middles, np.nextafter(middles, 0), np.nextafter(middles, np.inf), -middles):
        rows = np.resize(x, (256, 124))
        tiles = kernels.store_kv("fp16", rows, rows)
        assert_same_bits(tiles, PORTABLE.store_kv("fp16", rows, rows))
        kept, _ = read_tiles(tiles, "fp16", *rows.shape)  # noqa: F405
        assert_same_bits(kept, rounded(rows, "fp16"))
