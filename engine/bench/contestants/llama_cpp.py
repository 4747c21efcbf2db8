"""llama.cpp through the low-level interface of llama-cpp-python: batches with a logits flag per token, one sequence.

Everything is as llama.cpp chooses by default (weights repacked for the processor, flash attention if it sees fit, KV
cache in fp16, batches of 512), but for the number of threads: the fastest of a few is taken, for one row and for more.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import llama_cpp
import numpy as np
import psutil

from engine.bench.contestants import Logits, Room, Tokens
from engine.bench.contestants.gguf_file import MODEL_NAME, write_q4_0
from engine.bench.machine import num_usable_cores
from engine.bench.models import ModelFolder
from engine.convert.building import building

_NAME: Final = "llama.cpp"
_TRIAL_ROWS: Final = (1, 8)
_TRIAL_STEPS: Final = 8
_MARGIN: Final = 1.1  # fewer threads than there are cores must be clearly faster


class LlamaCppContestant:
    """`Contestant` over one model and one context of llama.cpp."""

    def __init__(self) -> None:
        logging.getLogger("llama-cpp-python").setLevel(logging.WARNING)  # else a line for every tensor
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._threads = (0, 0)
        self._num_prepared = self._num_tokens = 0

    def export(self, folder: ModelFolder) -> None:
        """The GGUF file."""
        if not folder.peer(_NAME).exists():
            with building(folder.peer(_NAME)) as directory:
                write_q4_0(folder.base, directory)

    def open(self, folder: ModelFolder, num_threads: int) -> Mapping[str, Any]:
        """Load the model and find the best numbers of threads."""
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        path = folder.peer(_NAME) / MODEL_NAME
        started_at = time.perf_counter()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}: its log says why")
        open_s = time.perf_counter() - started_at  # the trial of threads is ours, not llama.cpp's
        self._threads = (num_threads, num_threads) if num_threads else self._best_threads()
        return {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "open_s": open_s,
            "num_threads": self._threads[0],
            "num_batch_threads": self._threads[1],
            "system": llama_cpp.llama_print_system_info().decode(),
            "file_bytes": path.stat().st_size,
        }

    def prepare(self, tokens: Tokens, room: Room) -> None:
        """A context of this size, and the tokens in it."""
        self._free_context()
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = room.capacity
        options.n_outputs_max = room.max_logit_rows  # the default reserves logits for a whole batch
        options.n_threads, options.n_threads_batch = self._threads
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context: its log says why")
        self._batch = _Batch(llama_cpp.llama_n_batch(self._context))
        self._num_tokens = 0
        self._append(tokens, logits_from=len(tokens))
        self._num_prepared = self._num_tokens

    def step(self, tokens: Tokens, *, all_logits: bool) -> Logits:
        """One batch, or several if the tokens are too many for one."""
        num_logits = len(tokens) if all_logits else 1
        self._append(tokens, logits_from=len(tokens) - num_logits)
        first = llama_cpp.llama_get_logits(self._context)  # waits for the computation
        shape = (num_logits, llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        return np.ctypeslib.as_array(first, shape)

    def rewind(self) -> None:
        """Remove the tokens behind from the KV cache."""
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_rm(memory, 0, self._num_prepared, -1)
        self._num_tokens = self._num_prepared

    def _append(self, tokens: Tokens, *, logits_from: int) -> None:
        for start in range(0, len(tokens), self._batch.capacity):
            chunk = tokens[start : start + self._batch.capacity]
            batch = self._batch.filled(chunk, self._num_tokens, logits_from=logits_from - start)
            if code := llama_cpp.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode answers {code}: llama.cpp's log says why")
            self._num_tokens += len(chunk)

    def _free_context(self) -> None:
        if self._context:
            self._batch.free()
            llama_cpp.llama_free(self._context)
            self._context = None

    def _best_threads(self) -> tuple[int, int]:
        """The fastest numbers of threads for steps of one row and of several; hyper-threads may or may not pay."""
        cores = num_usable_cores()
        candidates = sorted({cores, min(cores, psutil.cpu_count(logical=False) or cores), max(1, cores - 1)})
        self._threads = (cores, cores)
        self.prepare(np.zeros(1, np.int32), Room(64, max(_TRIAL_ROWS)))
        one_row, several_rows = (self._fastest(candidates, rows) for rows in _TRIAL_ROWS)
        self._free_context()
        return one_row, several_rows

    def _fastest(self, candidates: Sequence[int], rows: int) -> int:
        """By the best of some steps each, taken in turns: what others do on the machine only ever adds time."""
        best_s = dict.fromkeys(candidates, math.inf)
        for _ in range(_TRIAL_STEPS):
            for num_threads in candidates:
                llama_cpp.llama_set_n_threads(self._context, num_threads, num_threads)
                started_at = time.perf_counter()
                self.step(np.ones(rows, np.int32), all_logits=True)
                best_s[num_threads] = min(best_s[num_threads], time.perf_counter() - started_at)
                self.rewind()
        return min(candidates, key=lambda count: best_s[count] * (1 if count == max(candidates) else _MARGIN))


class _Batch:
    """A `llama_batch` of sequence 0 with room for `capacity` tokens, written through numpy."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._batch = llama_cpp.llama_batch_init(capacity, 0, 1)
        self._tokens = np.ctypeslib.as_array(self._batch.token, (capacity,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (capacity,))
        self._wants_logits = np.ctypeslib.as_array(self._batch.logits, (capacity,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (capacity,))[:] = 1
        for index in range(capacity):
            self._batch.seq_id[index][0] = 0

    def filled(self, tokens: Tokens, position: int, *, logits_from: int) -> Any:
        """The batch with these tokens at `position` and behind; those from `logits_from` on get logits."""
        count = len(tokens)
        self._batch.n_tokens = count
        self._tokens[:count] = tokens
        self._positions[:count] = np.arange(position, position + count)
        self._wants_logits[:count] = np.arange(count) >= logits_from
        return self._batch

    def free(self) -> None:
        """Give the arrays back."""
        llama_cpp.llama_batch_free(self._batch)
