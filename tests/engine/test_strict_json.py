from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.strict_json import DecodeError, canonical_json, decode, encode


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    size: int
    ratio: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    items: tuple[Inner, ...] = ()
    table: Mapping[str, int] = field(default_factory=dict)
    anything: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["a", 1] = "a"
    colour: Colour = Colour.RED
    maybe: int | None = None
    flag: bool = False


INTS = st.integers(-(2**63) + 1, 2**63 - 1)
INNERS = st.builds(Inner, INTS, st.floats(allow_nan=False, allow_infinity=False))
TEXTS = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | INTS | TEXTS,
    lambda item: st.lists(item, max_size=4) | st.dictionaries(TEXTS, item, max_size=4),
    max_leaves=20,
)
OUTERS = st.builds(
    Outer,
    name=TEXTS,
    inner=INNERS,
    items=st.lists(INNERS).map(tuple),
    table=st.dictionaries(TEXTS, INTS),
    anything=st.dictionaries(st.text("ab"), JSON),
    kind=st.sampled_from(["a", 1]),
    maybe=st.none() | INTS,
    flag=st.booleans(),
)
GOOD = {"name": "x", "inner": {"size": 1}}


@given(OUTERS)
def test_decode_undoes_encode(record) -> None:
    assert decode(Outer, encode(record)) == record


@given(OUTERS)
def test_what_is_empty_can_be_left_out(record) -> None:
    assert decode(Outer, encode(record, omits_empty=True)) == record


def test_a_reader_that_does_not_know_an_empty_field_can_read_the_rest() -> None:
    full = Outer("", Inner(0, 0.0), items=(Inner(1),), table={"": 0})
    assert json.loads(encode(full, omits_empty=True)) == {
        "name": "",
        "inner": {"size": 0, "ratio": 0.0},
        "items": [{"size": 1, "ratio": 1.0}],
        "table": {"": 0},
        "anything": {},
        "kind": "a",
        "colour": "red",
        "flag": False,
    }


@given(OUTERS)
def test_one_value_has_one_encoding(record) -> None:
    document = json.loads(encode(record))
    shuffled = json.dumps(dict(reversed(document.items())), indent=3).encode()
    assert encode(decode(Outer, shuffled)) == encode(record)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"other": 1}, "unknown field 'other'"),
        ({"inner": {"size": 1, "x": 2}}, "inner: unknown field 'x'"),
        ({"inner": {}}, "inner: missing field 'size'"),
        ({"inner": []}, "inner: expected dict"),
        ({"inner": {"size": True}}, "inner.size: expected int"),
        ({"inner": {"size": 1.0}}, "inner.size: expected int"),
        ({"inner": {"size": 2**63}}, "inner.size: number out of range"),
        ({"inner": {"size": 1, "ratio": "1"}}, "inner.ratio: expected float"),
        ({"inner": {"size": 1, "ratio": 10**400}}, "inner.ratio: number out of range"),
        ({"name": 7}, "name: expected str"),
        ({"name": None}, "name: expected str"),
        ({"items": {}}, "items: expected list"),
        ({"items": [{"size": 1}, {"size": "2"}]}, r"items\[1\].size: expected int"),
        ({"table": {"a": "b"}}, "table.a: expected int"),
        ({"table": [1]}, "table: expected dict"),
        ({"kind": True}, "kind: expected one of"),
        ({"kind": "b"}, "kind: expected one of"),
        ({"colour": "blue"}, "colour: 'blue' is not a Colour"),
        ({"colour": 3}, "colour: 3 is not a Colour"),
        ({"maybe": "1"}, "maybe: expected int"),
        ({"flag": 0}, "flag: expected bool"),
        ({"name": "\ud83d"}, "name: half of a UTF-16 pair"),
        ({"table": {"\udc00": 1}}, "table: half of a UTF-16 pair"),
        ({"anything": {"a": [{"\ud83d": 1}]}}, "anything.a: half of a UTF-16 pair"),
        ({"anything": {"a": {"b": 2**64}}}, "anything.a: number out of range"),
    ],
    ids=str,
)
def test_anything_else_is_refused_and_its_place_named(change, place) -> None:
    with pytest.raises(DecodeError, match=place):
        decode(Outer, json.dumps({**GOOD, **change}).encode())


@pytest.mark.parametrize("place", ['"inner":{"size":1,"ratio":1e999}', '"inner":{"size":1},"anything":{"a":[1e999]}'])
def test_numbers_that_overflow_are_refused(place) -> None:
    with pytest.raises(DecodeError, match="not a finite number"):
        decode(Outer, f'{{"name":"x",{place}}}'.encode())


@pytest.mark.parametrize("depth", [100, 900])
def test_deep_nesting_is_refused(depth) -> None:
    with pytest.raises(DecodeError):
        decode(Outer, b'{"name":"x","inner":{"size":1},"anything":{"a":' + b"[" * depth + b"]" * depth + b"}}")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b'{"name": NaN}', b"[" * 100_000], ids=len)
def test_what_is_no_document_is_refused(data) -> None:
    with pytest.raises(DecodeError):
        decode(Outer, data)


@given(st.binary())
def test_no_bytes_crash_it(data) -> None:
    with pytest.raises(DecodeError):
        decode(Outer, data)


@given(JSON)
def test_no_document_crashes_it(document) -> None:
    with pytest.raises(DecodeError):
        decode(Outer, json.dumps(document).encode())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": -float("inf")}], ids=str)
def test_canonical_json_has_finite_numbers_only(value) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_canonical_json_is_utf8_without_blanks() -> None:
    assert canonical_json({"b": [1, "灯"], "a": None}) == '{"a":null,"b":[1,"灯"]}'.encode()
