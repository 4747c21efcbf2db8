"""Switching without dropping requests, and engines that crash, hang or do not come up."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from edge_agent.engine_wire import Prompt
from edge_agent.errors import EngineGoneError, EngineRefusedError, NotServingError
from edge_agent.protocol import Metric
from tests.simulators.agent_run import AgentRun, running_agent

pytestmark = pytest.mark.anyio


def submit(agent: AgentRun, model: str, words: str):
    served = agent.host.served
    prompt = Prompt(messages=({"role": "user", "content": words},))
    return agent.host.submit(served.models[model], [prompt], {})


async def text_of(answer) -> str:
    with closing(answer):
        return "".join([piece.text async for piece in answer])


async def test_a_request_that_runs_keeps_its_adapter_while_the_next_one_is_served(fleet, catalogue, tmp_path) -> None:
    base, old, new = catalogue.base(), catalogue.adapter("home", "home 1"), catalogue.adapter("home", "home 2")
    fleet.want(base, old)
    async with running_agent(tmp_path / "state", fleet, engine={"step_s": 0.01}) as agent:
        await agent.until_serving(1)
        with closing(submit(agent, "home", "endless")) as running:
            await anext(running)
            await agent.until_serving(fleet.want(base, new))
            child = agent.host.served.child
            assert await agent.ask("home", "hi") == "home 2: hi"
            assert child.loaded == {old.digest, new.digest}
            started = [(await anext(running)).text for _ in range(40)]
            assert "home 1: endless" in "".join(started)
        await agent.until(lambda: child.loaded == {new.digest})


async def test_a_request_that_runs_keeps_its_base_until_it_has_ended(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base("one"))
    async with running_agent(tmp_path / "state", fleet, engine={"step_s": 0.01}) as agent:
        await agent.until_serving(1)
        old = agent.host.served.child
        running = asyncio.create_task(text_of(submit(agent, "base", "a rather long question " * 10)))
        await asyncio.sleep(0.05)
        await agent.until_serving(fleet.want(catalogue.base("two")))
        assert agent.host.served.child is not old
        assert await agent.ask("base", "hi") == "two: hi"
        assert (await running).startswith("one: a rather long")
        await agent.until(lambda: not psutil.pid_exists(old.pid))


async def test_requests_flow_through_every_switch(fleet, catalogue, tmp_path: Path) -> None:
    bases = [catalogue.base("one"), catalogue.base("two")]
    sets = [(bases[0], "a", "one"), (bases[0], "b", "one"), (bases[1], "c", "two"), (bases[1], "d", "two")]
    answers: list[str] = []

    async def ask_on_and_on(agent: AgentRun) -> None:
        while True:
            answers.append(await agent.ask("home", "hi"))

    async with running_agent(tmp_path / "state", fleet) as agent:
        base, tag, of = sets[0]
        await agent.until_serving(fleet.want(base, catalogue.adapter("home", tag, base=of)))
        asking = asyncio.create_task(ask_on_and_on(agent))
        for base, tag, of in sets[1:]:
            await agent.until_serving(fleet.want(base, catalogue.adapter("home", tag, base=of)))
            await agent.until(lambda tag=tag: answers[-1] == f"{tag}: hi")
        assert not asking.done()
        asking.cancel()
    assert sorted(set(answers)) == ["a: hi", "b: hi", "c: hi", "d: hi"]
    assert answers == sorted(answers)


async def test_without_memory_for_two_bases_one_follows_the_other(fleet, catalogue, tmp_path, monkeypatch) -> None:
    fleet.want(catalogue.base("one"))
    async with running_agent(tmp_path / "state", fleet, engine={"step_s": 0.01}) as agent:
        await agent.until_serving(1)
        old = agent.host.served.child
        monkeypatch.setattr("edge_agent.host.memory_bytes", lambda _: 1 << 60)
        old_is_there = []
        start = agent.host._start_child

        async def note(base):
            old_is_there.append(psutil.pid_exists(old.pid))
            return await start(base)

        monkeypatch.setattr(agent.host, "_start_child", note)
        running = asyncio.create_task(text_of(submit(agent, "base", "a question " * 20)))
        fleet.want(catalogue.base("two"))
        await agent.until_serving(2)
        assert old_is_there == [False]
        assert (await running).startswith("one: a question")
        assert await agent.ask("base", "hi") == "two: hi"


async def test_a_failed_base_in_sequence_brings_the_old_one_back(fleet, catalogue, tmp_path, monkeypatch) -> None:
    fleet.want(catalogue.base("one"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        monkeypatch.setattr("edge_agent.host.memory_bytes", lambda _: 1 << 60)
        fleet.want(catalogue.base("damaged"))
        await agent.until_failed(2)
        assert agent.updater.entry.problem.code == "bad_bundle"
        await agent.until(lambda: agent.revision == 1)
        assert await agent.ask("base", "hi") == "one: hi"


BAD_BASES = {"damaged": ("bad_bundle", False), "crash": ("engine_gone", True)}


@pytest.mark.parametrize("tag", list(BAD_BASES))
async def test_a_base_that_does_not_open_never_disturbs_the_old_one(fleet, catalogue, tmp_path, tag: str) -> None:
    code, is_retried = BAD_BASES[tag]
    fleet.want(catalogue.base("one"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        child = agent.host.served.child
        fleet.want(catalogue.base(tag))
        await agent.until_failed(2)
        assert agent.updater.entry.problem.code == code
        assert agent.updater.entry.retryable is is_retried
        assert agent.host.served.child is child
        assert agent.host.num_restarts == 0


async def test_an_adapter_that_kills_the_serving_engine_is_tried_once(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base, catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.want(base, catalogue.adapter("home", "crash on load"))
        await agent.until_failed(2)
        assert agent.updater.entry.problem.code == "engine_gone"
        assert not agent.updater.entry.retryable
        assert await agent.ask("home", "hi") == "home 1: hi"
        assert agent.host.num_restarts == 1


async def test_a_crash_gives_a_clean_error_and_a_new_engine(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet, engine={"step_s": 0.01}) as agent:
        await agent.until_serving(1)
        with closing(submit(agent, "home", "endless")) as bystander:
            await anext(bystander)
            with pytest.raises(EngineGoneError, match="exit status 5"):
                await text_of(submit(agent, "home", "crash"))
            with pytest.raises(EngineGoneError):
                await text_of(bystander)
        assert await agent.ask("home", "again") == "home 1: again"  # waits for the new engine
        assert agent.host.num_restarts == 1
        await agent.until(lambda: fleet.reports[-1].engine_restarts == 1)
        await agent.until(lambda: Metric.ENGINE_RESTARTS in metrics_of(fleet))


def metrics_of(fleet) -> set[Metric]:
    return {sample.metric for batch in fleet.batches.values() for sample in batch.samples}


async def test_an_engine_that_crashes_again_and_again_waits_longer_each_time(fleet, catalogue, tmp_path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet, ready_wait_s=20.0) as agent:
        await agent.until_serving(1)
        pauses = []
        for _ in range(3):
            with pytest.raises(EngineGoneError):
                await text_of(submit(agent, "base", "crash"))
            asked_at_s = time.monotonic()
            assert await agent.ask("base", "hi") == "base: hi"
            pauses.append(time.monotonic() - asked_at_s)
        assert agent.host._num_failures == 3
        assert pauses[2] > 0.5  # half of the second pause of the back-off


async def test_a_hang_is_noticed_and_ended(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet, engine_hang_timeout_s=0.3) as agent:
        await agent.until_serving(1)
        pid = agent.host.served.child.pid
        with pytest.raises(EngineGoneError, match="signal 9"):
            await text_of(submit(agent, "base", "hang"))
        assert await agent.ask("base", "hi") == "base: hi"
        assert not psutil.pid_exists(pid)


async def test_a_hang_costs_others_a_clean_error_and_nobody_who_comes_after(fleet, catalogue, tmp_path) -> None:
    fleet.want(catalogue.base())
    settings = {"engine_hang_timeout_s": 2.0, "ready_wait_s": 20.0, "engine": {"step_s": 0.01}}
    async with running_agent(tmp_path / "state", fleet, **settings) as agent:
        await agent.until_serving(1)
        child = agent.host.served.child
        beside = submit(agent, "base", "endless")
        await anext(beside)
        hanging = asyncio.create_task(text_of(submit(agent, "base", "hang")))
        for asked in (text_of(beside), hanging):
            with pytest.raises(EngineGoneError, match="send the request again"):
                await asked
        assert not child.is_alive
        assert await agent.ask("base", "hi") == "base: hi"
        assert agent.host.num_restarts >= 1


async def test_long_work_is_no_hang(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet, engine_hang_timeout_s=0.3, engine={"step_s": 0.05}) as agent:
        await agent.until_serving(1)
        assert await agent.ask("base", "x" * 20) == f"base: {'x' * 20}"
        assert agent.host.num_restarts == 0


async def test_a_bundle_is_in_use_until_the_engine_has_let_go_of_it(fleet, catalogue, tmp_path: Path) -> None:
    base, late = catalogue.base(), catalogue.adapter("home", "late")
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet, engine={"load_s": 0.5}) as agent:
        await agent.until_serving(1)
        child = agent.host.served.child
        loading = asyncio.create_task(child.load_adapter(catalogue.path("late"), late.digest))
        await asyncio.sleep(0.05)
        loading.cancel()
        unloading = asyncio.create_task(child.unload_adapter(late.digest))
        await asyncio.sleep(0.05)
        assert agent.host.digests_in_use() == {base.digest, late.digest}
        await unloading
        assert agent.host.digests_in_use() == {base.digest}


async def test_a_client_that_leaves_frees_the_engine(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet, engine={"step_s": 0.005}) as agent:
        await agent.until_serving(1)
        child = agent.host.served.child
        body = {"model": "base", "prompt": "endless", "stream": True}
        async with agent.api.stream("POST", "/v1/completions", json=body) as answer:
            await anext(answer.aiter_lines())
            assert child.num_in_flight == 1
        await agent.until(lambda: child.num_in_flight == 0)
        asking = asyncio.create_task(agent.api.post("/v1/completions", json=body | {"stream": False}))
        await agent.until(lambda: child.num_in_flight == 1)
        asking.cancel()
        await agent.until(lambda: child.num_in_flight == 0)
        assert await agent.ask("base", "hi") == "base: hi"


async def test_too_many_requests_are_told_to_come_back(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet, max_in_flight=1, engine={"step_s": 0.01}) as agent:
        await agent.until_serving(1)
        with closing(submit(agent, "base", "endless")):
            with pytest.raises(NotServingError):
                submit(agent, "base", "hi")
            answer = await agent.api.post("/v1/completions", json={"model": "base", "prompt": "hi"})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert await agent.ask("base", "hi") == "base: hi"


async def test_an_engine_without_room_is_503_and_a_refusal_is_final(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        answer = await agent.api.post("/v1/completions", json={"model": "base", "prompt": "no room"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "capacity")
        with pytest.raises(EngineRefusedError):
            await text_of(submit(agent, "base", "too long"))


async def test_what_libraries_print_does_not_get_between_the_lines(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet, engine={"chatter": True}) as agent:
        await agent.until_serving(1)
        assert await agent.ask("base", "hi") == "base: hi"
        assert agent.host.num_restarts == 0


async def test_how_long_an_update_held_the_engine_up_is_told(fleet, catalogue, tmp_path) -> None:
    base = catalogue.base()
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet, engine={"load_s": 0.05}) as agent:
        await agent.until_serving(1)
        assert Metric.UPDATE_PAUSE_S not in metrics_of(fleet)
        await agent.until_serving(fleet.want(base, catalogue.adapter("home", "home 1")))
        await agent.until(lambda: Metric.UPDATE_PAUSE_S in metrics_of(fleet))
    samples = [sample for batch in fleet.batches.values() for sample in batch.samples]
    assert max(s.value.max for s in samples if s.metric is Metric.UPDATE_PAUSE_S) >= 0.05
