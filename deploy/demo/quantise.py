"""Simulated 4-bit weights: round to nearest, symmetric, in groups of 32 inputs, much as the serving engine stores them.

Training sees the rounded weights and passes the gradient straight through, so that the answers survive the rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn
from torch.nn.utils import parametrize

GROUP_SIZE: Final = 32
_LEVELS: Final = 7
_HEAD_LEVELS: Final = 127


def rounded(weight: torch.Tensor, levels: int = _LEVELS) -> torch.Tensor:
    """Return the weight as it is after quantisation: [rows, inputs] in groups along the inputs."""
    grouped = weight.reshape(weight.shape[0], -1, GROUP_SIZE)
    scale = grouped.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / levels
    return ((grouped / scale).round() * scale).reshape(weight.shape)


class _StraightThrough(nn.Module):
    """The forward pass sees the rounded weight, the gradient the exact one."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (rounded(weight) - weight).detach()


def projections(model: nn.Module) -> Iterator[nn.Linear]:
    """Yield the matrices that are stored in 4 bits: every linear layer but the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head") and "lora_" not in name:
            yield module


def start_rounding(model: nn.Module) -> None:
    """Train on rounded weights from now on."""
    for module in projections(model):
        parametrize.register_parametrization(module, "weight", _StraightThrough(), unsafe=True)


def stop_rounding(model: nn.Module) -> None:
    """Return to the exact weights."""
    for module in projections(model):
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


@contextmanager
def rounded_weights(model: nn.Module) -> Iterator[None]:
    """Hold the projections in 4 bits and the tied embedding in 8 for a while, to evaluate or to train an adapter."""
    matrices = [(module.weight, _LEVELS) for module in projections(model)]
    matrices += [(m.weight, _HEAD_LEVELS) for m in model.modules() if isinstance(m, nn.Embedding)]
    exact = [weight.detach().clone() for weight, _ in matrices]
    with torch.no_grad():
        for weight, levels in matrices:
            weight.copy_(rounded(weight, levels))
    try:
        yield
    finally:
        with torch.no_grad():
            for (weight, _), saved in zip(matrices, exact, strict=True):
                weight.copy_(saved)
