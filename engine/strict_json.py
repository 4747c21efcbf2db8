"""Frozen dataclasses to canonical JSON and back, refusing whatever the dataclass does not say.

What comes from a network or a file is hostile until it has passed `decode`: unknown and missing keys, wrong types,
NaN and numbers beyond 64 bits are errors that name the place (`adapters[2].digest`). Standard library
only, part of the doors.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")

_MAX_INT = 2**63 - 1
_MAX_DEPTH = 64


class DecodeError(ValueError):
    """A document that is not what its dataclass says; the message begins with the place."""


def canonical_json(value: object) -> bytes:
    """One byte string per value: sorted keys, no blanks, UTF-8. NaN and infinity are refused with `ValueError`."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def encode(record: object, *, omits_empty: bool = False) -> bytes:
    """Canonical JSON of a dataclass instance.

    `omits_empty`: without the fields that are at their default where that is None or empty. A reader of an older
    version, which refuses fields that it does not know, can then read whatever makes no use of them.
    """
    document = asdict(record)  # type: ignore[call-overload]
    return canonical_json(_without_empty(record, document) if omits_empty else document)


def decode(cls: type[T], data: bytes) -> T:
    """A dataclass instance from JSON bytes; raises `DecodeError`."""
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from error
    return from_document(cls, document)


def from_document(cls: type[T], document: object) -> T:
    """A dataclass instance from parsed JSON; raises `DecodeError`."""
    return typing.cast(T, _convert(cls, document, ""))


def _without_empty(record: Any, document: Any) -> Any:
    """The document of a record, pruned all the way down."""
    if isinstance(record, tuple):
        return [_without_empty(item, part) for item, part in zip(record, document, strict=True)]
    if not is_dataclass(record):
        return document
    return {
        spec.name: _without_empty(getattr(record, spec.name), document[spec.name])
        for spec in fields(record)
        if not (_is_empty(spec.default) and _is_empty(getattr(record, spec.name)))
    }


def _is_empty(value: object) -> bool:
    return value is None or value in ("", ())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _convert(hint: Any, value: object, place: str) -> Any:
    if is_dataclass(hint):
        return _dataclass(hint, value, place)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _literal(args, value, place)
    if origin in (Union, types.UnionType):
        return _optional(args, value, place)
    if origin is tuple:
        return tuple(_convert(args[0], item, f"{place}[{i}]") for i, item in enumerate(_typed(list, value, place)))
    if origin is Mapping:
        items = _typed(dict, value, place).items()
        return {_convert(str, key, place): _convert(args[1], item, f"{place}.{key}") for key, item in items}
    return _scalar(hint, value, place)


def _dataclass(cls: Any, value: object, place: str) -> Any:
    document = _typed(dict, value, place)
    hints = _hints(cls)
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(document) - set(known)):
        raise DecodeError(f"{place or cls.__name__}: unknown field {unknown[0]!r}")
    for name, spec in known.items():
        if name not in document and spec.default is MISSING and spec.default_factory is MISSING:
            raise DecodeError(f"{place or cls.__name__}: missing field {name!r}")
    prefix = f"{place}." if place else ""
    return cls(**{name: _convert(hints[name], item, prefix + name) for name, item in document.items()})


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Types of a dataclass's fields, worked out once: an engine's messages are read for each token."""
    return typing.get_type_hints(cls)


def _literal(allowed: tuple[object, ...], value: object, place: str) -> object:
    for candidate in allowed:
        if type(candidate) is type(value) and candidate == value:
            return candidate
    raise DecodeError(f"{place}: expected one of {', '.join(map(repr, allowed))}, got {value!r:.80}")


def _optional(args: tuple[Any, ...], value: object, place: str) -> Any:
    if value is None and type(None) in args:
        return None
    (hint,) = (a for a in args if a is not type(None))
    return _convert(hint, value, place)


def _scalar(hint: Any, value: object, place: str) -> Any:
    _check_encodable(value, place)
    if hint is Any or hint is object:
        return value
    if hint is float and type(value) is int:
        value = float(value)
    value = _typed(hint, value, place)
    if hint is not type(value):
        return hint(value)
    return value


def _check_encodable(value: object, place: str, depth: int = 0) -> None:
    """What comes in must be able to go out again as canonical JSON."""
    if depth > _MAX_DEPTH:
        raise DecodeError(f"{place}: nested more than {_MAX_DEPTH} deep")
    if type(value) is int and abs(value) > _MAX_INT:
        raise DecodeError(f"{place}: number out of range")
    if type(value) is float and not math.isfinite(value):
        raise DecodeError(f"{place}: not a finite number")
    if type(value) is str and not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DecodeError(f"{place}: half of a UTF-16 pair")
    for item in (*value, *value.values()) if type(value) is dict else value if type(value) is list else ():
        _check_encodable(item, place, depth + 1)


def _typed(kind: Any, value: object, place: str) -> Any:
    """The value if JSON gave it this very type (`True` is no int); StrEnums come from their strings."""
    if isinstance(kind, type) and issubclass(kind, str) and kind is not str:
        try:
            return kind(value)
        except ValueError as error:
            raise DecodeError(f"{place}: {value!r:.80} is not a {kind.__name__}") from error
    if type(value) is not kind:
        raise DecodeError(f"{place or 'document'}: expected {kind.__name__}, got {type(value).__name__}")
    return value
