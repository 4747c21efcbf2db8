from __future__ import annotations

import json

import pytest

from edge_agent.tool_calls import parse_tool_calls


def call(name: str, **arguments: object) -> str:
    document = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(document, ensure_ascii=False)}\n</tool_call>"


def test_calls_are_taken_out_of_the_text() -> None:
    text, calls = parse_tool_calls(f"好的。{call('开灯', 房间='客厅')}\n{call('f', a=[1, 2])} 完成")
    assert text == "好的。\n 完成"
    assert [(c.name, json.loads(c.arguments)) for c in calls] == [("开灯", {"房间": "客厅"}), ("f", {"a": [1, 2]})]
    assert len({c.id for c in calls}) == 2


def test_a_call_without_arguments() -> None:
    _, (found,) = parse_tool_calls('<tool_call>{"name": "stop"}</tool_call>')
    assert (found.name, found.arguments) == ("stop", "{}")


@pytest.mark.parametrize(
    "text",
    [
        "no call at all",
        "<tool_call>{</tool_call>",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": 5}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "f"}',
        call("good") + "<tool_call>bad</tool_call>",
    ],
)
def test_what_cannot_be_read_stays_text(text: str) -> None:
    assert parse_tool_calls(text) == (text, [])
