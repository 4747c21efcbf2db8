import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.errors import InvalidInputError, NumericalError
from engine.sampling import (
    SamplingParams,
    candidates,
    draw,
    draw_uniform,
    new_generator,
    next_token,
    penalise_repetition,
)

LOGITS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32))
# Few values, so that ties are common.
TIED_LOGITS = arrays(np.float32, st.integers(1, 20), elements=st.sampled_from([-1.0, 0.0, 2.0]))
TEMPERATURES = st.floats(0.05, 4.0)


def softmax(logits, temperature=1.0):
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def sample(logits, seed=0, **options):
    params = SamplingParams(seed=seed, **options)
    return next_token(np.asarray(logits, np.float32), params, [], draw_uniform(params, new_generator(params)))


@given(LOGITS | TIED_LOGITS)
def test_temperature_zero_takes_the_first_of_the_likeliest(logits):
    assert sample(logits, temperature=0.0) == list(logits).index(max(logits))


@given(LOGITS | TIED_LOGITS, st.integers(1, 50))
def test_top_k_keeps_the_largest_and_of_ties_the_first(logits, top_k):
    token_ids, probabilities = candidates(logits, SamplingParams(top_k=top_k))
    expected = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    assert token_ids.tolist() == expected
    assert probabilities == pytest.approx(softmax(logits[expected]))


@given(LOGITS | TIED_LOGITS, st.floats(0.01, 0.999), TEMPERATURES)
def test_top_p_keeps_the_fewest_that_reach_it(logits, top_p, temperature):
    token_ids, kept = candidates(logits, SamplingParams(top_p=top_p, temperature=temperature))
    probabilities = softmax(logits, temperature)
    mass = probabilities[token_ids].sum()
    assert mass >= top_p - 1e-9
    assert mass - probabilities[token_ids[-1]] < top_p + 1e-9
    left_out = np.delete(probabilities, token_ids)
    assert probabilities[token_ids[-1]] >= left_out.max(initial=0.0) - 1e-12
    assert kept == pytest.approx(probabilities[token_ids] / mass)


@given(LOGITS, st.floats(0.01, 1.0))
def test_min_p_is_relative_to_the_likeliest(logits, min_p):
    token_ids, _ = candidates(logits, SamplingParams(min_p=min_p))
    probabilities = softmax(logits)
    assert set(token_ids) == set(np.flatnonzero(probabilities >= min_p * probabilities.max()))


@given(LOGITS, st.integers(0, 8), st.floats(0.05, 1.0), st.floats(0.0, 1.0), TEMPERATURES)
def test_combined_filters_leave_a_distribution_with_the_likeliest_in_it(logits, top_k, top_p, min_p, temperature):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token_ids, probabilities = candidates(logits, params)
    assert len(set(token_ids)) == len(token_ids)
    assert probabilities.sum() == pytest.approx(1.0)
    assert logits.max() in logits[token_ids]


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    params = SamplingParams(seed=7)
    generator = new_generator(params)
    tokens = [next_token(logits, params, [], draw_uniform(params, generator)) for _ in range(4000)]
    drawn = np.bincount(tokens, minlength=3) / 4000
    assert drawn == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 5), (0.2499, 5), (0.25, 9), (np.nextafter(1.0, 0.0), 9)])
def test_draw_at_the_edges(uniform, token):
    assert draw(np.array([5, 9]), np.array([0.25, 0.75]), uniform) == token


def test_a_token_of_probability_zero_is_never_drawn():
    assert draw(np.array([5, 9]), np.array([0.0, 1.0]), 0.0) == 9


@given(st.integers(0, 2**63 - 1))
def test_the_same_seed_draws_the_same(seed):
    logits = np.linspace(0, 3, 50)
    assert sample(logits, seed) == sample(logits, seed)


def test_nothing_is_drawn_at_temperature_zero():
    params = SamplingParams(seed=3, temperature=0.0)
    generator = new_generator(params)
    assert draw_uniform(params, generator) == 0.0
    assert generator.random() == new_generator(params).random()


def test_other_seeds_and_no_seed_draw_differently():
    logits = np.zeros(1000)
    assert len({sample(logits, seed) for seed in range(20)}) > 10
    assert len({sample(logits, None) for _ in range(20)}) > 10


def test_a_tiny_temperature_is_greedy():
    assert sample([1.0, 3.0, 2.0], temperature=1e-30) == 1


def test_repetition_penalty_lowers_seen_tokens_once_whatever_their_sign():
    logits = np.array([2.0, -2.0, 1.0, 0.0], np.float32)
    assert penalise_repetition(logits, [0, 0, 1, 3], 2.0).tolist() == [1.0, -4.0, 1.0, 0.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.0]


def test_repetition_penalty_changes_the_choice():
    params = SamplingParams(temperature=0.0, repetition_penalty=3.0)
    logits = np.array([2.0, 1.0], np.float32)
    assert next_token(logits, params, [0], uniform=0.0) == 1


@pytest.mark.parametrize("logits", [[1.0, np.nan], [np.inf, 1.0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(logits, temperature):
    with pytest.raises(NumericalError, match="not finite"):
        sample(logits, temperature=temperature)


def test_masked_tokens_are_never_taken():
    assert {sample([-np.inf, 0.0, -np.inf], seed) for seed in range(5)} == {1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("stop", ("",)),
        ("max_tokens", 0),
    ],
)
def test_bad_parameters_are_refused_by_name(name, value):
    with pytest.raises(InvalidInputError, match=f"^{name}: "):
        SamplingParams(**{name: value})
