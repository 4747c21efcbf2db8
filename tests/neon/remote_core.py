"""The interface of `socle_native`, answered by a `socle_runner` process: the core on a processor that qemu emulates.

The form of the messages is described in engine/native/src/messages.h.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

LETTERS = {"uint8": "B", "int8": "b", "int32": "I", "float32": "F", "float64": "D"}
DTYPES = {letter: np.dtype(name) for name, letter in LETTERS.items()}
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "sliding_window"),
)
SAMPLING = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p", "uniform")
SETTINGS = ("instruction_set", "num_threads", "duty_cycle", "max_context_tokens", "max_step_rows", "max_rank")


class Runner:
    """The process; one question at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._dropped: deque[int] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def ask(self, command: str, *values: Any) -> list[Any]:
        """What the runner answers; `ValueError` if it refuses."""
        while self._dropped:
            self._exchange("drop", self._dropped.popleft())
        return self._exchange(command, *values)

    def drop_with(self, owner: object, number: int) -> None:
        """Drop an object of the runner some time after its owner here is gone."""
        weakref.finalize(owner, self._dropped.append, number).atexit = False

    def _exchange(self, command: str, *values: Any) -> list[Any]:
        self.process.stdin.write(message(command, *values))
        self.process.stdin.flush()
        name, answer = parsed(self.process.stdout)
        if name != "ok":
            raise ValueError(*answer)
        return answer


def message(name: str, *values: Any) -> bytes:
    """A request as it goes over the pipe."""
    body = struct.pack("<Q", len(name)) + name.encode() + b"".join(map(encoded, values))
    return struct.pack("<Q", len(body)) + body


def encoded(value: Any) -> bytes:
    """One letter, a length, and the bytes."""
    if isinstance(value, np.ndarray):
        letter, data = LETTERS[value.dtype.name], np.ascontiguousarray(value).tobytes()
    elif isinstance(value, str):
        letter, data = "s", value.encode()
    elif isinstance(value, float | np.floating):
        letter, data = "d", struct.pack("<d", value)
    elif value is None:
        letter, data = "-", b""
    else:
        letter, data = "i", struct.pack("<q", value)
    return letter.encode() + struct.pack("<Q", len(data)) + data


def parsed(stream: Any) -> tuple[str, list[Any]]:
    """Name and values of the next message."""
    (size_bytes,) = struct.unpack("<Q", stream.read(8) or b"\xff" * 8)
    body = stream.read(size_bytes) if size_bytes < 1 << 40 else b""
    if len(body) != size_bytes:
        raise EOFError("the runner has ended")
    (length,) = struct.unpack_from("<Q", body)
    at, values = 8 + length, []
    name = body[8:at].decode()
    while at < len(body):
        letter, (length,) = chr(body[at]), struct.unpack_from("<Q", body, at + 1)
        values.append(decoded(letter, body[at + 9 : at + 9 + length]))
        at += 9 + length
    return name, values


def decoded(letter: str, data: bytes) -> Any:
    """The value that `encoded` made these bytes of."""
    match letter:
        case "i":
            return struct.unpack("<q", data)[0]
        case "d":
            return struct.unpack("<d", data)[0]
        case "s":
            return data.decode()
        case "-":
            return None
        case _:
            return np.frombuffer(data, DTYPES[letter])


class RemoteCore:
    """Stands for the module `socle_native`."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.kernels = Kernels(runner)
        self.Weights = functools.partial(Weights, runner)
        self.Adapter = functools.partial(Adapter, runner)
        self.Model = functools.partial(Model, runner)

    @functools.cached_property
    def BLOCK_TOKENS(self) -> int:  # noqa: N802 - the compiled module's name
        return self.runner.ask("block_tokens")[0]

    def instruction_sets(self) -> list[str]:
        return self.runner.ask("instruction_sets")

    def next_token(self, logits, seen_token_ids, *, top_k, instruction_set, **parameters):
        numbers = {name: float(value) for name, value in parameters.items()} | {"top_k": top_k}
        request = (logits, seen_token_ids, *(numbers[name] for name in SAMPLING))
        return self.runner.ask("next_token", instruction_set, *request)[0]


class Kernels:
    """Stands for `socle_native.kernels`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def quantise(self, instruction_set, x, group_inputs):
        return tuple(self._runner.ask("quantise", instruction_set, x, group_inputs))

    def product(self, *matrix, num_rows, part, dense=None, values=None, tails=None, start=None):
        rows = (num_rows, dense, values, tails)
        return self._runner.ask("product", *matrix, *rows, np.array(part, np.int32), start)[0]

    def store_kv(self, instruction_set, kv_type, keys, values):
        return self._runner.ask("store_kv", instruction_set, kv_type, keys.shape[1], keys, values)[0]

    def __getattr__(self, kernel):
        """Any other kernel: values as they come, one result."""
        return lambda *values: self._runner.ask(kernel, *values)[0]


