"""States that begin with blocks of others: the same bits as without, and nobody's blocks are written to."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends import Prefix, Segment, open_backend
from engine.config import EngineConfig
from tests.engine.random_bundles import QWEN3, make_adapter, make_base

NAMES = ["reference", "onnx", *(["native"] if importlib.util.find_spec("socle_native") else [])]
CONFIGS = {
    "reference": [{}],
    "onnx": [{"prefill_chunk_tokens": 32}],
    "native": [{"kv_type": kv_type, "num_threads": threads} for kv_type in ("fp16", "int8") for threads in (1, 2)],
}
TOKENS = np.random.default_rng(0).integers(0, QWEN3.vocab_size - 1, 300).astype(np.int32)
ROOM = 320


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("blocks") / "base"
    make_base(base, weights="int4")
    make_adapter(base.parent / "adapter", base)
    return base


@pytest.fixture(
    scope="module",
    params=[(name, config) for name in NAMES for config in CONFIGS[name]],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def backend(request, base):
    name, config = request.param
    backend = open_backend(base, EngineConfig(backend=name, **{"num_threads": 1, **config}))
    backend.load_adapter("adapter", base.parent / "adapter")
    return backend


def run(backend, state, tokens, adapter="adapter"):
    """Append tokens as the engine cuts them; logits of the last one."""
    tokens = np.asarray(tokens, np.int32)
    chunk = 1 if len(tokens) == 1 else backend.block_tokens
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        (logits,) = backend.step([Segment(state, part, adapter, (len(part) - 1,))])
    return logits[0].copy()


def filled(backend, num_tokens):
    state = backend.new_state(ROOM)
    run(backend, state, TOKENS[:num_tokens])
    return state


def answer(backend, state, count=6):
    """Some greedy tokens with the logits that led to them."""
    token, seen = 5, []
    for _ in range(count):
        logits = run(backend, state, [token])
        seen.append(logits)
        token = int(logits.argmax())
    return np.stack(seen)


def lengths(backend):
    """Of prefixes that may begin a state: any, or whole blocks."""
    return [1, 63, 64, 65, 200] if backend.cuts_anywhere else [backend.block_tokens * n for n in (1, 2, 5)]


def test_a_state_that_begins_with_blocks_goes_on_bit_for_bit(backend):
    for length in lengths(backend):
        whole = filled(backend, 250)
        expected = answer(backend, whole)
        first = filled(backend, 250)
        blocks = first.take()[: -(-length // backend.block_tokens)]
        state = backend.new_state(ROOM, Prefix(blocks, length))
        assert state.num_tokens == length
        np.testing.assert_array_equal(run(backend, state, TOKENS[length:250]), run_whole(backend))
        np.testing.assert_array_equal(answer(backend, state), expected)


def run_whole(backend):
    return run(backend, backend.new_state(ROOM), TOKENS[:250])


def test_full_blocks_come_from_a_running_state_too(backend):
    state = filled(backend, 250)
    count = 250 // backend.block_tokens
    prefix = Prefix(tuple(state.block(index) for index in range(count)), count * backend.block_tokens)
    copy = backend.new_state(ROOM, prefix)
    run(backend, copy, TOKENS[prefix.num_tokens : 250])
    np.testing.assert_array_equal(answer(backend, copy), answer(backend, state))
    with pytest.raises(ValueError, match="not full"):
        state.block(ROOM // backend.block_tokens - 1)


@pytest.mark.parametrize("length", [1, 64, 100, 128])
def test_forks_do_not_disturb_each_other(backend, length):
    state = filled(backend, length)
    fork = state.fork(ROOM)
    assert (fork.num_tokens, state.num_tokens) == (length, length)
    other = run(backend, fork, TOKENS[200:260])
    np.testing.assert_array_equal(answer(backend, state), answer(backend, filled(backend, length)))
    expected = filled(backend, length)
    np.testing.assert_array_equal(run(backend, expected, TOKENS[200:260]), other)
    np.testing.assert_array_equal(answer(backend, fork), answer(backend, expected))


def test_a_state_that_rewinds_into_shared_blocks_leaves_them_as_they_are(backend):
    first = filled(backend, 250)
    blocks = first.take()
    before = [block.data.copy() for block in blocks]
    count = 250 // backend.block_tokens
    state = backend.new_state(ROOM, Prefix(blocks[:count], count * backend.block_tokens))
    for length in (count * backend.block_tokens - 1, 40, 0):
        state.rewind(length)
        run(backend, state, TOKENS[100:120])
        state.rewind(length)
    for block, data in zip(blocks, before, strict=True):
        np.testing.assert_array_equal(block.data, data)
    np.testing.assert_array_equal(run(backend, state, TOKENS[:60]), run(backend, backend.new_state(ROOM), TOKENS[:60]))


def test_a_running_state_does_not_write_to_a_block_that_it_has_shared(backend):
    state = filled(backend, 250)
    block = state.block(0)
    before = block.data.copy()
    state.rewind(10)
    run(backend, state, TOKENS[200:300])
    np.testing.assert_array_equal(block.data, before)


def test_bytes_make_the_same_block(backend):
    length = lengths(backend)[-1]
    blocks = filled(backend, length).take()
    assert {block.data.nbytes for block in blocks} == {backend.block_bytes}
    again = tuple(backend.block_from(block.data.copy()) for block in blocks)
    states = [backend.new_state(ROOM, Prefix(parts, length)) for parts in (blocks, again)]
    np.testing.assert_array_equal(*(answer(backend, state) for state in states))


def test_what_does_not_fit_is_refused(backend):
    blocks = filled(backend, 100).take()
    for prefix in (Prefix(blocks, 1 + len(blocks) * backend.block_tokens), Prefix(blocks[:1], 0), Prefix((), 3)):
        with pytest.raises(ValueError, match="blocks for the first"):
            backend.new_state(ROOM, prefix)
    with pytest.raises(ValueError, match=r"bytes|reshape"):
        backend.block_from(blocks[0].data[:-4].copy())


@settings(max_examples=20)
@given(data=st.data())
def test_any_tree_of_forks_has_the_bits_of_chains(backend, data):
    """Forks, prefixes and rewinds at random: every state gives what its tokens give alone."""
    cut = st.integers(0, 90) if backend.cuts_anywhere else st.sampled_from([0, 32, 64])
    states = [(backend.new_state(ROOM), [])]
    for _ in range(data.draw(st.integers(1, 6))):
        state, tokens = states[data.draw(st.integers(0, len(states) - 1))]
        kind = data.draw(st.sampled_from(["extend", "fork", "rewind"]))
        if kind == "extend":
            more = TOKENS[data.draw(st.integers(0, 100)) :][: data.draw(cut)].tolist()[: 200 - len(tokens)]
            run(backend, state, more) if more else None
            tokens += more
        elif kind == "fork":
            states.append((state.fork(ROOM), list(tokens)))
        else:
            del tokens[data.draw(cut) :]
            state.rewind(len(tokens))
    for state, tokens in states:
        alone = backend.new_state(ROOM)
        if tokens:
            run(backend, alone, tokens)
        if backend.cuts_anywhere:
            np.testing.assert_array_equal(run(backend, state, [7]), run(backend, alone, [7]))
        else:  # the chunks were cut differently
            np.testing.assert_allclose(run(backend, state, [7]), run(backend, alone, [7]), atol=2e-2)
