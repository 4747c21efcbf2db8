"""The local API as an OpenAPI document, made of the very bodies that check requests. Served at `/openapi.json`."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from edge_agent.openai_bodies import IDLE_FIELDS, ChatBody, CompletionBody, LoadAdapterBody, UnloadAdapterBody

_SCHEMAS: Final = "#/components/schemas"
_BODIES: Final[dict[str, tuple[type[BaseModel], str]]] = {
    "/v1/chat/completions": (ChatBody, "Answer a chat"),
    "/v1/completions": (CompletionBody, "Go on with texts or tokens"),
    "/v1/load_lora_adapter": (LoadAdapterBody, "Load an adapter in development from a directory of the device"),
    "/v1/unload_lora_adapter": (UnloadAdapterBody, "Take such an adapter away"),
}
_READS: Final = {
    "/v1/models": ("The base and its adapters", "application/json"),
    "/v1/models/{name}": ("One of them", "application/json"),
    "/health": ("Whether requests are answered; asks for no token", "application/json"),
    "/metrics": ("For Prometheus", "text/plain"),
    "/socle/status": ("All that a person may want to know", "application/json"),
    "/openapi.json": ("This document", "application/json"),
}
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1. `version` is the agent's."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Socle on a device", "version": version},
        "paths": {path: {"post": _post(path)} for path in _BODIES} | {path: {"get": _get(path)} for path in _READS},
        "components": {
            "schemas": {**_schemas(), "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _post(path: str) -> dict[str, Any]:
    body, summary = _BODIES[path]
    schema = {"$ref": f"{_SCHEMAS}/{body.__name__}"}
    return {
        "operationId": _operation_id(path),
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _responses("application/json" if path.endswith("completions") else "text/plain"),
    }


def _get(path: str) -> dict[str, Any]:
    summary, media_type = _READS[path]
    operation: dict[str, Any] = {
        "operationId": _operation_id(path),
        "summary": summary,
        "responses": _responses(media_type),
    }
    if path.endswith("{name}"):
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _operation_id(path: str) -> str:
    return path.strip("/").removesuffix(".json").replace("/", "_").translate(str.maketrans("", "", "{}"))


def _responses(media_type: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}/Error"}}}
    return {
        "200": {"description": "The answer", "content": {media_type: {}}},
        "default": {"description": "What is wrong, and what to do about it", "content": error},
    }


def _schemas() -> dict[str, Any]:
    """Of all bodies, with the fields that are taken at their defaults alone."""
    kinds = [(body, "validation") for body, _ in _BODIES.values()]
    _, made = models_json_schema(kinds, ref_template=_SCHEMAS + "/{model}")  # type: ignore[arg-type]
    schemas: dict[str, Any] = made["$defs"]
    for body in (ChatBody, CompletionBody):
        idle = {name: {"enum": list(values)} for name, values in IDLE_FIELDS.items()}
        schemas[body.__name__]["properties"] |= idle
    return schemas
