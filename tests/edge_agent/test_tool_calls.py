from __future__ import annotations

import json

import pytest

from edge_agent.tool_calls import ToolCall, ToolCallReader, call_beginning, parse_tool_calls


def call(name: str, **arguments: object) -> str:
    document = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(document, ensure_ascii=False)}\n</tool_call>"


def test_calls_are_taken_out_of_the_text() -> None:
    text, calls = parse_tool_calls(f"好的。{call('开灯', 房间='客厅')}\n{call('f', a=[1, 2])} 完成")
    assert text == "好的。完成"
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
        " blanks <tool_call> bad</tool_call> \n",
    ],
)
def test_what_cannot_be_read_stays_text(text: str) -> None:
    assert parse_tool_calls(text) == (text, [])


def test_one_that_cannot_be_read_spoils_no_other() -> None:
    text, (found,) = parse_tool_calls(call("good") + "<tool_call>bad</tool_call>")
    assert (text, found.name) == ("<tool_call>bad</tool_call>", "good")


def test_text_passes_on_at_once_and_a_call_when_it_is_whole() -> None:
    reader = ToolCallReader()
    pushed = [
        list(reader.push(text)) for text in ("a <", "b <tool", '_call>{"name"', ': "f"}</tool_call', ">", " \n", "c")
    ]
    assert pushed[:4] == [["a"], [" <b"], [], []]
    (found,) = pushed[4]
    assert isinstance(found, ToolCall)
    assert pushed[5:] == [[], ["c"]]
    assert list(reader.flush()) == []


def test_letter_by_letter_gives_the_same_as_at_once() -> None:
    text = f"  好的。 {call('f', a='<tool_call>')}\n\n{call('g')} 完成 <tool_call>{{"
    reader = ToolCallReader()
    parts = [part for letter in text for part in reader.push(letter)] + list(reader.flush())
    whole_text, whole_calls = parse_tool_calls(text)
    assert "".join(part for part in parts if isinstance(part, str)) == whole_text == "  好的。完成 <tool_call>{"
    assert [part.name for part in parts if isinstance(part, ToolCall)] == [c.name for c in whole_calls] == ["f", "g"]


@pytest.mark.parametrize(("name", "rest"), [(None, 'f", "arguments": {}}\n</tool_call>'), ("f", " {}}</tool_call>")])
def test_a_beginning_that_is_not_pushed(name: str | None, rest: str) -> None:
    (found,) = ToolCallReader(call_beginning(name)).push(rest)
    assert isinstance(found, ToolCall)
    assert (found.name, found.arguments) == ("f", "{}")
