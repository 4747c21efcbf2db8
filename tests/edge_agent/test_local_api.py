"""The local API through the real `openai` client: one answer, whole and streamed."""

from __future__ import annotations

import openai
import pytest

from tests.simulators.agent_run import AgentRun

pytestmark = pytest.mark.anyio
HELLO = [{"role": "user", "content": "hello"}]


def adapter_digest(served: AgentRun, name: str) -> str | None:
    return served.host.served.models[name].adapter


async def test_models_have_the_base_as_parent(client, served) -> None:
    models = {model.id: model.model_extra["parent"] async for model in await client.models.list()}
    assert models == {"base": None, "home": "base", "工具": "base"}
    model = await client.models.retrieve("home")
    assert model.model_extra["root"] == adapter_digest(served, "home")


async def test_a_chat_completion(client, served) -> None:
    answer = await client.chat.completions.create(model="home", messages=HELLO)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "home 1: hello", "stop")
    assert answer.usage.completion_tokens == len("home 1: hello")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    socle = answer.model_extra["socle"]
    assert socle["adapter"] == adapter_digest(served, "home")
    assert (socle["ttft_s"], socle["decode_s"], socle["decode_tokens"]) == (0.25, 2.0, 12)
    assert socle["decode_tokens_per_s"] == 6.0


async def test_a_streamed_chat(client) -> None:
    stream = await client.chat.completions.create(
        model="home", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    with_choices = [chunk for chunk in chunks if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in with_choices) == "home 1: hello"
    assert [chunk.choices[0].finish_reason for chunk in with_choices][-2:] == [None, "stop"]
    assert with_choices[-1].model_extra["socle"]["backend"] == "scripted"
    assert chunks[-1].usage.completion_tokens == len("home 1: hello")
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_without_usage_has_none(client) -> None:
    stream = await client.chat.completions.create(model="home", messages=HELLO, stream=True)
    assert all([chunk.usage is None and chunk.choices async for chunk in stream])


async def test_text_completions(client) -> None:
    answer = await client.completions.create(model="base", prompt="hello", max_tokens=8)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("base: he", "length")
    stream = await client.completions.create(model="base", prompt=["hello"], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "base: hello"


async def test_sampling_comes_from_the_request_then_from_the_business(client) -> None:
    ask = [{"role": "user", "content": "sampling"}]
    answer = await client.chat.completions.create(model="home", messages=ask, max_tokens=200)
    assert answer.choices[0].message.content == (
        "home 1: [('max_tokens', 200), ('stop', ['##']), ('temperature', 0.0), ('top_k', 0)]"
    )
    answer = await client.chat.completions.create(
        model="home",
        messages=ask,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["a", "b"],
        max_completion_tokens=300,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert answer.choices[0].message.content == (
        "home 1: [('max_tokens', 300), ('min_p', 0.1), ('repetition_penalty', 1.1), ('seed', 7), "
        "('stop', ['a', 'b']), ('temperature', 0.5), ('top_k', 5), ('top_p', 0.9)]"
    )


async def test_fields_without_effect_are_taken_at_their_defaults(client) -> None:
    answer = await client.chat.completions.create(
        model="home",
        messages=HELLO,
        n=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        logit_bias={},
        user="me",
        response_format={"type": "text"},
        parallel_tool_calls=True,
        store=False,
    )
    assert answer.choices[0].message.content == "home 1: hello"


async def test_a_crash_in_the_middle_of_a_stream_is_an_error_event(client, served) -> None:
    stream = await client.completions.create(model="base", prompt="endless", stream=True)
    await anext(aiter(stream))
    served.host.served.child.kill()
    with pytest.raises(openai.APIError, match="signal 9"):
        [chunk async for chunk in stream]
    await served.until(lambda: served.revision)


async def test_health_and_status(served: AgentRun) -> None:
    assert (await served.api.get("/health")).json() == {"status": "ok"}
    status = (await served.api.get("/socle/status")).json()
    assert (status["state"], status["has"]["revision"], status["engine"]["state"]) == ("idle", 1, "serving")
    assert status["engine"]["pss_bytes"] > 1e6
