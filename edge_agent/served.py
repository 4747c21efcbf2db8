"""What a device serves: models by name, on an engine process. Values that are exchanged as a whole, never changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_agent.business import Profile
from edge_agent.engine_child import EngineChild
from edge_agent.protocol import DesiredState, ReleaseRef


@dataclass(frozen=True, slots=True)
class Model:
    """What a name stands for now: the base alone, or the base with an adapter; and whose it is."""

    name: str
    release: ReleaseRef
    base: ReleaseRef
    adapter: str | None
    profile: Profile
    child: EngineChild


@dataclass(frozen=True, slots=True)
class Served:
    """A set on an engine process."""

    desired: DesiredState
    child: EngineChild
    models: Mapping[str, Model]
    since_s: float = field(default_factory=time.time)

    @property
    def base_model(self) -> Model:
        """The bare base."""
        return next(model for model in self.models.values() if model.adapter is None)

    @property
    def adapters(self) -> frozenset[str]:
        """Digests of the set's adapters, and of those in development beside it."""
        beside = (model.adapter for model in self.models.values() if model.adapter)
        return frozenset((*(ref.digest for ref in self.desired.adapters), *beside))


@dataclass(frozen=True, slots=True)
class Staged:
    """A set on trial. `served` is None for the empty set; `is_in_place` says that it is on the process that serves."""

    desired: DesiredState
    served: Served | None
    is_in_place: bool = False