class Remote:
    """An object that the runner keeps under a number."""

    def __init__(self, runner: Runner, number: int) -> None:
        self._runner = runner
        self.number = number
        runner.drop_with(self, number)

    def ask(self, command: str, *values: Any) -> list[Any]:
        return self._runner.ask(command, self.number, *values)


class Weights(Remote):
    def __init__(self, runner: Runner, num_layers: int) -> None:
        super().__init__(runner, *runner.ask("new_weights", num_layers))

    def set_linear(self, layer, linear, stored, rows, inputs, bits) -> None:
        self.ask("set_linear", layer, linear, bits, rows, inputs, stored)

    def set_embedding(self, high, low, rows, inputs, bits) -> None:
        self.ask("set_embedding", bits, rows, inputs, high, low)

    def set_head(self, high, low, rows, inputs, bits) -> None:
        self.ask("set_head", bits, rows, inputs, high, low)

    def __getattr__(self, command):
        """`set_final_norm`, `set_norms` and `set_biases` take values as they come."""
        return functools.partial(self.ask, command)


class Adapter(Remote):
    def __init__(self, runner: Runner, num_layers: int) -> None:
        super().__init__(runner, *runner.ask("new_adapter", num_layers))

    def set(self, layer, linear, a, b, *sizes) -> None:
        rank, rows, inputs, bits = sizes
        self.ask("set_module", layer, linear, bits, rank, rows, inputs, a, b)


class Model(Remote):
    def __init__(
        self, runner: Runner, *, weights, architecture: Mapping[str, Any], rope_frequencies, **settings
    ) -> None:
        self._weights = weights
        shape = [architecture[name] for name in SIZES]
        request = [*shape, float(architecture["rms_norm_eps"]), np.array(rope_frequencies, np.float64)]
        assert not settings["cpus"], "an emulated processor has no places"
        request += [settings[name] for name in SETTINGS]
        kv_type = "int8" if settings["is_kv_int8"] else "fp16"
        self.instruction_set, number = runner.ask("new_model", weights.number, *request, kv_type)
        self._vocab_size = architecture["vocab_size"]
        super().__init__(runner, number)

    def state_bytes(self, max_tokens: int) -> int:
        return self.ask("state_bytes", max_tokens)[0]

    def new_state(self, max_tokens: int, blocks: Sequence[Block] = (), num_tokens: int = 0) -> State:
        numbers = [block.number for block in blocks]
        return State(self._runner, *self.ask("new_state", max_tokens, num_tokens, len(numbers), *numbers))

    def block_from(self, data: np.ndarray) -> Block:
        return Block(self._runner, *self.ask("block_from", data))

    def step(self, segments: Sequence[tuple[Any, ...]]) -> np.ndarray:
        request = []
        for state, token_ids, parents, adapter, logit_rows in segments:
            request += [state.number, token_ids, parents, None if adapter is None else adapter.number, logit_rows]
        return self.ask("step", len(segments), *request)[0].reshape(-1, self._vocab_size)


class Block(Remote):
    @property
    def bytes(self) -> np.ndarray:
        return self.ask("block_bytes")[0]


class State(Remote):
    def block(self, index: int) -> Block:
        return Block(self._runner, *self.ask("block", index))

    def take(self) -> list[Block]:
        return [Block(self._runner, number) for number in self.ask("take")]

    def fork(self, max_tokens: int) -> State:
        return State(self._runner, *self.ask("fork", max_tokens))

    def rewind(self, num_tokens: int) -> None:
        self.ask("rewind", num_tokens)

    def accept(self, rows: Sequence[int]) -> None:
        self.ask("accept", np.array(rows, np.int32))

    @property
    def num_tokens(self) -> int:
        return self.ask("describe_state")[0]

    @property
    def max_tokens(self) -> int:
        return self.ask("describe_state")[1]

    @property
    def size_bytes(self) -> int:
        return self.ask("describe_state")[2]
