"""Several answers, several prompts and log probabilities through the real `openai` client."""

from __future__ import annotations

import json

import openai
import pytest

pytestmark = pytest.mark.anyio
HELLO = [{"role": "user", "content": "hello"}]


async def test_several_answers_are_drawn_with_seeds_of_their_own(client) -> None:
    ask = [{"role": "user", "content": "sampling"}]
    answer = await client.chat.completions.create(model="base", messages=ask, n=3, seed=7, max_tokens=200)
    said = [choice.message.content for choice in answer.choices]
    assert said == [f"base: [('max_tokens', 200), ('seed', {seed})]" for seed in (7, 8, 9)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == sum(map(len, said))
    assert answer.usage.prompt_tokens == len(said[0])


async def test_several_answers_in_one_stream(client) -> None:
    stream = await client.chat.completions.create(
        model="home", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *with_choices, last = chunks
    for index in range(2):
        own = [chunk.choices[0] for chunk in with_choices if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "home 1: hello"
        assert [choice.finish_reason for choice in own][-2:] == [None, "stop"]
    assert ["socle" in chunk.model_extra for chunk in with_choices] == [False] * (len(with_choices) - 1) + [True]
    assert last.usage.completion_tokens == 2 * len("home 1: hello")


async def test_several_prompts_with_several_answers_each(client) -> None:
    answer = await client.completions.create(model="base", prompt=["one", "two"], n=2)
    assert [choice.text for choice in answer.choices] == ["base: one", "base: one", "base: two", "base: two"]
    assert answer.usage.prompt_tokens == 2 * len("base: one")
    stream = await client.completions.create(model="base", prompt=["one", "two"], stream=True)
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["base: one", "base: two"]


async def test_prompts_as_tokens(client) -> None:
    for prompt, said in {(5, 6): ["(5, 6)"], ((5, 6), (7,)): ["(5, 6)", "(7,)"]}.items():
        answer = await client.completions.create(model="base", prompt=json.loads(json.dumps(prompt)))
        assert [choice.text for choice in answer.choices] == [f"base: {tokens}" for tokens in said]


async def test_answers_of_one_that_fails_all_end(client, served) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model="base", prompt=["endless", "too long"], n=2)
    await served.until(lambda: served.host.num_in_flight == 0)


async def test_more_answers_than_are_free_come_later(client, served) -> None:
    stream = await client.completions.create(model="base", prompt="endless", stream=True)
    await anext(aiter(stream))
    with pytest.raises(openai.InternalServerError) as refused:
        await client.completions.create(model="base", prompt="x", n=64)
    assert (refused.value.status_code, refused.value.code) == (503, "queue_full")
    assert int(refused.value.response.headers["Retry-After"]) >= 1
    await stream.close()
    await served.until(lambda: served.host.num_in_flight == 0)


async def test_log_probabilities_of_a_chat(client) -> None:
    answer = await client.chat.completions.create(model="home", messages=HELLO, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content) == "home 1: hello"
    assert (content[0].logprob, content[0].bytes) == (-0.5, [ord("h")])
    assert [(likely.token, likely.logprob) for likely in content[0].top_logprobs] == [("h", -0.5), ("a", -1.0)]
    plain = await client.chat.completions.create(model="home", messages=HELLO, logprobs=True)
    assert plain.choices[0].logprobs.content[0].top_logprobs == []
    stream = await client.chat.completions.create(model="home", messages=HELLO, logprobs=True, stream=True)
    logprobs = [chunk.choices[0].logprobs async for chunk in stream]
    assert [token for one in logprobs if one for token in one.content] == plain.choices[0].logprobs.content


async def test_log_probabilities_while_a_call_is_held_back(client) -> None:
    body = {"model": "工具", "messages": [{"role": "user", "content": "<tool_call>"}], "logprobs": True}
    tools = [{"type": "function", "function": {"name": "f"}}]
    stream = await client.chat.completions.create(**body, tools=tools, stream=True)
    choices = [chunk.choices[0] async for chunk in stream]
    assert "".join(token.token for c in choices if c.logprobs for token in c.logprobs.content) == "tool: <tool_call>"
    assert "".join(choice.delta.content or "" for choice in choices) == "tool: <tool_call>"


async def test_log_probabilities_of_a_completion(client) -> None:
    answer = await client.completions.create(model="base", prompt="hello", logprobs=2)
    found = answer.choices[0].logprobs
    assert found.tokens == list("base: hello")
    assert found.token_logprobs == [-0.5] * len(found.tokens)
    assert found.top_logprobs[0] == {"b": -0.5, "a": -1.0}
    assert found.text_offset == list(range(len(found.tokens)))
    stream = await client.completions.create(model="base", prompt="hello", logprobs=0, stream=True)
    pieces = [chunk.choices[0].logprobs async for chunk in stream]
    assert [offset for piece in pieces if piece for offset in piece.text_offset] == found.text_offset
    assert next(likely for piece in pieces if piece for likely in piece.top_logprobs) == {"b": -0.5}
