"""The engine: one base model, many adapters, requests in and answers out.

`Engine.step` is the whole of it: schedule, run, sample, collect. Single-threaded: its owner calls `step` in a loop
while `has_work`. Knows no network, no configuration but what it is given, and no names of adapters: their digests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from engine.adapters import ResidentAdapters
from engine.artifact import BaseManifest, check_fits, read_adapter, read_base, verify_files
from engine.backends import Backend, Logits, Segment, open_backend
from engine.config import EngineConfig
from engine.errors import CapacityError, ContextLengthError, InvalidInputError, NumericalError
from engine.metrics import EngineStats, Memory, Metrics, process_memory
from engine.sampling import SamplingParams, draw_uniform
from engine.scheduler import Batch, Scheduler, StepKind
from engine.sequence import FinishReason, Output, Request, Sequence
from engine.tokenizer import Tokenizer

Prompt = str | SequenceOf[int] | SequenceOf[Mapping[str, Any]]


class Engine:
    """Runs requests on one base bundle with any of its loaded adapters."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        manifest: BaseManifest,
        base_digest: str,
        tokenizer: Tokenizer,
        backend: Backend,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.base_digest = base_digest
        self.tokenizer = tokenizer
        self.backend = backend
        self.metrics = Metrics()
        self.max_context_tokens = min(config.max_context_tokens, manifest.architecture.max_position_embeddings)
        self._clock = clock
        self._adapters = ResidentAdapters(backend, budget_bytes=config.adapter_budget_bytes)
        self._scheduler = Scheduler(
            max_running=min(config.max_running, backend.max_step_rows),
            max_waiting=config.max_waiting,
            prefill_chunk_tokens=min(config.prefill_chunk_tokens, backend.max_step_rows),
            admit=self._admit,
        )
        self._undelivered: list[Output] = []
        self._current_adapter: str | None = None
        self._kv_bytes = 0
        self._request_numbers = count(1)

    @classmethod
    def open(cls, bundle: Path, config: EngineConfig | None = None) -> Engine:
        """Open a base bundle; raises `BundleError` if it is damaged or of another format."""
        config = config or EngineConfig()
        manifest, digest = read_base(bundle)
        if config.verify_files:
            verify_files(bundle, manifest)
        tokenizer = Tokenizer.open(bundle)
        backend = open_backend(bundle, config)
        return cls(config, manifest=manifest, base_digest=digest, tokenizer=tokenizer, backend=backend)

    def close(self) -> None:
        """Give everything back; running requests are dropped."""
        for sequence in self._scheduler.running:
            self._release(sequence)
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
        check_fits(manifest, self.manifest, self.base_digest)
        if self.config.verify_files:
            verify_files(bundle, manifest)
        started_at = self._clock()
        self._adapters.add(digest, bundle, sum(entry.size_bytes for entry in manifest.files))
        self.metrics.adapter_load_s += self._clock() - started_at
        return digest

    def unload_adapter(self, digest: str) -> None:
        """Forget an adapter; raises `CapacityError` while a queued or running request uses it."""
        self._adapters.require_known(digest)
        if any(sequence.adapter == digest for sequence in self._scheduler.waiting):
            raise CapacityError(f"requests for adapter {digest[:12]} are queued: unload it when they are done")
        self._adapters.remove(digest)

    # Requests

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to deliver."""
        return bool(self._undelivered or self._scheduler.running or self._scheduler.waiting)

    def submit(self, request: Request) -> str:
        """Queue a request; its outputs come from `step` under the id that is returned.

        Raises `InvalidInputError` (`ContextLengthError`, `UnknownAdapterError`) or `CapacityError`.
        """
        max_tokens = self._check(request)
        sequence = Sequence(
            request,
            max_tokens=max_tokens,
            eos_token_ids=self.tokenizer.eos_token_ids,
            text=self.tokenizer.stream(),
            submitted_at=self._clock(),
        )
        self._scheduler.add(sequence)
        self.metrics.of(request.adapter).requests += 1
        return request.request_id

    def cancel(self, request_id: str) -> None:
        """End a request; `step` delivers its last output. A request that is finished or unknown is left alone."""
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            sequence.finish_reason = FinishReason.CANCELLED
            self._undelivered.append(self._retire(sequence))

    def generate(
        self, prompt: Prompt, *, adapter: str | None = None, sampling: SamplingParams | None = None
    ) -> Iterator[Output]:
        """The outputs of one request. `prompt` is text as it stands, chat messages, or token ids.

        Closing the iterator cancels the request. Outputs of other requests wait for the next `step`.
        """
        request_id = f"generate-{next(self._request_numbers)}"
        sampling = sampling or SamplingParams()
        self.submit(Request(tuple(self._encode(prompt)), request_id, adapter, sampling))
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
        batch = self._scheduler.schedule()
        if batch is None:
            return self._deliver()
        logits = self._run(batch)
        sampled = self._sample(batch, logits)
        return self._deliver() + self._collect(sampled)

    def stats(self) -> EngineStats:
        """What was counted so far, and the memory in use now."""
        pss_bytes, anonymous_bytes = process_memory()
        return EngineStats(
            base_digest=self.base_digest,
            backend=self.backend.name,
            total=self.metrics.total(),
            by_adapter=self.metrics.by_adapter(),
            adapter_switch_s=self.backend.adapter_switch_s,
            adapter_load_s=self.metrics.adapter_load_s,
            memory=Memory(pss_bytes, anonymous_bytes, self._kv_bytes, self._adapters.resident_bytes),
            resident_adapters=self._adapters.resident,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
        )

    # The parts of a step

    def _run(self, batch: Batch) -> list[Logits]:
        """Append the batch's tokens to their states; logits of the last row of whoever gets a token next."""
        segments = [self._segment(work.sequence, work.num_tokens) for work in batch.work]
        started_at = self._clock()
        logits = self.backend.step(segments)
        seconds = self._clock() - started_at
        self._count(batch, seconds)
        return logits

    def _segment(self, sequence: Sequence, num_tokens: int) -> Segment:
        assert sequence.state is not None
        token_ids = np.array(sequence.take(num_tokens), np.int32)
        wants_logits = num_tokens == sequence.num_pending
        return Segment(sequence.state, token_ids, sequence.adapter, (num_tokens - 1,) if wants_logits else ())

    def _count(self, batch: Batch, seconds: float) -> None:
        num_rows = sum(work.num_tokens for work in batch.work)
        for work in batch.work:
            sequence, share_s = work.sequence, seconds * work.num_tokens / num_rows
            sequence.num_computed += work.num_tokens
            counters = self.metrics.of(sequence.adapter)
            if batch.kind is StepKind.PREFILL:
                counters.prefill_tokens += work.num_tokens
                counters.prefill_s += share_s
                sequence.prefill_s += share_s
            else:
                counters.decode_tokens += work.num_tokens
                counters.decode_s += share_s
                sequence.decode_s += share_s
            counters.adapter_switches += sequence.adapter != self._current_adapter
            self._current_adapter = sequence.adapter

    def _sample(self, batch: Batch, logits: list[Logits]) -> list[tuple[Sequence, int | None]]:
        """The next token of each sequence that has no token left to run; None where there is none to be had."""
        sampled: list[tuple[Sequence, int | None]] = []
        for work, rows in zip(batch.work, logits, strict=True):
            sequence, params = work.sequence, work.sequence.request.sampling
            if not len(rows):
                continue
            try:
                uniform = draw_uniform(params, sequence.generator)
                token = self.backend.next_token(rows[-1], params, sequence.token_ids, uniform)
                sampled.append((sequence, token))
            except NumericalError as error:
                sequence.fail(str(error))
                sampled.append((sequence, None))
        return sampled

    def _collect(self, sampled: list[tuple[Sequence, int | None]]) -> list[Output]:
        """Outputs for new tokens; sequences that are finished give their memory back."""
        outputs = []
        for sequence, token_id in sampled:
            if token_id is None:
                outputs.append(self._retire(sequence))
                continue
            text = sequence.accept(token_id)
            self._observe_token(sequence)
            if sequence.finish_reason is None:
                outputs.append(Output(sequence.request_id, (token_id,), text))
            else:
                outputs.append(self._retire(sequence, (token_id,), text))
        return outputs

    def _observe_token(self, sequence: Sequence) -> None:
        now, counters = self._clock(), self.metrics.of(sequence.adapter)
        if sequence.last_token_at is None:
            sequence.ttft_s = now - sequence.submitted_at
            counters.ttft.observe(sequence.ttft_s)
        else:
            counters.inter_token.observe(now - sequence.last_token_at)
        sequence.last_token_at = now

    def _retire(self, sequence: Sequence, token_ids: tuple[int, ...] = (), text: str = "") -> Output:
        """Take a finished sequence out, and its last output."""
        self._scheduler.remove(sequence)
        self._release(sequence)
        counters = self.metrics.of(sequence.adapter)
        counters.requests_failed += sequence.finish_reason is FinishReason.ERROR
        counters.requests_cancelled += sequence.finish_reason is FinishReason.CANCELLED
        return Output(
            sequence.request_id, token_ids, text, sequence.finish_reason, usage=sequence.usage, error=sequence.error
        )

    def _deliver(self) -> list[Output]:
        outputs, self._undelivered = self._undelivered, []
        return outputs

    # What a sequence holds while it runs

    def _admit(self, sequence: Sequence) -> bool:
        """Reserve a state and the adapter; False if there is no room now."""
        size_bytes = self.backend.state_bytes(sequence.num_max_tokens)
        if self._kv_bytes + size_bytes > self.config.kv_budget_bytes:
            return False
        try:
            self._pin(sequence)
        except CapacityError:
            return False
        except InvalidInputError as error:  # the bundle was damaged after it was loaded first
            sequence.fail(str(error))
            self._undelivered.append(self._retire(sequence))
            return False
        sequence.state = self.backend.new_state(sequence.num_max_tokens)
        self._kv_bytes += sequence.state.size_bytes
        return True

    def _pin(self, sequence: Sequence) -> None:
        if sequence.adapter is None:
            return
        started_at = self._clock()
        self._adapters.pin(sequence.adapter)
        self.metrics.adapter_load_s += self._clock() - started_at

    def _release(self, sequence: Sequence) -> None:
        """Undo `_admit`, if it took place."""
        if sequence.state is None:
            return
        self._kv_bytes -= sequence.state.size_bytes
        sequence.state.close()
        sequence.state = None
        if sequence.adapter is not None:
            self._adapters.unpin(sequence.adapter)

    # Checks

    def _check(self, request: Request) -> int:
        """How many tokens the answer may have; refuses what can never be served."""
        if self._scheduler.find(request.request_id) is not None:
            raise InvalidInputError(f"request id {request.request_id!r} is in use: give each request its own")
        if request.adapter is not None:
            self._adapters.require_known(request.adapter)
        num_prompt, vocab_size = len(request.prompt_token_ids), self.manifest.architecture.vocab_size
        if not num_prompt or not all(0 <= token < vocab_size for token in request.prompt_token_ids):
            raise InvalidInputError(f"the prompt must have at least one token, each from 0 to {vocab_size - 1}")
        max_tokens = self._check_context(num_prompt, request.sampling.max_tokens)
        num_tokens = num_prompt + max_tokens
        size_bytes, budget_bytes = self.backend.state_bytes(num_tokens), self.config.kv_budget_bytes
        if size_bytes > budget_bytes:
            raise CapacityError(
                f"{num_tokens} tokens need {size_bytes} bytes of KV cache, the budget is {budget_bytes}: "
                "ask for fewer tokens or raise kv_budget_bytes"
            )
        return max_tokens

    def _check_context(self, num_prompt: int, max_tokens: int | None) -> int:
        wanted = num_prompt + (1 if max_tokens is None else max_tokens)
        if wanted > self.max_context_tokens:
            raise ContextLengthError(
                f"{num_prompt} prompt tokens and an answer of {wanted - num_prompt} make {wanted}, the context holds "
                f"{self.max_context_tokens}: shorten the prompt or lower max_tokens"
            )
        if max_tokens is not None:
            return max_tokens
        affordable = self.config.kv_budget_bytes // self.backend.state_bytes(1)
        return max(1, min(self.max_context_tokens, affordable) - num_prompt)

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            return self.tokenizer.render_chat([m for m in prompt if isinstance(m, Mapping)])
        return [token for token in prompt if isinstance(token, int)]
