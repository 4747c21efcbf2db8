"""The device's own OpenAI-compatible API: `model` names an adapter, or the base for the bare base.

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /v1/models/{name}
    POST /v1/load_lora_adapter   POST /v1/unload_lora_adapter   GET /health   GET /metrics   GET /socle/status
    GET /openapi.json

Turns documents into requests to the host and pieces into documents; knows nothing of updates. A client that goes away
ends its request. Errors have OpenAI's form; what is worth trying again comes as 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edge_agent import openai_forms as forms
from edge_agent import openapi
from edge_agent.api_errors import HANDLERS, BadRequestError, ClientGoneError, as_clients_fault, error_document
from edge_agent.api_gate import Gate
from edge_agent.choices import Addition, Reply
from edge_agent.device import agent_version
from edge_agent.errors import AgentError
from edge_agent.host import Host
from edge_agent.local_adapters import LocalAdapters
from edge_agent.openai_bodies import LoadAdapterBody, UnloadAdapterBody
from edge_agent.openai_requests import Asked, parse_body, parse_chat, parse_completion
from edge_agent.recorder import Recorder, outcome_of

MAX_BODY_BYTES = 8 << 20

T = TypeVar("T")


class EventStream(StreamingResponse):
    """Server-sent events of one reply, which is closed whatever happens to the connection."""

    def __init__(self, events: AsyncIterator[bytes], reply: Reply) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.close()


class LocalApi:
    """The routes and what they need."""

    def __init__(
        self,
        host: Host,
        recorder: Recorder,
        status: Callable[[], Mapping[str, Any]],
        local_adapters: LocalAdapters | None = None,
    ) -> None:
        """`local_adapters`: None if adapters may not be loaded from directories."""
        self._local_adapters = local_adapters
        self._host = host
        self._recorder = recorder
        self._status = status

    def app(self, *, hosts: Collection[str] | None, token: str | None = None) -> Starlette:
        """The ASGI application, behind an `api_gate.Gate`."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name}", self.model),
                Route("/v1/load_lora_adapter", self.load_adapter, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload_adapter, methods=["POST"]),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route("/socle/status", self.status),
                Route("/openapi.json", self.openapi),
            ],
            middleware=[Middleware(Gate, hosts=hosts, token=token)],
            exception_handlers=dict(HANDLERS),
        )

    async def chat_completions(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._reply_to(request, parse_chat(await _body(request)))

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self._reply_to(request, parse_completion(await _body(request)))

    async def models(self, _request: Request) -> Response:
        """`GET /v1/models`."""
        served = self._host.served
        data = [forms.model_document(model, int(served.since_s)) for model in served.models.values()] if served else []
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{name}`."""
        served, name = self._host.served, request.path_params["name"]
        if served is None or name not in served.models:
            raise _unknown_model(name)
        return JSONResponse(forms.model_document(served.models[name], int(served.since_s)))

    async def load_adapter(self, request: Request) -> Response:
        """`POST /v1/load_lora_adapter`, for adapters in development."""
        adapters = self._allowed_local_adapters()
        body = parse_body(LoadAdapterBody, await _body(request))
        await adapters.load(body.lora_name, Path(body.lora_path), in_place=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        """`POST /v1/unload_lora_adapter`."""
        adapters = self._allowed_local_adapters()
        body = parse_body(UnloadAdapterBody, await _body(request))
        adapters.unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def _allowed_local_adapters(self) -> LocalAdapters:
        if self._local_adapters is None:
            message = "adapters are rolled out to this device; for some in development start it with --local-adapters"
            raise BadRequestError(message, code="disabled", status=403)
        return self._local_adapters

    async def health(self, _request: Request) -> Response:
        """200 if requests are answered, else 503."""
        if self._host.served:
            return JSONResponse({"status": "ok"})
        problem = self._host.problem
        return JSONResponse(
            {"status": "not_serving", "problem": problem and problem.code},
            status_code=503,
            headers={"Retry-After": "2"},
        )

    async def metrics(self, _request: Request) -> Response:
        """Prometheus's text format."""
        self._recorder.look_at(self._host)
        return Response(self._recorder.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(self, _request: Request) -> Response:
        """What `python -m edge_agent status` shows."""
        return JSONResponse(dict(self._status()))

    async def openapi(self, _request: Request) -> Response:
        """The API as an OpenAPI document."""
        return JSONResponse(openapi.document(agent_version()))

    async def _reply_to(self, request: Request, asked: Asked) -> Response:
        model = await self._host.resolve(asked.model)
        if model is None:
            raise _unknown_model(asked.model)
        _check_number(asked, self._host.max_in_flight)
        # No await up to here from `resolve`: the adapter can't be unloaded before the request counts as in flight.
        try:
            answers = self._host.submit(model, asked.prompts, asked.sampling, asked.num_answers)
        except AgentError as error:
            self._recorder.request_ended(model, outcome_of(error), None)
            raise
        reply = Reply(asked, model, answers, self._recorder)
        try:
            if asked.stream:
                return await _stream(request, reply)
            with closing(reply):
                return await _unless_gone(request, _whole(reply))
        except AgentError as error:
            if fault := as_clients_fault(error, asked.prompt_field):
                raise fault from error
            raise


async def _whole(reply: Reply) -> Response:
    async for _ in reply:
        pass
    return JSONResponse(forms.completion(reply))


async def _stream(request: Request, reply: Reply) -> Response:
    """Waits for the first piece, so that whatever is wrong from the start gets a status code of its own."""
    additions = aiter(reply)
    try:
        first = await _unless_gone(request, anext(additions))
    except BaseException:
        reply.close()
        raise
    return EventStream(_events(reply, first, additions), reply)


async def _events(reply: Reply, first: Addition, rest: AsyncIterator[Addition]) -> AsyncIterator[bytes]:
    try:
        async for chunk in _chunks(reply, first, rest):
            yield _event(chunk)
    except AgentError as error:
        yield _event(error_document(str(error), kind="server_error", code=error.code))
    yield b"data: [DONE]\n\n"


async def _chunks(reply: Reply, first: Addition, rest: AsyncIterator[Addition]) -> AsyncIterator[dict[str, Any]]:
    for chunk in forms.first_chunks(reply.asked):
        yield chunk
    addition: Addition | None = first
    while addition is not None:
        made = list(forms.chunks(reply.asked, reply.choices[addition.index], addition))
        if reply.is_finished:
            reply.close()  # counted before the client can know that it is over
            made[-1] |= forms.figures(reply)
        for chunk in made:
            yield chunk
        addition = await anext(rest, None)
    if reply.asked.include_usage:
        yield forms.usage_chunk(reply)


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BadRequestError(f"the body is longer than {MAX_BODY_BYTES} bytes", code="too_large", status=413)
    return bytes(body)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; raises `ClientGoneError`, and cancels the work, if the client leaves first."""
    task, gone = asyncio.ensure_future(work), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_number(asked: Asked, most: int) -> None:
    """More answers than may ever be on their way are the client's mistake, not a matter of time."""
    if asked.num_choices > most:
        raise BadRequestError(
            f"{len(asked.prompts)} prompts with {asked.num_answers} answers each make {asked.num_choices}, this device "
            f"gives {most} at a time: send them in several requests",
            param="n" if asked.num_answers > 1 else "prompt",
        )


def _unknown_model(name: str) -> BadRequestError:
    message = f"the model {name!r:.120} is not on this device: GET /v1/models lists what is"
    return BadRequestError(message, param="model", code="model_not_found", status=404)
