from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.artifact import read_adapter
from engine.backends import Segment
from engine.backends.reference import ReferenceBackend, rope_frequencies
from tests.engine.golden_cases import GOLDEN_CASES, GoldenCase
from tests.engine.random_bundles import QWEN3

# Other orders of summation in float32; the contract with people is 1e-3.
TOLERANCE = 1e-4


@pytest.fixture(params=GOLDEN_CASES, ids=str, scope="module")
def case(request) -> GoldenCase:
    return request.param


@pytest.fixture(scope="module")
def bundles(case, tmp_path_factory) -> tuple[Path, Path]:
    return case.convert(tmp_path_factory.mktemp(case.name))


@pytest.fixture
def backend(bundles) -> ReferenceBackend:
    return ReferenceBackend(bundles[0])


@pytest.fixture
def adapter(backend, bundles) -> str:
    _, digest = read_adapter(bundles[1])
    assert backend.load_adapter(digest, bundles[1]) > 0
    return digest


def run(backend, token_ids, *, adapter=None, chunks=None, state=None) -> np.ndarray:
    """Logits of all tokens, which go in as chunks of these sizes."""
    state = state or backend.new_state(64)
    logits, start = [], 0
    for size in chunks or [len(token_ids)]:
        piece = token_ids[start : start + size]
        logits += backend.step([Segment(state, piece, adapter, tuple(range(len(piece))))])
        start += size
    return np.concatenate(logits)


def test_base_agrees_with_transformers(case, backend) -> None:
    difference = run(backend, case.expected("token_ids")) - case.expected("base_logits")
    assert np.abs(difference).max() < TOLERANCE


def test_adapter_agrees_with_peft(case, backend, adapter) -> None:
    difference = run(backend, case.expected("token_ids"), adapter=adapter) - case.expected("adapter_logits")
    assert np.abs(difference).max() < TOLERANCE


@pytest.mark.parametrize("chunks", [[1] * 20, [7, 1, 12], [19, 1]])
def test_chunks_give_the_bits_of_the_whole(case, backend, adapter, chunks) -> None:
    token_ids = case.expected("token_ids")
    whole = run(backend, token_ids, adapter=adapter)
    assert (run(backend, token_ids, adapter=adapter, chunks=chunks) == whole).all()


def test_segments_of_a_step_do_not_touch_each_other(case, backend, adapter) -> None:
    token_ids = case.expected("token_ids")
    first, second = backend.new_state(32), backend.new_state(64)
    rows = tuple(range(len(token_ids)))
    together = backend.step([Segment(first, token_ids, adapter, rows), Segment(second, token_ids[::-1], None, rows)])
    assert (together[0] == run(backend, token_ids, adapter=adapter)).all()
    assert (together[1] == run(backend, token_ids[::-1])).all()


def test_only_the_rows_asked_for_have_logits(case, backend) -> None:
    token_ids = case.expected("token_ids")
    whole = run(backend, token_ids)
    (some,) = backend.step([Segment(backend.new_state(20), token_ids, None, (3, 19))])
    assert (some == whole[[3, 19]]).all()
    (none,) = backend.step([Segment(backend.new_state(20), token_ids, None, ())])
    assert none.shape == (0, whole.shape[1])


def test_rewound_state_continues_as_if_nothing_had_been(case, backend) -> None:
    token_ids = case.expected("token_ids")
    state = backend.new_state(40)
    run(backend, token_ids, state=state)
    state.rewind(5)
    assert state.num_tokens == 5
    assert (run(backend, token_ids[5:], state=state) == run(backend, token_ids)[5:]).all()


def test_unloaded_adapter_leaves_the_base_as_it_was(case, backend, adapter) -> None:
    before = run(backend, case.expected("token_ids"))
    backend.unload_adapter(adapter)
    assert (run(backend, case.expected("token_ids")) == before).all()
    with pytest.raises(KeyError):
        run(backend, case.expected("token_ids"), adapter=adapter)


def test_state_refuses_what_it_cannot_do(bundles) -> None:
    backend = ReferenceBackend(bundles[0])
    state = backend.new_state(4)
    assert state.size_bytes == backend.state_bytes(4)
    run(backend, np.arange(3, 6, dtype=np.int32), state=state)
    with pytest.raises(ValueError, match="no room"):
        run(backend, np.arange(3, 5, dtype=np.int32), state=state)
    with pytest.raises(ValueError, match="cannot rewind"):
        state.rewind(4)
    state.close()
    assert (state.num_tokens, state.size_bytes) == (0, 0)


def test_frequencies_are_rounded_once() -> None:
    """Numpy's power on AVX-512 is one bit off at these: other processors would rotate by other angles."""
    frequencies = rope_frequencies(replace(QWEN3, head_dim=128, rope_theta=1e4))
    assert frequencies[[0, 2, 58]].tolist() == [
        1.0,
        *map(float.fromhex, ("0x1.7ff2224115d9ap-1", "0x1.f150280a2ace0p-13")),
    ]
