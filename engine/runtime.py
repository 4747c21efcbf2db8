"""The engine: one base model, many adapters, requests in and answers out.

`Engine.step` is the whole of it: schedule, run, sample, collect. Single-threaded: its owner calls `step` in a loop
while `has_work`. Knows no network, no configuration but what it is given, and no names of adapters: their digests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from engine.adapters import ResidentAdapters
from engine.artifact import (
    ADAPTER_WEIGHTS,
    BASE_WEIGHTS,
    BaseManifest,
    check_fits,
    read_adapter,
    read_base,
    verify_files,
)
from engine.backends import Backend, Logits, Segment, open_backend
from engine.business import Business
from engine.config import EngineConfig
from engine.errors import (
    BundleError,
    CapacityError,
    EngineError,
    InvalidInputError,
    NumericalError,
    RequestTimeoutError,
)
from engine.intake import Intake
from engine.intake import Limits as IntakeLimits
from engine.ledger import ENGINE, Caps, Kind, Ledger
from engine.metrics import EngineStats, Memory, Meter, Metrics, mapped_pss, process_memory
from engine.prefix_cache import PrefixCache, Scope
from engine.prefix_disk import NO_DISK, Disk, Tier
from engine.sampling import SamplingParams, TokenLogprobs, draw_uniform, logprobs_of
from engine.scheduler import Admission, Batch, Limits, Scheduler, StepKind
from engine.sequence import FinishReason, Output, Request, Sequence
from engine.states import SequenceStates
from engine.step_costs import StepCosts
from engine.tokenizer import Tokenizer

Sampled = tuple[Sequence, int | None, tuple[TokenLogprobs, ...]]
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
        """`process_bytes`: what the process took before the base was opened."""
        self.config = config
        self.base = base
        self.tokenizer = base.tokenizer
        self.backend = backend
        self.metrics = Metrics()
        self.max_context_tokens = min(config.max_context_tokens, base.manifest.architecture.max_position_embeddings)
        self.before_step: Callable[[frozenset[str]], None] = lambda _: None
        """Told which adapters are about to run."""
        self._clock = clock
        self._bundles: dict[str, Path] = {}
        self._ledger = _ledger(config, backend, process_bytes)
        self._prefixes = PrefixCache(backend, self._ledger, _tier(config))
        self._adapters = ResidentAdapters(backend, self._ledger, self._prefixes.shrink)
        self._states = SequenceStates(backend, self._ledger, self._adapters, self._prefixes, self._scope_of)
        self._costs = StepCosts()
        self._scheduler = Scheduler(_scheduler_limits(config, backend), memory=self, costs=self._costs)
        self._intake = Intake(backend, self._intake_limits())
        self._undelivered: list[Output] = []
        self._current_adapter: str | None = None
        self._request_numbers = count(1)

    @classmethod
    def open(cls, bundle: Path, config: EngineConfig | None = None) -> Engine:
        """Open a base bundle; raises `BundleError` if it is damaged or of another format."""
        config = config or EngineConfig()
        manifest, digest = read_base(bundle)
        if config.verify_files:
            verify_files(bundle, manifest)
        tokenizer = Tokenizer.open(bundle)
        process_bytes, _ = process_memory()
        backend = open_backend(bundle, config)
        base = Base(manifest, digest, tokenizer, bundle)
        return cls(config, base=base, backend=backend, process_bytes=process_bytes)

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
        self._bundles[digest] = bundle
        self.metrics.adapter_load_s += self._clock() - started_at
        return digest

    def unload_adapter(self, digest: str) -> None:
        """Forget an adapter and what was cached with it; raises `CapacityError` while a request uses it."""
        self._adapters.require_known(digest)
        if any(sequence.adapter == digest for sequence in self._scheduler.waiting):
            raise CapacityError(f"requests for adapter {digest[:12]} are queued: unload it when they are done")
        self._adapters.remove(digest)
        self._bundles.pop(digest, None)
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
            sequence = self._sequence(request, now_s)
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
        batch = self._without_damaged(batch)
        if not batch.work:
            return self._deliver()
        logits = self._run(batch)
        sampled = self._sample(batch, logits)
        return self._deliver() + self._collect(sampled)

    def stats(self) -> EngineStats:
        """What was counted so far, and the memory in use now."""
        pss_bytes, anonymous_bytes = process_memory()
        reserved = {kind: self._ledger.reserved_bytes(kind) for kind in Kind}
        return EngineStats(
            base_digest=self.base.digest,
            backend=self.backend.name,
            total=self.metrics.total(),
            by_subject=self.metrics.by_subject(),
            adapter_switch_s=self.backend.adapter_switch_s,
            adapter_load_s=self.metrics.adapter_load_s,
            memory=Memory(reserved, self._resident(reserved), pss_bytes, anonymous_bytes),
            resident_adapters=self._adapters.resident,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
        )

    # The parts of a step

    def _end_late(self, now_s: float) -> None:
        """Requests that have taken as long as they may."""
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            timeout_s = self._timeout_s(sequence.business)
            if now_s - sequence.submitted_at > timeout_s:
                sequence.fail(RequestTimeoutError(f"the request took longer than {timeout_s:g} s: try again later"))
                self._undelivered.append(self._retire(sequence))

    def _end_stuck(self) -> None:
        """With nothing running nothing will become free: what cannot start now never can."""
        if self._scheduler.waiting and not self._undelivered:
            sequence = self._scheduler.waiting[0]
            sequence.fail(CapacityError("the request does not fit into the engine's memory, even alone"))
            self._undelivered.append(self._retire(sequence))

    def _without_damaged(self, batch: Batch) -> Batch:
        """The batch less those whose adapter's file is not the one any more that was loaded; they end with an error."""
        damaged: dict[str | None, BundleError] = {}
        for digest in {work.sequence.adapter for work in batch.work}:
            try:
                if digest is not None:
                    self.backend.check_adapter(digest)
            except BundleError as error:
                damaged[digest] = error
        for work in batch.work:
            sequence = work.sequence
            if sequence.adapter in damaged:
                sequence.fail(damaged[sequence.adapter])
                self._undelivered.append(self._retire(sequence))
        return Batch(batch.kind, tuple(work for work in batch.work if work.sequence.adapter not in damaged))

    def _run(self, batch: Batch) -> list[Logits]:
        """Append the batch's tokens to their states; logits of the last row of whoever gets a token next."""
        segments = [self._segment(work.sequence, work.num_tokens) for work in batch.work]
        self.before_step(frozenset(segment.adapter for segment in segments if segment.adapter is not None))
        started_at, switched_s = self._clock(), self.backend.adapter_switch_s
        logits = self.backend.step(segments)
        self._count(batch, self._clock() - started_at, self.backend.adapter_switch_s - switched_s)
        return logits

    def _segment(self, sequence: Sequence, num_tokens: int) -> Segment:
        assert sequence.state is not None
        token_ids = np.array(sequence.take(num_tokens), np.int32)
        wants_logits = num_tokens == sequence.num_pending
        return Segment(sequence.state, token_ids, sequence.adapter, (num_tokens - 1,) if wants_logits else ())

    def _count(self, batch: Batch, seconds: float, switched_s: float) -> None:
        num_rows = sum(work.num_tokens for work in batch.work)
        is_prefill = batch.kind is StepKind.PREFILL
        (self._costs.observe_prefill if is_prefill else self._costs.observe_decode)(num_rows, seconds)
        for work in batch.work:
            sequence, share_s = work.sequence, seconds * work.num_tokens / num_rows
            sequence.num_computed += work.num_tokens
            meter = self._meter(sequence)
            if is_prefill:
                meter.add(prefill_tokens=work.num_tokens, prefill_s=share_s)
                sequence.prefill_s += share_s
            else:
                meter.add(decode_tokens=work.num_tokens, decode_s=share_s)
                sequence.decode_s += share_s
            if sequence.adapter != self._current_adapter:
                meter.add(adapter_switches=1, adapter_switch_s=switched_s)
                switched_s = 0.0  # once, with the first
            self._current_adapter = sequence.adapter

    def _sample(self, batch: Batch, logits: list[Logits]) -> list[Sampled]:
        """The next token of each sequence that has no token left to run; None where there is none to be had."""
        sampled: list[Sampled] = []
        for work, rows in zip(batch.work, logits, strict=True):
            if len(rows):
                followers = self._end_prompt(work.sequence)
                sampled += [self._draw(sequence, rows[-1]) for sequence in (work.sequence, *followers)]
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
                self._observe_start(sequence)
                started.append(sequence)
        return started

    def _draw(self, sequence: Sequence, logits: Logits) -> Sampled:
        params = sequence.request.sampling
        try:
            uniform = draw_uniform(params, sequence.generator)
            token = self.backend.next_token(logits, params, sequence.token_ids, uniform)
        except NumericalError as error:
            sequence.fail(error)
            return sequence, None, ()
        if params.logprobs is None:
            return sequence, token, ()
        return sequence, token, (logprobs_of(logits, token, params.logprobs),)

    def _collect(self, sampled: list[Sampled]) -> list[Output]:
        """Outputs for new tokens; sequences that are finished give their memory back."""
        outputs = []
        for sequence, token_id, logprobs in sampled:
            if token_id is None:
                outputs.append(self._retire(sequence))
                continue
            text = sequence.accept(token_id)
            self._observe_token(sequence)
            if sequence.finish_reason is None:
                outputs.append(Output(sequence.request_id, (token_id,), text, logprobs=logprobs))
            else:
                outputs.append(self._retire(sequence, (token_id,), text, logprobs))
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
        self._meter(sequence).add(
            failed=sequence.finish_reason is FinishReason.ERROR,
            cancelled=sequence.finish_reason is FinishReason.CANCELLED,
        )
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
            self._observe_start(sequence)
        return admission

    def evict(self, sequence: Sequence) -> bool:
        """Take a sequence's state away, where computing it again gives the same bits."""
        if not self.backend.cuts_anywhere:
            return False
        self._states.end(sequence)
        sequence.num_computed = 0
        self._meter(sequence).add(evictions=1)
        return True

    # What is counted

    def _meter(self, sequence: Sequence) -> Meter:
        return self.metrics.of(sequence.adapter, sequence.business.name)

    def _observe_start(self, sequence: Sequence) -> None:
        if sequence.num_answer_tokens:
            return  # it comes back after it had to make way
        sequence.queue_s = self._clock() - sequence.submitted_at
        meter = self._meter(sequence)
        meter.queue_s.observe(sequence.queue_s)
        meter.add(prompt_tokens=sequence.num_prompt_tokens, cached_tokens=sequence.num_cached_tokens)

    def _observe_token(self, sequence: Sequence) -> None:
        now, meter = self._clock(), self._meter(sequence)
        if sequence.last_token_at is None:
            sequence.ttft_s = now - sequence.submitted_at
            meter.ttft_s.observe(sequence.ttft_s)
        else:
            meter.inter_token_s.observe(now - sequence.last_token_at)
        sequence.last_token_at = now

    def _resident(self, reserved: Mapping[Kind, int]) -> dict[Kind, int]:
        """The pages that were touched, as far as the back end and the system tell; else what is reserved."""
        memory = self.backend.memory()
        resident = {**reserved, Kind.SCRATCH: memory.resident_scratch_bytes}
        if memory.are_weights_mapped and self.base.bundle is not None:
            by_file = mapped_pss()
            adapters = [self._bundles[digest] / ADAPTER_WEIGHTS for digest in self._adapters.resident]
            resident[Kind.WEIGHTS] = by_file[str((self.base.bundle / BASE_WEIGHTS).resolve())]
            resident[Kind.ADAPTERS] = sum(by_file[str(file.resolve())] for file in adapters)
        states = [sequence.state for sequence in self._scheduler.running if sequence.state is not None]
        resident[Kind.KV] = sum(state.resident_bytes for state in states)
        return resident

    # Checks

    def _sequence(self, request: Request, now_s: float) -> Sequence:
        """A request that may be queued."""
        if self._scheduler.find(request.request_id) is not None:
            raise InvalidInputError(f"request id {request.request_id!r} is in use: give each request its own")
        if request.adapter is not None:
            self._adapters.require_known(request.adapter)
        max_tokens = self._intake.check(request, now_s)
        sequence = Sequence(
            request,
            max_tokens=max_tokens,
            eos_token_ids=self.tokenizer.eos_token_ids,
            text=self.tokenizer.stream(),
            submitted_at=now_s,
        )
        sequence.leader = self._leader_of(request)
        wait_s, timeout_s = self._scheduler.expected_wait_s(sequence, now_s), self._timeout_s(request.business)
        if wait_s > timeout_s:
            raise CapacityError(
                f"requests that come before would take {wait_s:.0f} s, and this one may take {timeout_s:g}: "
                "try again later",
                retry_after_s=wait_s - timeout_s,
            )
        return sequence

    def _leader_of(self, request: Request) -> Sequence | None:
        """The request whose work on the prompt serves this one too, if it has not come too far."""
        leader = self._scheduler.find(request.leader) if request.leader is not None else None
        if leader is None or leader.num_answer_tokens:
            return None
        theirs = leader.request
        is_same = (theirs.prompt_token_ids, theirs.adapter) == (request.prompt_token_ids, request.adapter)
        return leader if is_same and theirs.business.name == request.business.name else None

    def _timeout_s(self, business: Business) -> float:
        return self.config.request_timeout_s if business.timeout_s is None else business.timeout_s

    def _intake_limits(self) -> IntakeLimits:
        room = min(self._ledger.kind_room_bytes(Kind.KV), self._ledger.total_room_bytes)
        return IntakeLimits(self.base.manifest.architecture.vocab_size, self.max_context_tokens, int(room))

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


