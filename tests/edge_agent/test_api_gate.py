"""Who may ask the local API: a token, a Unix socket, web pages, forms."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from pathlib import Path

import httpx2
import openai
import pytest

from edge_agent.api_gate import read_token
from edge_agent.api_listener import listen_on_socket
from edge_agent.errors import UserError
from edge_agent.status import read_status
from tests.simulators.agent_run import AgentRun, running_agent

pytestmark = pytest.mark.anyio
HELLO = [{"role": "user", "content": "hello"}]
TOKEN = "a-token-of-this-device"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


async def test_a_token_that_was_set_is_asked_for(fleet, catalogue, tmp_path: Path, token_file: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet, api_token_file=token_file) as agent:
        await agent.until_serving(1)
        url = f"{agent.daemon.api.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
            answer = await client.chat.completions.create(model="base", messages=HELLO)
            assert answer.choices[0].message.content == "base: hello"
        for wrong in ("another", TOKEN[:-1], TOKEN + "x", "tökén"):
            headers = {"Authorization": f"Bearer {wrong}".encode()}
            refused = await agent.api.get("/v1/models", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        for path in ("/v1/models", "/metrics", "/socle/status", "/v1/nothing"):
            refused = await agent.api.get(path)
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await agent.api.get("/health")).status_code == 200


async def test_a_unix_socket_for_its_owner_alone(fleet, catalogue, tmp_path: Path, token_file: Path) -> None:
    path = tmp_path / "api.sock"
    leave_behind(path)
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet, api_socket=path, api_token_file=token_file) as agent:
        await agent.until_serving(1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        http = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(path)))
        async with openai.AsyncOpenAI(base_url="http://any.name/v1", api_key=TOKEN, http_client=http) as client:
            answer = await client.chat.completions.create(model="base", messages=HELLO)
            assert answer.choices[0].message.content == "base: hello"
        status = await asyncio.to_thread(read_status, agent.state_dir)
        assert (status["api"], status["is_running"], status["device"]["name"]) == (f"unix:{path}", True, "test-device")
        with pytest.raises(UserError, match="api-socket"):
            listen_on_socket(path)
        assert path.is_socket()
    assert not path.exists()


def leave_behind(path: Path) -> None:
    """As an agent does that is killed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_a_file_in_the_way_of_the_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(UserError, match="letters"):
        listen_on_socket(tmp_path / "letters")
    assert (tmp_path / "letters").read_text() == "dear"
    with pytest.raises(UserError, match="too long"):
        listen_on_socket(tmp_path / ("x" * 120))


BAD_TOKENS = {"empty": (" \n", 0o600), "two words": ("a b", 0o600), "not ASCII": ("ü", 0o600), "open": ("good", 0o644)}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_a_bad_token_file_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "token"
    path.write_text(BAD_TOKENS[case][0])
    path.chmod(BAD_TOKENS[case][1])
    with pytest.raises(UserError, match="api_token_file"):
        read_token(path)


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_token(tmp_path / "token")


async def test_web_pages_cannot_reach_it_by_a_name_of_their_own(served: AgentRun) -> None:
    for host in ("evil.example", "evil.example:8455", "127.0.0.1.evil.example", ""):
        answer = await served.api.get("/v1/models", headers={"Host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_host"), host
    assert (await served.api.get("/v1/models", headers={"Host": "LOCALHOST:1"})).status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
async def test_what_a_web_page_can_send_is_refused(served: AgentRun, kind: str | None) -> None:
    body = json.dumps({"model": "base", "prompt": "x"})
    headers = {"Content-Type": kind} if kind else {}
    answer = await served.api.post("/v1/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
