"""Tools through the real `openai` client: given, chosen, called."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.anyio


CALL = '<tool_call>\n{"name": "开灯", "arguments": {"room": "客厅"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "开灯", "parameters": {"type": "object", "properties": {}}}}]


async def test_a_tool_call_is_text_unless_tools_were_given(client) -> None:
    ask = [{"role": "user", "content": CALL}]
    plain = await client.chat.completions.create(model="工具", messages=ask)
    assert plain.choices[0].message.content == f"tool: {CALL}"
    answer = await client.chat.completions.create(model="工具", messages=ask, tools=TOOLS)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "tool:")
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("开灯", {"room": "客厅"})


async def test_a_streamed_tool_call(client) -> None:
    ask = [{"role": "user", "content": CALL}]
    stream = await client.chat.completions.create(model="工具", messages=ask, tools=TOOLS, stream=True)
    chunks = [chunk.choices[0] async for chunk in stream]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "tool:"
    (call,) = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert (call.index, call.function.name) == (0, "开灯")
    assert chunks[-1].finish_reason == "tool_calls"


async def test_tools_reach_the_template_and_past_calls_as_objects(client) -> None:
    history = [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "user", "content": [{"type": "text", "text": "to"}, {"type": "text", "text": "ols"}]},
    ]
    answer = await client.chat.completions.create(model="home", messages=history, tools=TOOLS)
    assert "'name': '开灯'" in answer.choices[0].message.content


def named(function: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": function}}


REST_OF_A_CALL = ' {"room": "客厅"}}\n</tool_call>'
FORCED: dict[str, tuple[Any, str, str]] = {
    "required": ("required", f'开灯", "arguments":{REST_OF_A_CALL}', "tool_calls"),
    "named": (named("开灯"), REST_OF_A_CALL, "stop"),
}


@pytest.mark.parametrize("case", FORCED)
async def test_a_call_that_must_be_made(client, case: str) -> None:
    choice, said, finish_reason = FORCED[case]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": said}], "tools": TOOLS, "tool_choice": choice}
    answer = await client.chat.completions.create(model="工具", **body)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("开灯", {"room": "客厅"})
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == (finish_reason, None)
    chunks = [c async for c in await client.chat.completions.create(model="工具", stream=True, **body)]
    (streamed,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == finish_reason


async def test_the_template_hears_of_the_choice(client) -> None:
    ask = [{"role": "user", "content": "tools"}]
    heard = {}
    for choice in ("auto", "none", "required", named("开灯")):
        answer = await client.chat.completions.create(model="home", messages=ask, tools=TOOLS, tool_choice=choice)
        heard[str(choice)] = answer.choices[0].message.content
    assert heard["none"] == "home 1: (None, None)"
    assert heard["auto"].startswith("home 1: ('auto', ({'function': {'name': '开灯'")
    assert "('required', (" in heard["required"]
    assert "('开灯', (" in heard[str(named("开灯"))]


async def test_calls_side_by_side_unless_one_is_enough(client) -> None:
    ask = [{"role": "user", "content": f"{CALL}\n{CALL}"}]
    calls = {}
    for several in (True, False):
        answer = await client.chat.completions.create(
            model="工具", messages=ask, tools=TOOLS, parallel_tool_calls=several
        )
        calls[several] = len(answer.choices[0].message.tool_calls)
    assert calls == {True: 2, False: 1}
