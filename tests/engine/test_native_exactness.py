"""The same bits, whatever else runs: logits are compared with `==`, on every instruction set and number of threads.

What they must equal is the plainest way to run a sequence: alone, a token in each step, on one thread.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends import Segment
from tests.engine.instruction_sets import INSTRUCTION_SETS
from tests.engine.native_models import ADAPTERS, MODELS, Models, logits_of, random_tokens, run, with_adapters

MAX_TOKENS = 400
VOCAB_SIZE = 37  # of the smallest model

adapters = st.sampled_from([None, *ADAPTERS])


@pytest.fixture(scope="module", params=INSTRUCTION_SETS, ids=str)
def instruction_set(request):
    """Whoever imports these tests for another processor defines its own."""
    return request.param


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("models"))


@functools.cache
def opened(instruction_set, base, **settings):
    return with_adapters(instruction_set.open(base, **settings), base)


class Plain:
    """Logits of sequences that run alone, a token in each step, on one thread of the fastest instruction set."""

    def __init__(self, base, kv_type):
        self._backend = opened(INSTRUCTION_SETS[0], base, kv_type=kv_type, num_threads=1)
        self._known = {}

    def all_logits(self, token_ids, adapter):
        """Of every token."""
        return [self.logits(token_ids[:end], adapter) for end in range(len(token_ids), 0, -1)][::-1]

    def logits(self, token_ids, adapter):
        """Of the last token."""
        token_ids = tuple(token_ids)
        if (adapter, token_ids) not in self._known:
            state = self._backend.new_state(len(token_ids))
            for index, token in enumerate(token_ids):
                logits = run(self._backend, state, [token], adapter)[0]
                self._known[adapter, token_ids[: index + 1]] = logits
        return self._known[adapter, token_ids]


@functools.cache
def plain_of(base, kv_type):
    return Plain(base, kv_type)


def assert_same_bits(actual, expected):
    np.testing.assert_array_equal(np.ascontiguousarray(actual).view(np.uint32), np.asarray(expected).view(np.uint32))


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_the_same_bits_with_any_number_of_threads(models, instruction_set, model, kv_type):
    base = models.base(model)
    token_ids = random_tokens(VOCAB_SIZE, 40)
    for adapter, thread_counts in ((None, (1, 2, 3)), ("all-3", (1,)), ("all-16", (1,)), ("mixed", (1, 2, 3))):
        expected = plain_of(base, kv_type).all_logits(token_ids, adapter)
        for num_threads in thread_counts:
            backend = opened(instruction_set, base, kv_type=kv_type, num_threads=num_threads)
            assert_same_bits(logits_of(backend, token_ids, adapter), expected)


BLOCK_EDGES = (1, 3, 4, 5, 8, 9, 15, 16, 17, 33, 63, 64, 65, 127, 128, 129, 200, 256)


@pytest.mark.parametrize(
    ("model", "row_counts"),
    [("qwen3-odd-int4", range(1, 65)), ("mistral-odd-float32", range(1, 65)), ("wide-int4", BLOCK_EDGES)],
)
def test_any_number_of_rows_has_the_bits_of_one(models, instruction_set, model, row_counts):
    base = models.base(model)
    backend, token_ids = opened(instruction_set, base, num_threads=1), random_tokens(VOCAB_SIZE, max(row_counts))
    expected = plain_of(base, "fp16").all_logits(token_ids, "mixed")
    for num_rows in row_counts:
        assert_same_bits(logits_of(backend, token_ids[:num_rows], "mixed"), expected[:num_rows])


@dataclass(frozen=True)
class Step:
    """What a sequence does next, after forgetting a share of its tokens: run more of them, as a chain or as a tree."""

    token_ids: list[int]
    parents: tuple[int, ...] | None = None
    accepted: int = -1  # the row of the tree whose branch stays
    forgotten: float = 0.0
    neighbours: list[tuple[str | None, int]] = field(default_factory=list)
    """Adapter and number of rows of other sequences in the step."""


token_lists = st.integers(1, 64).flatmap(lambda n: st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=n, max_size=n))
neighbours = st.lists(st.tuples(adapters, st.integers(1, 20)), max_size=3)
forgotten = st.one_of(st.just(0.0), st.floats(0, 1))


@st.composite
def trees(draw):
    parents = tuple(draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, 12))))
    token_ids = draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=len(parents), max_size=len(parents)))
    accepted = draw(st.integers(-1, len(parents) - 1))
    return Step(token_ids, parents, accepted, draw(forgotten), draw(neighbours))


chains = st.builds(Step, token_lists, forgotten=forgotten, neighbours=neighbours)
walks = st.lists(st.one_of(chains, trees()), min_size=1, max_size=4)


def branch_to(row, parents):
    """The rows from the root of a tree to one of them."""
    return [*branch_to(parents[row], parents), row] if row >= 0 else []


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("model", "kv_type"),
    [
        ("wide-int4", "fp16"),
        ("qwen3-odd-int4", "int8"),
        ("mistral-odd-int4", "fp16"),
        ("mistral-float32", "int8"),
        ("qwen2-odd-float32", "fp16"),
    ],
)
@settings(max_examples=12)
@given(walk=walks, adapter=adapters)
def test_a_walk_has_the_bits_of_a_plain_run(models, instruction_set, model, kv_type, num_threads, *, walk, adapter):
    base = models.base(model)
    backend = opened(instruction_set, base, kv_type=kv_type, num_threads=num_threads)
    plain = plain_of(base, kv_type)
    state, *others = (backend.new_state(MAX_TOKENS) for _ in range(4))
    known = []
    for step in walk:
        del known[len(known) - int(step.forgotten * len(known)) :]
        state.rewind(len(known))
        rows = tuple(range(len(step.token_ids)))
        segments = [
            Segment(other, random_tokens(VOCAB_SIZE, num_rows), neighbour, (0,))
            for other, (neighbour, num_rows) in zip(others, step.neighbours, strict=False)
        ]
        segments.append(Segment(state, np.array(step.token_ids, np.int32), adapter, rows, step.parents))
        logits = backend.step(segments)[-1].copy()
        parents = step.parents or range(-1, len(rows) - 1)
        branches = [[step.token_ids[r] for r in branch_to(row, parents)] for row in rows]
        assert_same_bits(logits, [plain.logits([*known, *branch], adapter) for branch in branches])
        if step.parents is None:
            known += step.token_ids
        elif step.accepted >= 0:
            state.accept(branch_to(step.accepted, parents))
            known += branches[step.accepted]
        assert state.num_tokens == len(known)
