"""Trees of tokens on the native core: a row sees its ancestors alone, and an accepted branch becomes the sequence.

That a branch has the very bits of a chain is proven in test_native_exactness.py, by walks.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends import Segment
from engine.backends.reference import ReferenceBackend
from tests.engine.instruction_sets import INSTRUCTION_SETS
from tests.engine.native_models import (
    ADAPTERS,
    Models,
    NativeArithmetic,
    logits_of,
    random_tokens,
    run,
    with_adapters,
)

VOCAB_SIZE = 37
PROMPT = random_tokens(VOCAB_SIZE, 30)

#      -1
#     0   1
#    2 3   4
#      5   6
FORK = (-1, -1, 0, 0, 1, 3, 4)
DRAFT = random_tokens(VOCAB_SIZE, len(FORK), seed=1)


@pytest.fixture(scope="module", params=INSTRUCTION_SETS, ids=str)
def instruction_set(request):
    """Whoever imports these tests for another processor defines its own."""
    return request.param


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["qwen3-float32", "mistral-odd-float32", "qwen2-odd-int4"])
def base(request, models):
    return models.base(request.param)


@pytest.fixture(scope="module")
def backend(instruction_set, base):
    return with_adapters(instruction_set.open(base, num_threads=1), base)


@pytest.fixture
def state(backend):
    """Holds the first five tokens of the prompt."""
    state = backend.new_state(64)
    run(backend, state, PROMPT[:5])
    return state


@st.composite
def parent_lists(draw):
    return tuple(draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, 64))))


@settings(max_examples=15)
@given(
    parents=parent_lists(),
    prompt_length=st.integers(1, 30),
    seed=st.integers(0, 99),
    adapter=st.sampled_from([None, *ADAPTERS]),
)
def test_rows_of_a_tree_are_those_of_the_reference(backend, base, parents, prompt_length, seed, adapter):
    state, draft = backend.new_state(100), random_tokens(VOCAB_SIZE, len(parents), seed)
    run(backend, state, PROMPT[:prompt_length], adapter)
    logits = run(backend, state, draft, adapter, parents)
    expected = NativeArithmetic(base).tree_logits(PROMPT[:prompt_length], draft, parents, adapter)
    np.testing.assert_allclose(logits, expected, atol=0.2 if base.name.endswith("int4") else 0.02, rtol=0)
    assert state.num_tokens == prompt_length


def test_rows_see_no_other_branch(backend, state):
    logits = run(backend, state, DRAFT, parents=FORK)
    other = DRAFT.copy()
    other[[1, 4, 6]] += 1  # the whole right side
    again = run(backend, state, other % VOCAB_SIZE, parents=FORK)
    left, right = [0, 2, 3, 5], [1, 4, 6]
    np.testing.assert_array_equal(again[left], logits[left])
    assert (again[right] != logits[right]).any(axis=1).all()


@pytest.mark.parametrize("branch", [(), (0,), (0, 3, 5), (1, 4, 6)])
def test_an_accepted_branch_goes_on_as_the_chain_would(backend, state, branch):
    run(backend, state, DRAFT, "mixed", FORK)
    state.rewind(0)
    run(backend, state, PROMPT[:5], "mixed")
    run(backend, state, DRAFT, "mixed", FORK)
    state.accept(branch)
    whole = np.concatenate([PROMPT[:5], DRAFT[list(branch)], PROMPT[5:]])
    expected = logits_of(backend, whole, "mixed")[5 + len(branch) :]
    np.testing.assert_array_equal(run(backend, state, PROMPT[5:], "mixed"), expected)


def test_the_reference_accepts_the_same_branch(models, instruction_set):
    base, answers = models.base("qwen3-float32"), []
    for backend in (instruction_set.open(base, num_threads=1), ReferenceBackend(base)):
        state = backend.new_state(64)
        run(backend, state, PROMPT)
        run(backend, state, DRAFT, parents=FORK)
        state.accept([0, 3, 5])
        answers.append(run(backend, state, PROMPT[:4]))
    np.testing.assert_allclose(*answers, atol=0.02)


def test_trees_and_chains_share_a_step(backend, state):
    chain, rows = backend.new_state(64), tuple(range(len(FORK)))
    alone = run(backend, state, DRAFT, parents=FORK)
    tree = Segment(state, DRAFT, None, rows, FORK)
    logits = [part.copy() for part in backend.step([Segment(chain, PROMPT, "all-3", (29,)), tree])]
    np.testing.assert_array_equal(logits[1], alone)
    np.testing.assert_array_equal(logits[0][0], logits_of(backend, PROMPT, "all-3")[-1])
    assert (state.num_tokens, chain.num_tokens) == (5, 30)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((1, 3), "row 3 of the last step's tree does not follow row 1"),
        ((2,), "row 2 of the last step's tree does not follow row -1"),
        ((0, 0), "row 0 of the last step's tree does not follow row 0"),
        ((0, 3, 5, 7), "row 7"),
        ((-1,), "row -1"),
    ],
)
def test_rows_that_are_no_branch_are_refused_and_the_tree_stays(backend, state, rows, message):
    run(backend, state, DRAFT, parents=FORK)
    with pytest.raises(ValueError, match=message):
        state.accept(rows)
    assert state.num_tokens == 5
    state.accept([0, 2])
    assert state.num_tokens == 7


@pytest.mark.parametrize("forget", ["accept", "rewind", "extend"])
def test_a_tree_is_gone_when_the_state_has_moved_on(backend, state, forget):
    run(backend, state, DRAFT, parents=FORK)
    match forget:
        case "accept":
            state.accept([0])
        case "rewind":
            state.rewind(5)
        case "extend":
            run(backend, state, PROMPT[5:6])
    with pytest.raises(ValueError, match="does not follow"):
        state.accept([0])
    state.accept([])


@pytest.mark.parametrize("parents", [(0, 0), (-1, 1), (-1, -2), (-1, 5), (-1,)])
def test_bad_parents_are_refused_and_nothing_has_changed(backend, state, parents):
    run(backend, state, DRAFT, parents=FORK)
    with pytest.raises(ValueError, match="parent"):
        run(backend, state, DRAFT[:2], parents=parents)
    state.accept([1, 4])
    assert state.num_tokens == 7
    expected = logits_of(backend, [*PROMPT[:5], *DRAFT[[1, 4]], 7])[-1]
    np.testing.assert_array_equal(run(backend, state, [7])[0], expected)


def test_a_tree_needs_room_for_all_its_rows(backend):
    state = backend.new_state(10)
    run(backend, state, PROMPT[:4])
    with pytest.raises(ValueError, match="no room for 7 tokens: 4 of 10 are taken"):
        run(backend, state, DRAFT, parents=FORK)
    run(backend, state, DRAFT[:6], parents=FORK[:6])
