"""Sampling in the core against `engine.sampling`, and the same token on every instruction set."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.sampling import GREEDY, SamplingParams, candidates, next_token, penalise_repetition
from tests.engine.instruction_sets import INSTRUCTION_SETS, PORTABLE

VOCAB_SIZE = 151_936
MARGIN = 1e-6  # of probability: the core weighs in float32

some = settings(max_examples=200)
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
uniforms = st.floats(0, 1, exclude_max=True)
shapes = st.sampled_from(["normal", "flat", "peaked", "tied", "masked", "far apart"])
sizes = st.one_of(st.integers(1, 40), st.integers(100, 800), st.sampled_from([127, 128, 129, 3000]))
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-30, 1e-6, 0.05, 0.7, 1.0, 1.7, 50.0]),
    top_k=st.one_of(st.just(0), st.integers(1, 60), st.sampled_from([500, 10_000])),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.9999)),
    min_p=st.one_of(st.just(0.0), st.floats(1e-4, 1.0)),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
)


@pytest.fixture(scope="module", params=INSTRUCTION_SETS, ids=str)
def instruction_set(request):
    """Whoever imports these tests for another processor defines its own."""
    return request.param


def row_of(generator, shape, size):
    """Logits as models make them, and as they hardly ever do."""
    row = generator.standard_normal(size).astype(np.float32)
    match shape:
        case "flat":
            return row * np.float32(1e-3)
        case "peaked":
            return row * np.float32(8)
        case "tied":
            return np.round(row)
        case "masked":
            return np.where((generator.random(size) < 0.9) & (np.arange(size) > 0), np.float32(-np.inf), row)
        case "far apart":
            return row * np.float32(10.0 ** generator.integers(-30, 30))
        case _:
            return row


def edges(logits, sampling):
    """Where the probability that was passed over decides: tokens, and between them [0, ..., 1].

    None if rounding decides which tokens there are.
    """
    uncut, probabilities = candidates(logits, replace(sampling, top_p=1.0, min_p=0.0))
    if sampling.top_p < 1.0:
        descending = np.sort(probabilities)[::-1]
        if np.abs(np.cumsum(descending) - sampling.top_p).min() < MARGIN:
            return None
    if sampling.min_p and np.abs(probabilities / probabilities.max() - sampling.min_p).min() < MARGIN:
        return None
    token_ids, probabilities = candidates(logits, sampling)
    assert set(token_ids) <= set(uncut)
    return token_ids, np.concatenate([[0.0], np.cumsum(probabilities)])


@some
@given(generator=seeds, shape=shapes, size=sizes, sampling=params, uniform=uniforms)
def test_the_token_is_that_of_numpy(instruction_set, generator, shape, size, sampling, uniform):
    """At any place of the distribution, and in the middle of each token's part, so that the same tokens have one."""
    logits, seen = row_of(generator, shape, size), generator.integers(0, size, 9).tolist()
    penalised = penalise_repetition(logits, seen, sampling.repetition_penalty)
    found = edges(penalised, sampling)
    assume(found is not None)
    token_ids, bounds = found
    wide = np.flatnonzero(np.diff(bounds) > 4 * MARGIN)
    places = [(bounds[index] + bounds[index + 1]) / 2 for index in generator.permutation(wide)[:20]]
    if np.abs(bounds - uniform).min() > MARGIN:
        places.append(uniform)
    for place in places:
        expected = next_token(logits, sampling, seen, place)
        assert expected in token_ids
        assert instruction_set.next_token(logits, sampling, seen, place) == expected


@some
@given(generator=seeds, shape=shapes, size=sizes, sampling=params, uniform=uniforms)
def test_every_instruction_set_takes_the_same_token(instruction_set, generator, shape, size, sampling, uniform):
    logits, seen = row_of(generator, shape, size), generator.integers(0, size, 9).tolist()
    for place in (0.0, uniform, np.nextafter(1.0, 0.0)):
        token = instruction_set.next_token(logits, sampling, seen, place)
        assert token == PORTABLE.next_token(logits, sampling, seen, place)
        assert logits[token] > -np.inf


@some
@given(generator=seeds, shape=shapes, size=sizes, penalty=st.sampled_from([1.0, 0.5, 1.3]))
def test_temperature_zero_takes_the_first_of_the_likeliest(instruction_set, generator, shape, size, penalty):
    logits, seen = row_of(generator, shape, size), generator.integers(0, size, 9).tolist()
    sampling = replace(GREEDY, repetition_penalty=penalty)
    kept = logits.copy()
    expected = penalise_repetition(logits, seen, penalty).argmax()
    assert instruction_set.next_token(logits, sampling, seen, 0.0) == expected
    np.testing.assert_array_equal(logits, kept)


SAMPLINGS = {
    "greedy": GREEDY,
    "all": SamplingParams(),
    "top_k": SamplingParams(top_k=50),
    "large top_k": SamplingParams(top_k=5000),
    "top_p": SamplingParams(top_p=0.95),
    "min_p": SamplingParams(min_p=0.02),
    "everything": SamplingParams(top_k=100, top_p=0.9, min_p=0.01, temperature=0.8, repetition_penalty=1.2),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_a_large_vocabulary(instruction_set, sampling, spread):
    generator = np.random.default_rng(0)
    for _ in range(5):
        logits = (generator.standard_normal(VOCAB_SIZE) * spread).astype(np.float32)
        seen, uniform = generator.integers(0, VOCAB_SIZE, 500).tolist(), generator.random()
        token = instruction_set.next_token(logits, sampling, seen, uniform)
        assert token == PORTABLE.next_token(logits, sampling, seen, uniform)
        near = {
            next_token(logits, sampling, seen, np.clip(uniform + d, 0, 1)) for d in np.linspace(-MARGIN, MARGIN, 21)
        }
        assert token in near


@pytest.mark.parametrize(
    ("top_p", "num_tokens"), [(0.25, 1), (0.2500001, 2), (0.5, 2), (0.75, 3), (0.7500001, 4), (1.0, 4)]
)
def test_top_p_keeps_no_more_of_equal_tokens_than_reach_it(instruction_set, top_p, num_tokens):
    places, sampling = np.linspace(0, 0.999, 50), SamplingParams(top_p=top_p)
    tokens = {instruction_set.next_token(np.zeros(4, np.float32), sampling, [], place) for place in places}
    assert tokens == set(range(num_tokens))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 127, 128, 2050])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_logits_that_are_not_finite_have_no_token(instruction_set, sampling, bad, place):
    logits = np.arange(2051, dtype=np.float32)
    logits[5] = -np.inf
    assert instruction_set.next_token(logits, sampling, [], 0.5) >= 0
    logits[place] = bad
    assert instruction_set.next_token(logits, sampling, [], 0.5) == -1
    assert instruction_set.next_token(np.full(300, -np.inf, np.float32), sampling, [], 0.5) == -1
    assert instruction_set.next_token(np.empty(0, np.float32), sampling, [], 0.5) == -1


def test_a_seen_token_that_there_is_not_is_refused(instruction_set):
    for token in (-1, 4):
        with pytest.raises(ValueError, match="not in the vocabulary"):
            instruction_set.next_token(np.zeros(4, np.float32), SamplingParams(repetition_penalty=2.0), [0, token], 0.5)
