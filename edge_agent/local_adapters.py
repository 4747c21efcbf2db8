"""Adapters in development: served from a directory of this device, beside what was rolled out.

They are there until they are unloaded, the engine's process ends or the next set is rolled out; nothing of them is
reported to be had. Only where the agent was started with `--local-adapters`.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final
from uuid import uuid4

from edge_agent.api_errors import BadRequestError
from edge_agent.business import profile_of
from edge_agent.errors import FinalError, NotServingError
from edge_agent.host import Host
from edge_agent.protocol import ReleaseRef
from edge_agent.served import Model, Served
from edge_agent.store import Store
from engine.artifact import MANIFEST_NAME, AdapterManifest, read_adapter
from engine.errors import InvalidInputError

VERSION: Final = "local"


class LocalAdapters:
    """Loads them and takes them away. `directory` is for what has to be converted."""

    def __init__(self, host: Host, store: Store, directory: Path) -> None:
        self._host = host
        self._store = store
        self._directory = directory

    async def load(self, name: str, source: Path, *, in_place: bool = False) -> None:
        """Serve the bundle or PEFT directory at `source` as the model `name`.

        in_place: it may take the place of a local adapter of that name. Raises `BadRequestError` for a name that is
        taken and for what is no adapter of the base that is served, else as `EngineChild.load_adapter` does.
        """
        served = self._served()
        _check_name(served, name, in_place=in_place)
        bundle = await self._bundle(served, source)
        try:
            manifest, digest = read_adapter(bundle)
            await served.child.load_adapter(bundle, digest)
            model = _model(served, name, manifest, digest)
        except (InvalidInputError, FinalError) as error:
            raise _not_usable(source, str(error)) from error
        self._add(model)

    def unload(self, name: str) -> None:
        """Take a local adapter away, from its running requests when they have ended; raises `BadRequestError`."""
        served = self._served()
        if name not in served.models:
            raise BadRequestError(
                f"there is no adapter {name!r:.120}: GET /v1/models lists what is there",
                param="lora_name",
                code="model_not_found",
                status=404,
            )
        _check_is_local(served, name)
        models = {other: model for other, model in served.models.items() if other != name}
        self._host.exchange_models(replace(served, models=models))

    def _served(self) -> Served:
        if self._host.served is None:
            raise NotServingError("no base is served now: try again in a moment", retry_after_s=2)
        return self._host.served

    def _add(self, model: Model) -> None:
        """While it was loaded another set may have come, with another process or a name that is the same."""
        served = self._served()
        if served.child is not model.child or model.adapter not in model.child.loaded:
            raise NotServingError("another set was rolled out meanwhile: load the adapter again", retry_after_s=1)
        _check_name(served, model.name, in_place=True)
        self._host.exchange_models(replace(served, models={**served.models, model.name: model}))

    async def _bundle(self, served: Served, source: Path) -> Path:
        _check_is_directory(source)
        if (source / MANIFEST_NAME).exists():
            return source
        return await self._convert(source, self._store.bundle(served.child.base))

    async def _convert(self, source: Path, base: Path) -> Path:
        """In a process of its own, which costs memory while it runs and none afterwards."""
        self._remove_unused()
        made = self._directory / f"new-{uuid4().hex}"
        command = (sys.executable, "-m", "engine.convert", "adapter", str(source), str(made), "--base", str(base))
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        digest, said = await process.communicate()
        if process.returncode:
            raise _not_usable(source, said.decode(errors="replace").strip()[-1000:])
        bundle = self._directory / digest.decode().strip()
        if bundle.exists():
            shutil.rmtree(made)
        else:
            made.rename(bundle)
        return bundle

    def _remove_unused(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        used = self._host.digests_in_use()
        for bundle in self._directory.iterdir():
            if bundle.name not in used and not bundle.name.startswith("new-"):
                shutil.rmtree(bundle, ignore_errors=True)


def _model(served: Served, name: str, manifest: AdapterManifest, digest: str) -> Model:
    assert served.desired.base is not None
    ref = ReleaseRef(name, VERSION, digest)
    return Model(name, ref, served.desired.base, digest, profile_of(name, manifest.business), served.child)


def _check_name(served: Served, name: str, *, in_place: bool) -> None:
    if name not in served.models:
        return
    _check_is_local(served, name)
    if not in_place:
        message = f"{name!r:.120} is loaded already: unload it first, or send load_inplace"
        raise BadRequestError(message, param="lora_name", code="name_taken")


def _check_is_directory(source: Path) -> None:
    if not source.is_absolute() or not source.is_dir():
        message = f"{source} is no directory of this device: give the whole path of a bundle or a PEFT directory"
        raise BadRequestError(message, param="lora_path", code="not_found", status=404)


def _check_is_local(served: Served, name: str) -> None:
    if served.models[name].release in served.desired.releases:
        message = f"{name!r:.120} was rolled out to this device and stays: take another name for one in development"
        raise BadRequestError(message, param="lora_name", code="name_taken")


def _not_usable(source: Path, why: str) -> BadRequestError:
    return BadRequestError(f"{source}: {why}", param="lora_path", code="bad_adapter")
