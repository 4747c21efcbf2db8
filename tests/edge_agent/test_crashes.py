"""Adapters that take the engine down: found, taken out of service and reported, while the others go on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.crash_marker import CrashMarker
from edge_agent.errors import EngineGoneError, QuarantinedError
from edge_agent.protocol import Metric
from edge_agent.quarantine import Quarantine
from tests.edge_agent.test_host import metrics_of, submit, text_of
from tests.edge_agent.test_real_engine import ENGINE_PROCESS, bundles  # noqa: F401 - a fixture
from tests.simulators.agent_run import AgentRun, running_agent

ROOT = Path(__file__).resolve().parents[2]
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


async def crash(agent: AgentRun, model: str, order: str = "crash") -> None:
    with pytest.raises(EngineGoneError):
        await text_of(submit(agent, model, order))
    await agent.until(lambda: agent.host.served is not None)


@pytest.mark.anyio
async def test_an_adapter_that_crashes_the_engine_three_times_is_not_run_any_more(fleet, catalogue, tmp_path) -> None:
    base = catalogue.base()
    bad, good = catalogue.adapter("home", "home 1"), catalogue.adapter("car", "car 1")
    fleet.want(base, bad, good)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        for _ in range(3):
            assert await agent.ask("home", "hi") == "home 1: hi"
            await crash(agent, "home")
        assert await agent.ask("car", "hi") == "car 1: hi"
        with pytest.raises(QuarantinedError, match="roll out another version"):
            submit(agent, "home", "hi")
        assert bad.digest not in agent.host.served.child.loaded
        await agent.until(lambda: fleet.reports[-1].quarantined == (bad.digest,))
        assert fleet.reports[-1].problem.code == "adapter_quarantined"
        await agent.until(lambda: Metric.ADAPTERS_QUARANTINED in metrics_of(fleet))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        with pytest.raises(QuarantinedError):
            submit(agent, "home", "hi")
        fleet.want(base, catalogue.adapter("home", "home 2"), good)
        await agent.until_serving(2)
        assert await agent.ask("home", "hi") == "home 2: hi"
        await agent.until(lambda: fleet.reports[-1].quarantined == ())
        assert fleet.reports[-1].problem is None


@pytest.mark.anyio
async def test_the_base_alone_is_never_suspected(fleet, catalogue, tmp_path) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet, ready_wait_s=20.0) as agent:
        await agent.until_serving(1)
        for _ in range(3):
            await crash(agent, "base")
        assert agent.host.quarantine.digests == frozenset()
        assert await agent.ask("base", "hi") == "base: hi"


@pytest.mark.anyio
async def test_adapters_that_crashed_together_run_apart_until_the_culprit_is_found(fleet, catalogue, tmp_path) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"), catalogue.adapter("car", "car 1"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        assert "mixes_adapters" not in await agent.ask("home", "config")
        await crash(agent, "home", "crash together")
        assert "('mixes_adapters', False)" in await agent.ask("home", "config")


@pytest.mark.anyio
async def test_an_engine_that_was_stopped_or_had_nothing_to_do_accuses_nobody(fleet, catalogue, tmp_path) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        assert await agent.ask("home", "hi") == "home 1: hi"
        child = agent.host.served.child
        os.kill(child.pid, signal.SIGKILL)
        await agent.until(lambda: not child.is_alive)
        assert child.suspects == frozenset()
        await agent.until(lambda: agent.host.served is not None)
        with closing(submit(agent, "home", "endless")) as answer:
            await anext(answer)
            child = agent.host.served.child
            await agent.host.stop()
        assert child.suspects == frozenset()


@pytest.mark.anyio
async def test_the_real_engine_notes_what_it_runs(fleet, bundles, tmp_path) -> None:  # noqa: F811 - a fixture
    fleet.want(
        fleet.publish("base", "1.0.0", bundles / "base"), home := fleet.publish("home", "1.0.0", bundles / "adapter")
    )
    settings = {"engine_command": ENGINE_PROCESS, "engine": {"num_threads": 1}, "engine_hang_timeout_s": 30.0}
    async with running_agent(tmp_path / "state", fleet, probe_timeout_s=60.0, **settings) as agent:
        await agent.until_serving(1)
        child = agent.host.served.child
        body = {"model": "home", "prompt": "hello", "max_tokens": 100}
        for _ in range(20):  # it may die between two steps, where nobody is to blame
            asking = asyncio.create_task(agent.api.post("/v1/completions", json=body))
            await agent.until(lambda child=child: child.num_in_flight == 1)
            await asyncio.sleep(0.02)
            os.kill(child.pid, signal.SIGKILL)
            answer = await asking
            assert answer.status_code in (200, 503), answer.text  # 200: it had ended when the engine died
            if child.suspects:
                break
            await agent.until(lambda: agent.host.served is not None)
            child = agent.host.served.child
        assert child.suspects == {home.digest}


def test_a_note_is_read_by_another_process() -> None:
    marker = CrashMarker.make()
    program = (
        "import sys; from edge_agent.crash_marker import CrashMarker; CrashMarker(int(sys.argv[1])).note(sys.argv[2:])"
    )
    assert marker.read() == frozenset()
    for noted in ([A, B], [A], []):
        command = [sys.executable, "-c", program, str(marker.descriptor), *noted]
        subprocess.run(command, cwd=ROOT, check=True, pass_fds=(marker.descriptor,))
        assert marker.read() == frozenset(noted)
    marker.close()


def test_a_note_that_is_too_long_is_not_half_written() -> None:
    marker = CrashMarker.make()
    marker.note([A])
    marker.note([f"{number:064}" for number in range(1000)])
    assert marker.read() == {A}
    marker.close()


def test_counts_survive_and_are_forgotten_with_the_adapter(tmp_path) -> None:
    path = tmp_path / "quarantine.json"
    quarantine = Quarantine(path)
    assert [quarantine.note_crash(suspects) for suspects in ([A], [A, B], [A])] == [set(), set(), {A}]
    again = Quarantine(path)
    assert (A in again, B in again, None in again) == (True, False, False)
    assert again.note_crash([B]) == set()
    again.keep_only({A, C})
    assert Quarantine(path).digests == {A}
    assert json.loads(path.read_bytes()) == {"by_digest": {A: 3}}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"by_digest": {"x": "y"}}'])
def test_a_damaged_file_is_no_reason_to_stop(tmp_path, content) -> None:
    path = tmp_path / "quarantine.json"
    path.write_bytes(content)
    quarantine = Quarantine(path)
    assert quarantine.digests == frozenset()
    quarantine.note_crash([A])
    assert Quarantine(path).note_crash([A]) == set()