def _ledger(config: EngineConfig, backend: Backend, process_bytes: int) -> Ledger:
    """With what is taken from the start; raises `CapacityError` if that alone breaks the cap."""
    by_kind = {
        Kind.KV: config.kv_budget_bytes,
        Kind.ADAPTERS: config.adapter_budget_bytes,
        Kind.PREFIX_CACHE: config.prefix_cache_bytes,
    }
    ledger = Ledger(Caps(config.memory_budget_bytes, by_kind))
    memory = backend.memory()
    ledger.reserve(Kind.PROCESS, process_bytes, ENGINE)
    ledger.reserve(Kind.WEIGHTS, memory.weights_bytes, ENGINE)
    ledger.reserve(Kind.SCRATCH, memory.scratch_bytes, ENGINE)
    return ledger


def _tier(config: EngineConfig) -> Tier:
    if config.prefix_cache_dir is None:
        return NO_DISK
    return Disk(
        Path(config.prefix_cache_dir),
        quota_bytes=config.prefix_cache_disk_bytes,
        max_age_s=config.prefix_cache_max_age_s,
    )


def _scheduler_limits(config: EngineConfig, backend: Backend) -> Limits:
    return Limits(
        max_running=min(config.max_running, backend.max_step_rows),
        max_waiting=config.max_waiting,
        prefill_chunk_tokens=min(config.prefill_chunk_tokens, backend.max_step_rows),
        max_bucket_s=config.max_bucket_s,
        cuts_anywhere=backend.cuts_anywhere,
        ageing_s=config.ageing_s,
        mixes_adapters=config.mixes_adapters,
        policy=config.policy,
    )
