"""Each kernel of each instruction set against plain numpy, and bit for bit against the portable one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.reference import silu, softmax
from tests.engine.instruction_sets import INSTRUCTION_SETS, PORTABLE, read_tiles, rounded, scales_in, stored

QUANTISED = ("int4", "int8", "low_rank")
# Bytes of a block: its multipliers, its vectors.
PARTS = {"int4": (slice(64), slice(96, None)), "int8": (slice(0), slice(2048)), "low_rank": (slice(0), slice(1024))}
BAD = (np.nan, np.inf, -np.inf)

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
sizes = st.integers(1, 280)
numbers_of_rows = st.integers(1, 70)
some = settings(max_examples=40)


@pytest.fixture(scope="module", params=INSTRUCTION_SETS, ids=str)
def kernels(request):
    """Whoever imports these tests for another processor defines its own."""
    return request.param


def normal(generator, *shape):
    return generator.standard_normal(shape).astype(np.float32)


# Products


@pytest.mark.parametrize("encoding", QUANTISED)
@some
@given(generator=seeds, num_rows=numbers_of_rows, rows=sizes, inputs=sizes)
def test_a_product_is_that_of_what_the_bytes_stand_for(kernels, encoding, generator, num_rows, rows, inputs):
    matrix = stored(generator, encoding, rows, inputs)
    entering = normal(generator, num_rows, inputs)
    x = kernels.quantise(entering, matrix.group_inputs)
    out = kernels.product(matrix, x)
    dense = x.dense[:, :inputs]
    # A rounding of each group's scale and sum; its 128 inputs are added exactly.
    bound = (x.scales.shape[1] + 3) * 2.0**-24 * (np.abs(dense) @ np.abs(matrix.dense.T).astype(np.float64))
    assert (np.abs(out[:, :rows] - dense @ matrix.dense.T.astype(np.float64)) <= bound + 1e-30).all()
    assert (out[:, rows:] == 0).all()
    np.testing.assert_array_equal(out, PORTABLE.product(matrix, PORTABLE.quantise(entering, matrix.group_inputs)))


@some
@given(generator=seeds, num_rows=numbers_of_rows, rows=sizes, inputs=sizes)
def test_a_float32_product_is_that_of_numpy(kernels, generator, num_rows, rows, inputs):
    matrix = stored(generator, "float32", rows, inputs)
    x = normal(generator, num_rows, inputs)
    out = kernels.product(matrix, x)
    np.testing.assert_allclose(out[:, :rows], x.astype(np.float64) @ matrix.dense.T, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(out, PORTABLE.product(matrix, x))


@pytest.mark.parametrize("encoding", [*QUANTISED, "float32"])
@some
@given(data=st.data(), generator=seeds, num_rows=st.integers(1, 150), rows=sizes)
def test_a_part_of_a_product_has_the_bits_of_the_whole(kernels, encoding, data, generator, num_rows, rows):
    matrix = stored(generator, encoding, rows, 200)
    x = normal(generator, num_rows, 200)
    x = x if encoding == "float32" else kernels.quantise(x, matrix.group_inputs)
    whole = kernels.product(matrix, x)
    first_row = data.draw(st.integers(0, num_rows - 1))
    first_tile = data.draw(st.integers(0, matrix.tiles - 1))
    part_rows = slice(first_row, data.draw(st.integers(first_row + 1, num_rows)))
    part_tiles = slice(first_tile, data.draw(st.integers(first_tile + 1, matrix.tiles)))
    part = kernels.product(matrix, x, rows=part_rows, tiles=part_tiles)
    np.testing.assert_array_equal(part, whole[part_rows, 16 * part_tiles.start : 16 * part_tiles.stop])


@pytest.mark.parametrize("encoding", [*QUANTISED, "float32"])
@some
@given(generator=seeds, num_rows=numbers_of_rows, rows=sizes, inputs=sizes)
def test_a_product_may_be_added_to_what_is_there(kernels, encoding, generator, num_rows, rows, inputs):
    matrix = stored(generator, encoding, rows, inputs)
    x = normal(generator, num_rows, inputs)
    x = x if encoding == "float32" else kernels.quantise(x, matrix.group_inputs)
    start = normal(generator, num_rows, 16 * matrix.tiles)
    np.testing.assert_array_equal(kernels.product(matrix, x, start=start), start + kernels.product(matrix, x))


@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_the_largest_values_do_not_overflow(kernels, encoding, value):
    """All weights and activations at an end of their range: where sums are formed in 16 bits, they must fit."""
    inputs = 64 if encoding == "low_rank" else 128
    matrix = stored(np.random.default_rng(0), encoding, 16, inputs)
    block = matrix.blocks.reshape(-1)
    scales = scales_in(block).astype(np.float64)
    for byte, multiplier in itertools.product((0, 255), (-15, 15)):
        multipliers, vectors = PARTS[encoding]
        block[multipliers].view(np.int8)[:] = multiplier
        block[vectors] = byte
        entering = np.full((30, inputs), value, np.float32)
        rows, plain = (k.quantise(entering, matrix.group_inputs) for k in (kernels, PORTABLE))
        assert np.abs(rows.values).min() == 127
        np.testing.assert_array_equal(kernels.product(matrix, rows), PORTABLE.product(matrix, plain))
        ends = {"int4": (-8 * multiplier, 7 * multiplier), "int8": (-128, 127), "low_rank": (-128, 127)}
        expected = value * ends[encoding][byte // 255] * inputs * scales
        np.testing.assert_allclose(kernels.product(matrix, rows), np.tile(expected, (30, 1)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("bad", BAD)
def test_a_scale_that_is_not_finite_spoils_its_output_alone(kernels, encoding, bad):
    matrix = stored(np.random.default_rng(1), encoding, 40, 40)
    scales_in(matrix.blocks)[1, ..., 5] = bad  # row 21
    x = kernels.quantise(normal(np.random.default_rng(2), 5, 40), matrix.group_inputs)
    bad_columns = ~np.isfinite(kernels.product(matrix, x)).all(axis=0)
    assert bad_columns.nonzero()[0].tolist() == [21]


# Rows


@some
@given(generator=seeds, num_rows=st.integers(1, 5), inputs=sizes, group_inputs=st.sampled_from([16, 32, 48, 128, 256]))
def test_groups_are_rounded_to_127_steps_of_their_largest(kernels, generator, num_rows, inputs, group_inputs):
    x = normal(generator, num_rows, inputs) * np.float32(10.0 ** generator.integers(-20, 20))
    x[generator.random(x.shape) < 0.3] = 0
    rows = kernels.quantise(x, group_inputs)
    groups = np.pad(x, ((0, 0), (0, -inputs % group_inputs))).reshape(num_rows, -1, group_inputs)
    top = np.abs(groups).max(axis=2)  # [rows, groups]
    factor = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    np.testing.assert_array_equal(rows.scales, top / np.float32(127))
    np.testing.assert_array_equal(rows.values.reshape(groups.shape), np.rint(groups * factor[..., None]))
    steps = rows.values.reshape(groups.shape).astype(np.int32)
    np.testing.assert_array_equal(rows.offsets, -128 * steps.sum(axis=2))
    if group_inputs == 128 and kernels.name != "neon":  # whose products need none of these
        np.testing.assert_array_equal(rows.tails[..., 2:], subgroup_offsets(kernels.name, steps))


def subgroup_offsets(name, steps):
    """-8 times the sum of each 32 steps [rows, groups, 128]: whole, or for AVX2 in two 16-bit halves."""
    if name != "avx2":
        return -8 * steps.reshape(*steps.shape[:2], 4, 32).sum(axis=3)
    lanes = steps.reshape(*steps.shape[:2], 4, 8, 2, 2)  # [rows, groups, subgroups, vectors, 16-bit halves, 2]
    return (-8 * lanes.sum(axis=(3, 5))).astype(np.int16).view(np.int32)[..., 0]


def test_values_too_small_for_a_factor_become_zero(kernels):
    rows = kernels.quantise(np.full((1, 128), 1e-38, np.float32))
    assert not rows.values.any()
    assert not rows.offsets.any()
    assert abs(rows.scales[0, 0]) < 1e-38


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 15, 16, 127])
def test_a_value_that_is_not_finite_makes_its_group_nan(kernels, bad, place):
    x = np.ones((2, 256), np.float32)
    x[1, 128 + place] = bad
    np.testing.assert_array_equal(np.isnan(kernels.quantise(x).scales), [[False, False], [False, True]])


@some
@given(generator=seeds, size=sizes, eps=st.sampled_from([0.0, 1e-6, 0.5]))
def test_rms_norm_is_that_of_numpy(kernels, generator, size, eps):
    x, weight = normal(generator, size), normal(generator, size)
    expected = x / np.sqrt(np.mean(x.astype(np.float64) ** 2) + eps) * weight
    np.testing.assert_allclose(kernels.rms_norm(x, weight, eps), expected, rtol=1e-6)
    np.testing.assert_array_equal(kernels.rms_norm(x, weight, eps), PORTABLE.rms_norm(x, weight, eps))


@pytest.mark.parametrize("bad", [*BAD, np.float32(1e30)])
def test_rms_norm_of_what_is_not_finite_or_overflows_is_no_zero(kernels, bad):
    x = np.ones(40, np.float32)
    x[33] = bad
    assert not np.isfinite(kernels.rms_norm(x, np.ones(40, np.float32), 1e-6)).all()


@some
@given(generator=seeds, half=sizes)
def test_rotation_turns_each_pair_by_its_angle(kernels, generator, half):
    head, angles = normal(generator, 2 * half), generator.uniform(-9, 9, half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    turned = (head[:half] + 1j * head[half:]) * np.exp(1j * angles)
    out = kernels.rotate(head, cos, sin)
    np.testing.assert_allclose(out, np.concatenate([turned.real, turned.imag]), atol=1e-5)
    np.testing.assert_array_equal(out, PORTABLE.rotate(head, cos, sin))


@some
@given(generator=seeds, size=sizes)
def test_sums_and_multiples_are_those_of_numpy(kernels, generator, size):
    x, y = normal(generator, size), normal(generator, size)
    np.testing.assert_array_equal(kernels.add(x, y), x + y)
    np.testing.assert_array_equal(kernels.scale(x, y[0]), x * y[0])


@some
@given(generator=seeds, size=sizes, spread=st.sampled_from([0.1, 3.0, 60.0]))
def test_a_gate_is_silu_times_up(kernels, generator, size, spread):
    gate, up = normal(generator, size) * np.float32(spread), normal(generator, size)
    expected = silu(gate.astype(np.float64)) * up
    np.testing.assert_allclose(kernels.gate(gate, up), expected, rtol=2e-6, atol=1e-34)
    np.testing.assert_array_equal(kernels.gate(gate, up), PORTABLE.gate(gate, up))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("operand", [0, 1])
def test_a_gate_of_what_is_not_finite_is_not_finite(kernels, bad, operand):
    operands = [np.ones(20, np.float32), np.ones(20, np.float32)]
    operands[operand][17] = bad
    assert (~np.isfinite(kernels.gate(*operands))).nonzero()[0].tolist() == [17]


@some
@given(generator=seeds, size=sizes)
def test_what_is_not_finite_is_exposed_as_nan(kernels, generator, size):
    x = normal(generator, size)
    x[generator.random(size) < 0.2] = generator.choice([*BAD, 0.0, -0.0, 1e-40, 3e38])
    expected = np.where(np.isfinite(x), x, np.float32(np.nan))
    np.testing.assert_array_equal(kernels.expose(x), expected)
    np.testing.assert_array_equal(np.signbit(kernels.expose(x))[np.isfinite(x)], np.signbit(x)[np.isfinite(x)])


@some
@given(generator=seeds, size=st.integers(1, 100))
def test_tops_are_the_largest_of_each_tile(kernels, generator, size):
    x = normal(generator, size)
    starts = range(0, size, 16)
    np.testing.assert_array_equal(kernels.tile_tops(x), [x[start : start + 16].max() for start in starts])
    x[generator.random(size) < 0.1] = generator.choice(BAD)
    assert not np.isnan(kernels.tile_tops(x)).any()
    np.testing.assert_array_equal(kernels.tile_tops(x), PORTABLE.tile_tops(x))


# Keys and values


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@some
@given(generator=seeds, num_positions=st.integers(1, 40), head_dim=sizes)
def test_keys_and_values_are_stored_where_attention_reads_them(kernels, kv_type, generator, num_positions, head_dim):
    keys, values = normal(generator, num_positions, head_dim), normal(generator, num_positions, head_dim) * 300
    tiles = kernels.store_kv(kv_type, keys, values)
    for kept, original in zip(read_tiles(tiles, kv_type, *keys.shape), (keys, values), strict=True):
        np.testing.assert_array_equal(kept, rounded(original, kv_type))
    np.testing.assert_array_equal(tiles, PORTABLE.store_kv(kv_type, keys, values))


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@some
@given(data=st.data(), generator=seeds, num_positions=sizes, head_dim=sizes)
def test_attention_is_that_of_numpy(kernels, kv_type, data, generator, num_positions, head_dim):
    keys, values = normal(generator, num_positions, head_dim), normal(generator, num_positions, head_dim)
    seen = data.draw(spans(num_positions))
    queries = normal(generator, len(seen), head_dim) / np.float32(head_dim**0.5)
    out = kernels.attend(kv_type, keys, values, queries, seen)
    for query, (begin, end), mixed in zip(queries, seen, out, strict=True):
        scores = rounded(keys, kv_type)[begin:end].astype(np.float64) @ query
        np.testing.assert_allclose(mixed, softmax(scores) @ rounded(values, kv_type)[begin:end], atol=1e-5)
    np.testing.assert_array_equal(out, PORTABLE.attend(kv_type, keys, values, queries, seen))


def spans(num_positions):
    """For each of some queries the positions that it sees, [queries, 2]."""
    span = st.lists(st.integers(0, num_positions), min_size=2, max_size=2, unique=True).map(sorted)
    return st.lists(span, min_size=1, max_size=16).map(lambda pairs: np.array(pairs, np.int32))


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@some
@given(data=st.data(), generator=seeds, num_positions=sizes)
def test_a_query_has_the_bits_that_it_has_alone(kernels, kv_type, data, generator, num_positions):
    keys, values = normal(generator, num_positions, 20), normal(generator, num_positions, 20)
    seen = data.draw(spans(num_positions))
    queries = normal(generator, len(seen), 20)
    together = kernels.attend(kv_type, keys, values, queries, seen)
    for index in range(len(seen)):
        alone = kernels.attend(kv_type, keys, values, queries[[index]], seen[[index]])
        np.testing.assert_array_equal(together[[index]], alone)


def test_scores_far_apart_leave_the_largest_alone(kernels):
    keys = np.array([[1000.0], [-1000.0], [999.0]], np.float32)
    values = np.array([[1.0], [2.0], [3.0]], np.float32)
    out = kernels.attend("fp16", keys, values, np.full((1, 1), 50, np.float32), np.array([[0, 3]], np.int32))
    np.testing.assert_allclose(out, [[1.0]], atol=1e-12)


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("operand", ["keys", "values", "queries"])
def test_what_is_not_finite_is_not_attended_away(kernels, kv_type, bad, operand):
    arrays = {name: normal(np.random.default_rng(3), 40, 20) for name in ("keys", "values", "queries")}
    arrays["queries"] = arrays["queries"][:3]
    arrays[operand][2, 17] = bad
    out = kernels.attend(kv_type, **arrays, seen=np.array([[0, 40]] * 3, np.int32))
    assert not np.isfinite(out[2]).all()
    assert np.isfinite(out[:2]).all() == (operand == "queries")


@pytest.mark.parametrize("operand", ["keys", "values"])
def test_what_does_not_fit_into_fp16_is_not_attended_away(kernels, operand):
    arrays = {name: normal(np.random.default_rng(4), 40, 20) for name in ("keys", "values", "queries")}
    arrays[operand][2, 17] = 70_000
    out = kernels.attend(
        "fp16", **arrays | {"queries": arrays["queries"][:16]}, seen=np.array([[0, 40]] * 16, np.int32)
    )
    assert not np.isfinite(out).all(axis=1).any()


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@pytest.mark.parametrize("bad", [*BAD, 70_000])
@pytest.mark.parametrize("operand", ["keys", "values"])
def test_who_does_not_see_what_is_not_finite_keeps_its_bits(kernels, kv_type, bad, operand):
    arrays = {name: normal(np.random.default_rng(5), 40, 20) for name in ("keys", "values", "queries")}
    arrays["queries"] = arrays["queries"][:16]
    seen = np.array([[0, end] for end in range(21, 37)], np.int32)
    expected = kernels.attend(kv_type, **arrays, seen=seen)
    arrays[operand][27, 17] = bad
    out = kernels.attend(kv_type, **arrays, seen=seen)
    np.testing.assert_array_equal(out[:7].view(np.uint32), expected[:7].view(np.uint32))
    assert np.isfinite(out[7:]).any() == (kv_type == "int8" and np.isfinite(bad))
    tiles = (k.store_kv(kv_type, arrays["keys"], arrays["values"]) for k in (kernels, PORTABLE))
    np.testing.assert_array_equal(*tiles)


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
def test_positions_that_are_not_seen_may_hold_anything(kernels, kv_type):
    keys, values, queries = (normal(np.random.default_rng(seed), 40, 20) for seed in range(3))
    seen = np.array([[7, 29]], np.int32)
    expected = kernels.attend(kv_type, keys, values, queries[:1], seen)
    for array in (keys, values):
        array[:7], array[29:] = np.nan, np.inf
    np.testing.assert_array_equal(kernels.attend(kv_type, keys, values, queries[:1], seen), expected)


# What calls refuse


def test_wrong_sizes_are_refused(kernels):
    matrix = stored(np.random.default_rng(0), "int4", 20, 40)
    x = kernels.quantise(np.ones((2, 40), np.float32))
    with pytest.raises(ValueError, match="tiles are not in the matrix"):
        kernels.core.kernels.product(
            kernels.name, "int4", matrix.blocks, 20, 40, num_rows=2, part=(0, 2, 0, 3), **vars(x)
        )
    with pytest.raises(ValueError, match="takes 2240 bytes, not 1120"):
        kernels.core.kernels.product(
            kernels.name, "int4", matrix.blocks[:1], 20, 40, num_rows=2, part=(0, 2, 0, 2), **vars(x)
        )
    with pytest.raises(ValueError, match="a query sees at least one position"):
        kernels.attend("fp16", *(np.ones((3, 4), np.float32),) * 3, np.array([[0, 4]] * 3, np.int32))
