"""The engine: one base model, many adapters, requests in and answers out.

`Engine.step` is the whole of it: schedule, run, sample, collect. Single-threaded: its owner calls `step` in a loop
while `has_work`. Knows no network, no configuration but what it is given, and no names of adapters: their digests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from engine.accounts import Accounts
from engine.adapters import ResidentAdapters
from engine.artifact import BaseManifest, check_fits, read_adapter, read_base, verify_files
from engine.backends import Backend, Logits, open_backend
from engine.business import Business
from engine.config import EngineConfig
from engine.errors import CapacityError, EngineError, InvalidInputError, RequestTimeoutError
from engine.intake import Intake
from engine.ledger import Kind
from engine.limits import intake_limits, open_ledger, open_tier, scheduler_limits
from engine.metrics import EngineStats, Memory, Metrics, process_memory
from engine.prefix_cache import PrefixCache, Scope
from engine.resident import process_bytes, resident_bytes
from engine.sampling import SamplingParams, TokenLogprobs
from engine.scheduler import Admission, Batch, Scheduler
from engine.sequence import FinishReason, Output, Request, Sequence
from engine.states import SequenceStates
from engine.step_costs import StepCosts
from engine.step_runner import Sampled, StepRunner
from engine.tokenizer import Tokenizer

Prompt = str | SequenceOf[int] | SequenceOf[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Base:
    """An opened base bundle. `bundle` is where it lies, None if it is made up."""

    manifest: BaseManifest
    digest: str
    tokenizer: Tokenizer
    bundle: Path | None = None


class Engine:
    """Runs requests on one base bundle with any of its loaded adapters."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        base: Base,
        backend: Backend,
        process_bytes: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`process_bytes`: what interpreter and libraries take."""
        self.config = config
        self.base = base
        self.tokenizer = base.tokenizer
        self.backend = backend
        self.metrics = Metrics()
        self.before_step: Callable[[frozenset[str]], None] = lambda _: None
        """Told which adapters are about to run."""
        self._clock = clock
        self._accounts = Accounts(self.metrics, clock)
        self._ledger = open_ledger(config, backend, process_bytes)
        limits = intake_limits(config, base.manifest.architecture, self._ledger)
        self.max_context_tokens = limits.max_context_tokens
        self._prefixes = PrefixCache(backend, self._ledger, open_tier(config))
        self._adapters = ResidentAdapters(backend, self._ledger, self._prefixes.shrink)
        self._states = SequenceStates(backend, self._ledger, self._adapters, self._prefixes, self._scope_of)
        costs = StepCosts()
        self._scheduler = Scheduler(scheduler_limits(config, backend), memory=self, costs=costs)
        self._runner = StepRunner(backend, costs, self._accounts, clock)
        self._intake = Intake(
            limits, backend=backend, tokenizer=base.tokenizer, adapters=self._adapters, scheduler=self._scheduler
        )
        self._undelivered: list[Output] = []
        self._request_numbers = count(1)

    @classmethod
    def open(cls, bundle: Path, config: EngineConfig | None = None) -> Engine:
        """Open a base bundle; raises `BundleError` if it is damaged or of another format."""
        config = config or EngineConfig()
        manifest, digest = read_base(bundle)
        if config.verify_files:
            verify_files(bundle, manifest)
        tokenizer = Tokenizer.open(bundle)
        before_bytes, _ = process_memory()
        backend = open_backend(bundle, config)
        base = Base(manifest, digest, tokenizer, bundle)
        return cls(config, base=base, backend=backend, process_bytes=process_bytes(before_bytes, backend, bundle))

    @property
    def base_digest(self) -> str:
        """Names the base's content."""
        return self.base.digest

    def close(self) -> None:
        """Give everything back; running requests are dropped."""
        for sequence in self._scheduler.running:
            self._states.end(sequence)
        self._prefixes.close()
        self.backend.close()

    # Adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        """Digests of the loaded adapters, resident or not."""
        return tuple(self._adapters)

    def load_adapter(self, bundle: Path) -> str:
        """Make an adapter usable by its digest, which is returned; loading it again is free.

        Raises `AdapterMismatchError` if it was made for another base, `BundleError` if it is damaged, and
        `CapacityError` if it does not fit into the adapter budget.
        """
        manifest, digest = read_adapter(bundle)
        check_fits(manifest, self.base.manifest, self.base.digest)
        if self.config.verify_files:
            verify_files(bundle, manifest)
        started_at = self._clock()
        self._adapters.add(digest, bundle, sum(entry.size_bytes for entry in manifest.files))
        self.metrics.adapter_load_s += self._clock() - started_at
        return digest

    def unload_adapter(self, digest: str) -> None:
        """Forget an adapter and what was cached with it; raises `CapacityError` while a request uses it."""
        self._adapters.require_known(digest)
        if any(sequence.adapter == digest for sequence in self._scheduler.waiting):
            raise CapacityError(f"requests for adapter {digest[:12]} are queued: unload it when they are done")
        self._adapters.remove(digest)
        self._prefixes.forget(digest)

    # Requests

    @property
    def num_running(self) -> int:
        """Requests that hold memory."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._scheduler.waiting)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to deliver."""
        return bool(self._undelivered or self._scheduler.running or self._scheduler.waiting)

    def submit(self, request: Request) -> str:
        """Queue a request; its outputs come from `step` under the id that is returned.

        Raises `InvalidInputError` (`ContextLengthError`, `UnknownAdapterError`) or `CapacityError` (`RateLimitError`).
        """
        now_s = self._clock()
        meter = self.metrics.of(request.adapter, request.business.name)
        meter.add(requests=1)
        try:
            sequence = self._intake.sequence(request, now_s)
            self._scheduler.add(sequence)
        except EngineError:
            meter.add(refused=1)
            raise
        self._intake.spend(request, len(request.prompt_token_ids), now_s)
        if sequence.leader is not None:
            sequence.leader.followers.append(sequence)
        return request.request_id

    def cancel(self, request_id: str) -> None:
        """End a request; `step` delivers its last output. A request that is finished or unknown is left alone."""
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            sequence.finish_reason = FinishReason.CANCELLED
            self._undelivered.append(self._retire(sequence))

    def generate(
        self,
        prompt: Prompt,
        *,
        adapter: str | None = None,
        sampling: SamplingParams | None = None,
        business: Business | None = None,
    ) -> Iterator[Output]:
        """The outputs of one request. `prompt` is text as it stands, chat messages, or token ids.

        Closing the iterator cancels the request. Outputs of other requests wait for the next `step`.
        """
        request_id = f"generate-{next(self._request_numbers)}"
        sampling, business = sampling or SamplingParams(), business or Business()
        self.submit(Request(tuple(self._encode(prompt)), request_id, adapter, sampling, business))
        others: list[Output] = []
        finished = False
        try:
            while not finished:
                outputs = self.step()
                others += [output for output in outputs if output.request_id != request_id]
                for output in outputs:
                    if output.request_id == request_id:
                        finished = output.finish_reason is not None
                        yield output
        finally:
            if not finished:
                self.cancel(request_id)
                others += [output for output in self._deliver() if output.request_id != request_id]
            self._undelivered = others + self._undelivered

    def step(self) -> list[Output]:
        """Run one step; at most one output for each request that got a token or ended."""
        now_s = self._clock()
        self._end_late(now_s)
        batch = self._scheduler.schedule(now_s)
        if batch is None:
            self._end_stuck()
            return self._deliver()
        self._accounts.pre_empted(batch)
        batch = self._without_damaged(batch)
        if not batch.work:
            return self._deliver()
        self.before_step(batch.adapters)
        logits = self._runner.run(batch)
        sampled = self._sample(batch, logits)
        return self._deliver() + self._collect(sampled)

    def stats(self) -> EngineStats:
        """What was counted so far, and the memory in use now."""
        reserved = {kind: self._ledger.reserved_bytes(kind) for kind in Kind}
        resident = resident_bytes(
            reserved, self.backend, self.base.bundle, self._adapters, self._prefixes, self._scheduler.running
        )
        return EngineStats(
            base_digest=self.base.digest,
            backend=self.backend.name,
            total=self.metrics.total(),
            by_subject=self.metrics.by_subject(),
            adapter_switch_s=self.backend.adapter_switch_s,
            adapter_load_s=self.metrics.adapter_load_s,
            memory=Memory(reserved, resident, *process_memory()),
            resident_adapters=self._adapters.resident,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
        )

    # The parts of a step

    def _end_late(self, now_s: float) -> None:
        """Requests that have taken as long as they may."""
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            timeout_s = self._intake.timeout_s(sequence.business)
            if now_s - sequence.submitted_at > timeout_s:
                sequence.fail(RequestTimeoutError(f"the request took longer than {timeout_s:g} s: try again later"))
                self._undelivered.append(self._retire(sequence))

    def _end_stuck(self) -> None:
        """With nothing running nothing will become free: what cannot start now never can."""
        sequence = self._scheduler.blocked
        if sequence is not None and not self._undelivered and not self._prefixes.wait_for_disk():
            sequence.fail(CapacityError("the request does not fit into the engine's memory, even alone"))
            self._undelivered.append(self._retire(sequence))

    def _without_damaged(self, batch: Batch) -> Batch:
        """The batch less those whose adapter's file is not the one any more that was loaded.

        All its requests end with an error, and what was cached with it goes: it may have changed while a step ran.
        """
        damaged = self._runner.damaged_adapters(batch)
        for digest, error in damaged.items():
            for sequence in [s for s in self._scheduler.running if s.adapter == digest]:
                sequence.fail(error)
                self._undelivered.append(self._retire(sequence))
            self._prefixes.forget(digest)
        return replace(batch, work=tuple(work for work in batch.work if work.sequence.adapter not in damaged))

    def _sample(self, batch: Batch, logits: list[Logits]) -> list[Sampled]:
        """The next token of each sequence that has no token left to run; None where there is none to be had."""
        sampled: list[Sampled] = []
        for work, rows in zip(batch.work, logits, strict=True):
            if len(rows):
                followers = self._end_prompt(work.sequence)
                sampled += [self._runner.draw(sequence, rows[-1]) for sequence in (work.sequence, *followers)]
        return sampled

    def _end_prompt(self, leader: Sequence) -> list[Sequence]:
        """A prompt is done: keep it, and let those that wait for it begin behind it."""
        if leader.num_answer_tokens:
            return []
        self._states.keep_prompt(leader)
        followers, leader.followers = leader.followers, []
        started = []
        for sequence in followers:
            sequence.leader = None
            if self._scheduler.has_place_for(sequence) and self._states.follow(sequence, leader):
                self._scheduler.start(sequence)
                self._accounts.started(sequence)
                started.append(sequence)
        return started

    def _collect(self, sampled: list[Sampled]) -> list[Output]:
        """Outputs for new tokens; sequences that are finished give their memory back."""
        outputs = []
        for item in sampled:
            sequence, token_id = item.sequence, item.token_id
            if token_id is None:
                outputs.append(self._retire(sequence))
                continue
            text = sequence.accept(token_id)
            self._accounts.token_came(sequence)
            if sequence.finish_reason is None:
                outputs.append(Output(sequence.request_id, (token_id,), text, logprobs=item.logprobs))
            else:
                outputs.append(self._retire(sequence, (token_id,), text, item.logprobs))
        return outputs

    def _retire(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> Output:
        """Take a finished sequence out, and its last output."""
        self._scheduler.remove(sequence)
        self._states.end(sequence)
        for follower in sequence.followers:
            follower.leader = None
        if sequence.leader is not None:
            sequence.leader.followers.remove(sequence)
        self._intake.spend(sequence.request, sequence.num_answer_tokens, self._clock())
        self._accounts.ended(sequence)
        return Output(
            sequence.request_id,
            token_ids,
            text,
            sequence.finish_reason,
            usage=sequence.usage,
            error=sequence.error,
            logprobs=logprobs,
        )

    def _deliver(self) -> list[Output]:
        outputs, self._undelivered = self._undelivered, []
        return outputs

    # What the scheduler asks

    def admit(self, sequence: Sequence) -> Admission:
        """Reserve what a sequence needs to run."""
        try:
            admission = self._states.start(sequence)
        except InvalidInputError as error:  # the bundle was damaged after it was loaded first
            sequence.fail(error)
            self._undelivered.append(self._retire(sequence))
            return Admission.ENDED
        if admission is Admission.ADMITTED:
            self._accounts.started(sequence)
        return admission

    def outlook(self, sequence: Sequence, without: SequenceOf[Sequence]) -> Admission:
        """Whether a sequence might be admitted if others were evicted."""
        return self._states.outlook(sequence, without)

    def evict(self, sequence: Sequence) -> bool:
        """Take a sequence's state away, where computing it again gives the same bits."""
        if not self.backend.cuts_anywhere:
            return False
        self._states.end(sequence)
        sequence.num_computed = 0
        sequence.num_evictions += 1
        self._accounts.evicted(sequence)
        return True

    def _scope_of(self, sequence: Sequence) -> Scope:
        tokenizer = self.base.manifest.tokenizer
        return Scope(
            business=sequence.business.name,
            base=self.base.digest,
            adapter=sequence.adapter,
            tokenizer=tokenizer.tokenizer_sha256,
            chat_template=tokenizer.chat_template_sha256,
            numerics=self.backend.numerics,
        )

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            return self.tokenizer.render_chat([m for m in prompt if isinstance(m, Mapping)])
        return [token for token in prompt if isinstance(token, int)]
