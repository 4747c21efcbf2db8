"""What every operation of the OpenAPI document has in common: problem documents, and keys for safe repetition."""

from typing import Any

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail", "code", "hint", "fields"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "For people."},
        "code": {"type": "string", "description": "Stable, for programs."},
        "hint": {"type": "string", "description": "What to try next."},
        "fields": {"type": "object", "additionalProperties": True, "description": "What is wrong, by field."},
    },
}
_PROBLEM_RESPONSE = {
    "description": "A problem.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_IDEMPOTENCY_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
    "description": "The same key with the same body gets the same answer again; with another body it is a conflict.",
}


def _operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (method, operation)
        for path in document["paths"].values()
        for method, operation in path.items()
        if isinstance(operation, dict) and "responses" in operation
    ]


def describe_problems(result: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
    """Any operation may answer with a problem document."""
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _PROBLEM
    for _, operation in _operations(result):
        operation["responses"].setdefault("default", _PROBLEM_RESPONSE)
    return result


def describe_idempotency(result: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
    """Every POST takes an idempotency key (`fleet.idempotency`)."""
    for method, operation in _operations(result):
        if method == "post":
            operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    return result
