"""Whether a checkpoint's tensors are those that its configuration calls for. Knows names and shapes, no values."""

from __future__ import annotations

from typing import Final

from engine.artifact import Architecture
from engine.convert.errors import MissingTensorError, ShapeMismatchError, UnexpectedTensorError
from engine.convert.source import SourceTensors
from engine.parameters import HEAD, parameter_shapes

# Written by old versions of transformers and computed from the configuration: nothing is lost without them.
_COMPUTED_SUFFIX: Final = ".rotary_emb.inv_freq"


def check_tensors(tensors: SourceTensors, architecture: Architecture) -> None:
    """Every tensor that the configuration calls for, in its shape, and no other; raises a `ConversionError`."""
    expected = parameter_shapes(architecture)
    for name, shape in expected.items():
        if name not in tensors:
            raise MissingTensorError(f"{name} is missing from the checkpoint")
        if tensors[name].shape != shape:
            raise ShapeMismatchError(f"{name} has shape {list(tensors[name].shape)}, expected is {list(shape)}")
    for name in tensors:
        is_tied_head = name == f"{HEAD}.weight" and architecture.tie_word_embeddings
        if name not in expected and not is_tied_head and not name.endswith(_COMPUTED_SUFFIX):
            raise UnexpectedTensorError(
                f"{name:.120} has no place in a {architecture.family} model of this configuration"
            )
