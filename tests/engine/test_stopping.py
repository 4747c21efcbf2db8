from hypothesis import given
from hypothesis import strategies as st

from engine.stopping import StopStrings

LETTERS = st.text("abc", max_size=12)


def stream(stop, pieces):
    stops = StopStrings(stop)
    shown = [stops.push(piece) for piece in pieces]
    return shown, shown and "".join(shown) + stops.flush(), stops.matched


def whole(stop, text):
    """The cut before the stop string that is complete first, by trying every end."""
    for end in range(len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))], max(complete, key=len)
    return text, None


@given(st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.lists(LETTERS, min_size=1, max_size=8))
def test_the_cut_does_not_depend_on_the_pieces(stop, pieces):
    _, text, matched = stream(stop, pieces)
    assert (text, matched) == whole(stop, "".join(pieces))


@given(st.lists(st.text("ab", min_size=2, max_size=4), min_size=1, max_size=3), st.lists(LETTERS, min_size=1))
def test_no_part_of_a_stop_string_that_matches_is_ever_shown(stop, pieces):
    expected, _ = whole(stop, "".join(pieces))
    stops = StopStrings(stop)
    shown = ""
    for piece in pieces:
        shown += stops.push(piece)
        assert expected.startswith(shown)


def test_text_that_cannot_match_is_not_held_back():
    assert stream(["STOP"], ["one S", "T", "ep S", "TOP more"]) == (["one ", "", "STep ", ""], "one STep ", "STOP")


def test_what_was_held_back_comes_at_the_end():
    assert stream(["STOP"], ["a STO"]) == (["a "], "a STO", None)


def test_nothing_follows_a_match():
    stops = StopStrings(["."])
    assert stops.push("yes. no") == "yes"
    assert stops.push("more") == ""
    assert stops.flush() == ""
