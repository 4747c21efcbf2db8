"""What the rollout service refuses."""

from collections.abc import Sequence
from dataclasses import asdict

from fleet.rollouts.planning import Conflict
from registry.errors import ApiError


class RolloutNotFoundError(ApiError):
    """No rollout has this id."""

    code = "rollout_not_found"
    status = 404
    title = "No such rollout"
    default_hint = "GET /api/v1/rollouts lists them."


class RolloutStateError(ApiError):
    """The rollout does not obey this command in its state."""

    code = "rollout_state"
    status = 409
    title = "Not in this state"
    default_hint = "GET the rollout to see its state."


class RolloutRefusedError(ApiError):
    """The change can't be carried out. `fields.conflicts` lists each obstacle with code, item, detail, hint.

    The code is that of the conflicts where they agree, so that programs need not look into the list.
    """

    code = "rollout_refused"
    status = 422
    title = "The rollout can't be carried out"

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        detail = " ".join(dict.fromkeys(conflict.detail for conflict in conflicts))
        hint = " ".join(dict.fromkeys(conflict.hint for conflict in conflicts))
        super().__init__(detail, hint=hint, fields={"conflicts": [asdict(conflict) for conflict in conflicts]})
        if len(codes := {conflict.code for conflict in conflicts}) == 1:
            self.code = codes.pop()
