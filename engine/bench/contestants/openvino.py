"""OpenVINO on the CPU, with its own defaults for latency: int8 KV cache and activations where the plugin chooses so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import openvino as ov

from engine.bench.contestants import Logits, Room, Tokens
from engine.bench.contestants.openvino_model import MODEL_NAME, write_openvino
from engine.bench.models import ModelFolder
from engine.convert.building import building

_NAME: Final = "openvino"


class OpenvinoContestant:
    """`Contestant` over one compiled model and one infer request."""

    def __init__(self) -> None:
        self._request: Any = None
        self._saved: list[Any] = []
        self._last: Tokens = np.empty(0, np.int32)
        self._num_saved = self._num_tokens = 0

    def export(self, folder: ModelFolder) -> None:
        """The IR files."""
        if not folder.peer(_NAME).exists():
            with building(folder.peer(_NAME)) as directory:
                write_openvino(folder.base, directory)

    def open(self, folder: ModelFolder, num_threads: int) -> Mapping[str, Any]:
        """Compile the model."""
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if num_threads:
            options["INFERENCE_NUM_THREADS"] = num_threads
        compiled = ov.Core().compile_model(folder.peer(_NAME) / MODEL_NAME, "CPU", options)
        self._request = compiled.create_infer_request()
        return {
            "version": f"OpenVINO {ov.get_version()}",
            "num_threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "kv_cache": str(compiled.get_property("KV_CACHE_PRECISION")),
            "activation_group": compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE"),
        }

    def prepare(self, tokens: Tokens, room: Room) -> None:
        """Variables grow by themselves, so there is no room to reserve."""
        del room
        self._request.reset_state()
        self._saved, self._num_saved, self._num_tokens = [], 0, 0
        self._last = tokens[-1:]
        if len(tokens) > 1:
            self._append(tokens[:-1], num_logits=1)
            self._saved = [_copy(state.state) for state in self._request.query_state()]
            self._num_saved = len(tokens) - 1
        self.rewind()

    def step(self, tokens: Tokens, *, all_logits: bool) -> Logits:
        """One inference."""
        return self._append(tokens, num_logits=len(tokens) if all_logits else 1)

    def rewind(self) -> None:
        """Put the saved variables back, all but the last token's, and run that one.

        Variables that were set have no room behind, and the first step after that pays for making some, which a running
        sequence seldom does. The last token pays it here, outside of what is timed.
        """
        if self._saved:
            for state, saved in zip(self._request.query_state(), self._saved, strict=True):
                state.state = saved
        else:
            self._request.reset_state()
        self._num_tokens = self._num_saved
        if len(self._last):
            self._append(self._last, num_logits=1)

    def _append(self, tokens: Tokens, *, num_logits: int) -> Logits:
        count = len(tokens)
        inputs = {
            "input_ids": tokens[None].astype(np.int64),
            "position_ids": np.arange(self._num_tokens, self._num_tokens + count)[None],
            "beam_idx": np.zeros(1, np.int32),
            "logit_rows": np.arange(count - num_logits, count),
        }
        self._request.infer(inputs, share_inputs=True)
        self._num_tokens += count
        logits: Logits = self._request.get_tensor("logits").data[0]
        return logits


def _copy(tensor: Any) -> Any:
    copied = ov.Tensor(tensor.element_type, tensor.shape)
    tensor.copy_to(copied)
    return copied
