"""`python -m edge_agent`: exit codes, readable errors, and who may run where."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from edge_agent.__main__ import app
from edge_agent.config import load_config
from edge_agent.errors import AlreadyRunningError, NotEnrolledError, UserError
from edge_agent.state_dir import StateDir
from edge_agent.trust import read_identity
from tests.simulators.agent_run import running_agent
from tests.simulators.fleet_server import Lost, Status


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.setenv("SOCLE_AGENT_STATE_DIR", str(tmp_path / "state"))
    before = structlog.get_config()
    yield lambda *arguments: CliRunner().invoke(app, arguments)
    structlog.configure(**before)  # the command line has configured it for its own output


def test_enrolment_keeps_key_and_identity_to_itself(run, fleet, tmp_path: Path) -> None:
    done = run("enrol", "--server", fleet.url, "--token", fleet.token, "--name", "kitchen")
    assert (done.exit_code, "kitchen is enrolled" in done.output) == (0, True)
    identity = read_identity(tmp_path / "state" / "identity.json")
    assert identity.device_id in fleet.devices
    for name in ("device.key", "identity.json"):
        assert (tmp_path / "state" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_used_token_is_refused_with_words(run, fleet, tmp_path: Path) -> None:
    done = run("enrol", "--server", fleet.url, "--token", "bad-token.00")
    assert done.exit_code == 4
    assert "fresh token" in done.output
    assert not (tmp_path / "state" / "identity.json").exists()


def test_enrolling_twice_is_refused(run, fleet) -> None:
    run("enrol", "--server", fleet.url, "--token", fleet.token)
    fleet.tokens.add("another")
    done = run("enrol", "--server", fleet.url, "--token", "another")
    assert (done.exit_code, "already" in done.output) == (4, True)
    assert "another" in fleet.tokens


def test_a_second_try_after_a_lost_answer_gets_the_same_identity(run, fleet, tmp_path: Path) -> None:
    fleet.order("/enrol", Lost())
    assert run("enrol", "--server", fleet.url, "--token", fleet.token).exit_code == 5
    assert run("enrol", "--server", fleet.url, "--token", fleet.token).exit_code == 0
    assert [read_identity(tmp_path / "state" / "identity.json").device_id] == list(fleet.devices)


WRONG = {
    "nothing given": (["enrol"], 4, "--token"),
    "no server there": (["enrol", "--server", "http://127.0.0.1:9", "--token", "x.00"], 5, "127.0.0.1"),
    "no URL": (["enrol", "--server", "fleet.example", "--token", "x"], 2, "server"),
    "run without identity": (["run"], 4, "not enrolled"),
    "status of nothing": (["status"], 4, "no agent has run"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_use_says_what_to_do(run, name: str) -> None:
    arguments, code, words = WRONG[name]
    done = run(*arguments)
    assert done.exit_code == code
    assert words in done.output
    assert "Traceback" not in done.output


def test_unknown_settings_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="SOCLE_AGENT_SERVR"):
        load_config({}, {"SOCLE_AGENT_SERVR": "http://x"})


@pytest.mark.parametrize(("name", "value"), [("api_port", 70000), ("max_in_flight", 0), ("log_format", "xml")])
def test_bad_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"setting {name}"):
        load_config({name: value}, {})


def test_one_agent_to_a_state_directory(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path)
    with state_dir.held():
        assert StateDir(tmp_path).is_held()
        with pytest.raises(AlreadyRunningError, match="another agent") as caught:
            StateDir(tmp_path).held().__enter__()
        assert caught.value.exit_code == 3
    assert not state_dir.is_held()


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is opened to be written."""
    real = os.open

    def opened(path, flags, *rest):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", opened)


def test_one_agent_to_a_state_directory_on_a_read_only_disk(tmp_path: Path, read_only) -> None:
    (tmp_path / "agent.lock").write_text("1\n")
    with StateDir(tmp_path).held():
        assert StateDir(tmp_path).is_held()
        with pytest.raises(AlreadyRunningError):
            StateDir(tmp_path).held().__enter__()
    assert not StateDir(tmp_path).is_held()


def test_a_read_only_disk_where_no_agent_ran_is_named(tmp_path: Path, read_only) -> None:
    with pytest.raises(UserError, match="make its disk writable"):
        StateDir(tmp_path).held().__enter__()


def flat(text: str) -> str:
    """Without line breaks and columns."""
    return " ".join(text.split())


@pytest.mark.anyio
async def test_status_of_a_running_agent_and_of_a_stopped_one(run, fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        await agent.ask("home", "hi")
        shown = await asyncio.to_thread(run, "status")
        document = json.loads((await asyncio.to_thread(run, "status", "--json")).output)
        (tmp_path / "state" / "status.json").write_text(json.dumps(document))
    assert shown.exit_code == 0
    for words in ("test-device", "idle", "revision 1", "home 1.0.0", "PSS", "tokens/s", fleet.url):
        assert words in shown.output
    assert document["is_running"]
    assert document["speed"] == {"decode_tokens_per_s": 4.5, "ttft_s": 0.25}
    home = document["requests"]["home"]
    assert (home["requests"], home["failed"], home["decode_tokens"]) == (1, 0, len("home 1: hi"))
    assert home["ttft_p99_s"] == pytest.approx(0.25, rel=0.01)
    assert f"home: requests 1; tokens in {home['prefill_tokens']} and" in flat(shown.output)
    stopped = await asyncio.to_thread(run, "status")
    assert "not running" in stopped.output
    assert not json.loads((await asyncio.to_thread(run, "status", "--json")).output)["is_running"]


@pytest.mark.anyio
async def test_a_device_enrols_when_it_runs_first_and_not_again(fleet, tmp_path: Path) -> None:
    fleet.order("/enrol", Status(503), Lost())
    for _ in range(2):
        async with running_agent(tmp_path / "state", fleet):
            pass
    assert len(fleet.devices) == 1
    assert fleet.count("POST", "/enrol") == 3


@pytest.mark.anyio
async def test_a_device_does_not_go_over_to_another_server(fleet, tmp_path: Path) -> None:
    async with running_agent(tmp_path / "state", fleet):
        pass
    with pytest.raises(NotEnrolledError, match="another --state-dir"):
        async with running_agent(tmp_path / "state", fleet, server="http://elsewhere.example"):
            pass


def test_downloads_can_be_paused_and_resumed(run, tmp_path: Path) -> None:
    done = run("pause")
    assert (done.exit_code, "--state-dir" in done.output) == (2, True)
    StateDir(tmp_path / "state").make()
    assert run("pause").exit_code == 0
    assert StateDir(tmp_path / "state").paused.exists()
    for _ in range(2):
        assert run("resume").exit_code == 0
    assert not StateDir(tmp_path / "state").paused.exists()
