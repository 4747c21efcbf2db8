"""Adapters in development: from a directory of the device into its local API, and out again."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.convert import convert_base
from tests.engine.golden_cases import GOLDEN_CASES
from tests.simulators.agent_run import AgentRun, running_agent
from tests.simulators.bundles import make_adapter

pytestmark = pytest.mark.anyio


async def post(agent: AgentRun, verb: str, **body: Any) -> tuple[int, Any]:
    answer = await agent.api.post(f"/v1/{verb}_lora_adapter", json=body)
    return answer.status_code, answer.text if answer.status_code == 200 else answer.json()["error"]


async def models(agent: AgentRun) -> dict[str, Any]:
    return {model["id"]: model["parent"] for model in (await agent.api.get("/v1/models")).json()["data"]}


async def test_one_comes_is_exchanged_and_goes(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    for tag in ("dev 1", "dev 2"):
        make_adapter(catalogue.path(tag), catalogue.path("base"), tag)
    async with running_agent(tmp_path / "state", fleet, local_adapters=True) as agent:
        await agent.until_serving(1)
        path = str(catalogue.path("dev 1"))
        assert await post(agent, "load", lora_name="dev", lora_path=path) == (
            200,
            "Success: LoRA adapter 'dev' added successfully.",
        )
        assert await models(agent) == {"base": None, "home": "base", "dev": "base"}
        assert await agent.ask("dev", "hi") == "dev 1: hi"
        status, error = await post(agent, "load", lora_name="dev", lora_path=str(catalogue.path("dev 2")))
        assert (status, error["param"], error["code"]) == (400, "lora_name", "name_taken")
        body = {"lora_name": "dev", "lora_path": str(catalogue.path("dev 2")), "load_inplace": True}
        assert (await post(agent, "load", **body))[0] == 200
        assert await agent.ask("dev", "hi") == "dev 2: hi"
        child = agent.host.served.child
        await agent.until(lambda: len(child.loaded) == 2)
        assert await post(agent, "unload", lora_name="dev") == (
            200,
            "Success: LoRA adapter 'dev' removed successfully.",
        )
        assert await models(agent) == {"base": None, "home": "base"}
        await agent.until(lambda: child.loaded == {fleet.desired.adapters[0].digest})
        assert (await post(agent, "unload", lora_name="dev"))[0] == 404


async def test_it_stays_while_its_request_runs_and_goes_with_the_next_set(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base)
    make_adapter(catalogue.path("dev"), catalogue.path("base"), "dev")
    async with running_agent(tmp_path / "state", fleet, local_adapters=True, engine={"step_s": 0.01}) as agent:
        await agent.until_serving(1)
        assert (await post(agent, "load", lora_name="dev", lora_path=str(catalogue.path("dev"))))[0] == 200
        running = asyncio.create_task(agent.ask("dev", "a rather long question " * 5))
        await agent.until(lambda: agent.host.num_in_flight)
        await agent.until_serving(fleet.want(base, catalogue.adapter("home", "home 1")))
        assert await models(agent) == {"base": None, "home": "base"}
        assert (await running).startswith("dev: a rather")
        await agent.until(lambda: agent.host.served.child.loaded == {fleet.desired.adapters[0].digest})


async def test_what_is_refused(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    catalogue.base("other")
    make_adapter(catalogue.path("dev"), catalogue.path("base"), "dev")
    make_adapter(catalogue.path("foreign"), catalogue.path("other"), "foreign")
    (tmp_path / "empty").mkdir()
    refused = {
        "rolled out": ({"lora_name": "home"}, 400, "lora_name"),
        "the base": ({"lora_name": "base"}, 400, "lora_name"),
        "no name": ({"lora_name": ""}, 400, "lora_name"),
        "a name of two parts": ({"lora_name": "a/b"}, 400, "lora_name"),
        "nothing there": ({"lora_path": str(tmp_path / "nowhere")}, 404, "lora_path"),
        "not the whole path": ({"lora_path": "."}, 404, "lora_path"),
        "an impossible path": ({"lora_path": "/a\0b"}, 404, "lora_path"),
        "no adapter": ({"lora_path": str(tmp_path / "empty")}, 400, "lora_path"),
        "of another base": ({"lora_path": str(catalogue.path("foreign"))}, 400, "lora_path"),
        "a base": ({"lora_path": str(catalogue.path("base"))}, 400, "lora_path"),
        "unknown field": ({"lora_int_id": 1}, 400, "lora_int_id"),
    }
    async with running_agent(tmp_path / "state", fleet, local_adapters=True) as agent:
        await agent.until_serving(1)
        good = {"lora_name": "dev", "lora_path": str(catalogue.path("dev"))}
        for name, (change, status, param) in refused.items():
            found, error = await post(agent, "load", **{**good, **change})
            assert (found, error["param"]) == (status, param), (name, error)
        assert (await post(agent, "unload", lora_name="home"))[0] == 400
        assert set(await models(agent)) == {"base", "home"}
        assert await agent.ask("home", "hi") == "home 1: hi"


async def test_off_unless_the_agent_was_started_so(served: AgentRun, tmp_path: Path) -> None:
    for verb, body in {
        "load": {"lora_name": "dev", "lora_path": str(tmp_path)},
        "unload": {"lora_name": "dev"},
    }.items():
        status, error = await post(served, verb, **body)
        assert (status, error["code"], "--local-adapters" in error["message"]) == (403, "disabled", True)


async def test_a_peft_directory_is_converted(fleet, tmp_path: Path) -> None:
    case = next(case for case in GOLDEN_CASES if case.name == "qwen3")
    base = tmp_path / "base"
    convert_base(case.checkpoint, base)
    fleet.want(fleet.publish("base", "1.0.0", base))
    source = Path(shutil.copytree(case.adapter, tmp_path / "peft"))
    settings = {"engine_command": (sys.executable, "-m", "edge_agent.engine_process"), "engine": {"num_threads": 1}}
    async with running_agent(
        tmp_path / "state", fleet, local_adapters=True, engine_hang_timeout_s=30.0, probe_timeout_s=60.0, **settings
    ) as agent:
        await agent.until_serving(1)
        assert (await post(agent, "load", lora_name="dev", lora_path=str(source)))[0] == 200
        said = {name: await agent.ask(name, "Hello", temperature=0.0, max_tokens=8) for name in ("base", "dev")}
        assert said["base"] != said["dev"]
        (bundle,) = (tmp_path / "state" / "local-adapters").iterdir()
        assert bundle.name == agent.host.served.models["dev"].adapter
        (source / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
        status, error = await post(agent, "load", lora_name="dev 2".replace(" ", "-"), lora_path=str(source))
        assert (status, error["code"]) == (400, "bad_adapter")
