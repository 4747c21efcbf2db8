"""Socle's REST API and the devices' OpenAI API, as the demo's user would call them: each call can be shown as curl."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

PIECE_BYTES = 1 << 20
Document = dict[str, Any]
Progress = Callable[[str, float], None]
Messages = list[dict[str, str]]


class RefusedError(Exception):
    """The server refused; the message is the problem document's, with its hint."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a device, with what the device measured of it."""

    text: str
    num_tokens: int
    ttft_s: float
    decode_tokens_per_s: float


@dataclass(slots=True)
class Api:
    """The fleet's REST API under an operator token. `show` gets each call as the curl line that does the same."""

    url: str
    token: str
    show: Callable[[str], None] = field(default=lambda _line: None)
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=60.0))

    def call(self, method: str, path: str, body: Document | None = None, *, quiet: bool = False) -> Any:
        """One call; the parsed answer, None if it has no body."""
        if not quiet:
            self.show(self._curl(method, path, body))
        response = self.client.request(method, f"{self.url}{path}", json=body, headers=self._headers())
        return _result(response)

    def publish(self, directory: Path, document: Document, progress: Progress) -> Document:
        """Publish a checkpoint or PEFT directory: announce, send the archive, finish, wait. Returns the release."""
        archive = archive_of(directory)
        self.show(f"tar -C {directory} -cf {directory.name}.tar .")
        announced = {**document, "sha256": hashlib.sha256(archive).hexdigest(), "size_bytes": len(archive)}
        publication = self.call("POST", "/api/v1/publications", announced)
        if publication["state"] != "published":
            self.send(publication["upload"], archive, directory.name, progress)
            publication = self.call("POST", f"/api/v1/publications/{publication['id']}/finish")
        return self.wait_published(publication, progress)

    def gauge(self, name: str) -> float:
        """One value of the server's own Prometheus metrics."""
        response = self.client.get(f"{self.url}/metrics", headers=self._headers())
        response.raise_for_status()
        return float(next(line for line in response.text.splitlines() if line.startswith(f"{name} ")).split()[1])

    def send(self, upload: Document, archive: bytes, name: str, progress: Progress) -> None:
        """Send the archive's bytes from where the server has them up to."""
        offset = upload["offset_bytes"]
        self.show(
            f'curl -X PATCH "$SOCLE{_path(upload["url"])}" -H "Authorization: Bearer $TOKEN" '
            f'-H "Upload-Offset: {offset}" -H "Content-Type: application/offset+octet-stream" -T {name}.tar'
        )
        while offset < len(archive):
            piece = archive[offset : offset + PIECE_BYTES]
            headers = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            url = f"{self.url}{_path(upload['url'])}"
            _result(self.client.patch(url, content=piece, headers=self._headers() | headers))
            offset += len(piece)
            progress("uploading", offset / len(archive))

    def wait_published(self, publication: Document, progress: Progress) -> Document:
        """Wait for the release; raises `RefusedError` with the server's reason if the publication fails."""
        while publication["state"] not in ("published", "failed"):
            progress(publication["step"] or publication["state"], publication["progress"])
            time.sleep(0.2)
            publication = self.call("GET", f"/api/v1/publications/{publication['id']}", quiet=True)
        if publication["state"] == "failed":
            raise RefusedError(_words(publication["problem"]))
        progress("published", 1.0)
        ref = "{name}@{version}".format(**publication["release"])
        return dict(self.call("GET", f"/api/v1/releases/{ref}", quiet=True))

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def _curl(self, method: str, path: str, body: Document | None) -> str:
        line = f'curl -X {method} "$SOCLE{path}" -H "Authorization: Bearer $TOKEN"'
        if body is None:
            return line
        return f"{line} -H 'Content-Type: application/json' -d '{json.dumps(body, ensure_ascii=False)}'"


@dataclass(slots=True)
class DeviceApi:
    """The OpenAI-compatible API of one device."""

    url: str
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=60.0))

    def models(self) -> list[Document]:
        """Base and adapters that the device serves."""
        return list(_result(self.client.get(f"{self.url}/v1/models"))["data"])

    def serves(self, models: set[str]) -> bool:
        """Whether the device serves all of these now."""
        try:
            return models <= {model["id"] for model in self.models()}
        except (httpx2.HTTPError, RefusedError):
            return False

    def chat(self, model: str, messages: Messages) -> Answer:
        """One chat completion, with the sampling that the adapter ships with."""
        body = {"model": model, "messages": messages}
        answer = _result(self.client.post(f"{self.url}/v1/chat/completions", json=body))
        measured = answer["socle"]
        return Answer(
            text=answer["choices"][0]["message"]["content"],
            num_tokens=answer["usage"]["completion_tokens"],
            ttft_s=measured["ttft_s"],
            decode_tokens_per_s=measured["decode_tokens_per_s"],
        )


def _result(response: httpx2.Response) -> Any:
    if response.is_success:
        return response.json() if response.content else None
    try:
        raise RefusedError(_words(response.json()))
    except ValueError:
        raise RefusedError(f"{response.request.method} {response.url}: {response.status_code}") from None


def _words(problem: Document) -> str:
    """A problem document in one line; OpenAI's errors have one member more around theirs."""
    inner = problem.get("error", problem)
    parts = (inner.get(name) for name in ("code", "detail", "message", "hint"))
    return " - ".join(str(part) for part in parts if part)


def _path(url: str) -> str:
    return httpx2.URL(url).path


def archive_of(directory: Path) -> bytes:
    """A tar of the directory, the same bytes each time, so that publishing again finds what is there already."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            entry = tarfile.TarInfo(str(path.relative_to(directory)))
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return buffer.getvalue()
