"""Chat templates: Jinja in a sandbox, with what Hugging Face's templates expect to find there. Knows no tokens.

Templates come with published models, so they are hostile: they see plain JSON values only, cannot reach Python objects,
and whatever goes wrong in them is an `InvalidInputError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from engine.errors import InvalidInputError, UnsupportedInputError


class ChatTemplate:
    """A compiled template. `names` holds the texts of special tokens that templates write by name (`bos_token`)."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        """Compile; raises `InvalidInputError` for what is no template."""
        self._names = dict(names)
        self._is_missing = not source
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise InvalidInputError(f"the chat template does not compile: {error!s:.200}") from error

    def render(
        self,
        messages: list[Any],
        tools: list[Any] | None,
        *,
        tool_choice: str | None = None,
        add_generation_prompt: bool,
    ) -> str:
        """The text of a conversation; raises `InvalidInputError` with the template's own words if it refuses."""
        if self._is_missing:
            raise UnsupportedInputError("this base model has no chat template: send a plain prompt to /v1/completions")
        try:
            return self._template.render(
                self._names,
                messages=messages,
                tools=tools,
                **({} if tool_choice is None else {"tool_choice": tool_choice}),
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template can fail in any way on messages that it does not expect
            raise InvalidInputError(f"the chat template refuses these messages: {error!s:.200}") from error


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; for us the block is its content."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the options of Hugging Face's filter
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - as above
) -> str:
    """Jinja's own filter escapes HTML, which models have not been trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
