"""From an operator's words to rows: references to releases, selectors to devices. Collects every obstacle."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.db.models import Q, QuerySet

from fleet.devices.desired import ReleaseSet, current_set
from fleet.devices.models import DesiredRecord, Device, DeviceGroup, DeviceState
from fleet.rollouts.errors import RolloutRefusedError
from fleet.rollouts.planning import Change, Conflict, Offer, Plan
from registry import queries as registry
from registry.errors import ApiError
from registry.models import ArtifactKind, Release
from registry.trust.vouched import Vouched

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator asked for: references such as `name@1.2.0`, and whom it is for."""

    name: str = ""
    base: str | None = None
    adapters: Sequence[str] = ()
    remove: Sequence[str] = ()
    groups: Sequence[str] = ()
    tags: Sequence[str] = ()
    devices: Sequence[str] = ()


@dataclass(slots=True)
class Obstacles:
    """Conflicts met on the way; `raise_if_any` names them all at once."""

    conflicts: list[Conflict] = field(default_factory=list)

    def attempt(self, call: Callable[[], T], item: str) -> T | None:
        """The call's result; an API error becomes a conflict of this item."""
        try:
            return call()
        except ApiError as error:
            self.conflicts.append(Conflict(error.code, item, str(error), error.hint))
            return None

    def raise_if_any(self) -> None:
        """Raise `RolloutRefusedError` if there is one."""
        if self.conflicts:
            raise RolloutRefusedError(self.conflicts)


def find_releases(request: Request) -> ReleaseSet:
    """The releases that the change brings; raises `RolloutRefusedError` naming each that can't be had."""
    obstacles = Obstacles()

    def resolve(ref: str, kind: str) -> Release | None:
        return obstacles.attempt(lambda: registry.resolve_release(ref, kind=kind), ref)

    base = resolve(request.base, ArtifactKind.BASE) if request.base else None
    adapters = [resolve(ref, ArtifactKind.ADAPTER) for ref in request.adapters]
    obstacles.raise_if_any()
    return ReleaseSet(base, tuple(adapter for adapter in adapters if adapter))


def find_devices(request: Request) -> QuerySet[Device]:
    """Enrolled devices in any of the groups, with any of the tags, or named; raises `RolloutRefusedError`."""
    groups = DeviceGroup.objects.filter(name__in=request.groups)
    named = _enrolled().filter(pk__in=request.devices)
    conflicts = [
        *_unknown("unknown_group", "groups", request.groups, groups.values_list("name", flat=True)),
        *_unknown("unknown_device", "devices", request.devices, named.values_list("pk", flat=True)),
    ]
    wanted = Q(groups__name__in=request.groups) | Q(tag_rows__tag__in=request.tags) | Q(pk__in=request.devices)
    found = _enrolled().filter(pk__in=Device.objects.filter(wanted).values("pk"))
    if not conflicts and not found.exists():
        hint = "Name groups, tags or devices with at least one enrolled device among them."
        conflicts.append(Conflict("empty_target", "", "The rollout is for no device.", hint))
    if conflicts:
        raise RolloutRefusedError(conflicts)
    return found.order_by("pk")


def _enrolled() -> QuerySet[Device]:
    return Device.objects.filter(state=DeviceState.ENROLLED)


def _unknown(code: str, path: str, named: Sequence[str], known: QuerySet[Any, str]) -> Iterator[Conflict]:
    """A conflict for each name that is not among the known ones."""
    there = set(known)
    for name in dict.fromkeys(named):
        if name not in there:
            yield Conflict(code, name, f"There is no {name!r:.80} among the {path}.", f"Look at GET /api/v1/{path}.")


def change_of(releases: ReleaseSet, remove: Iterable[str], vouched: Vouched) -> Change:
    """The change as planning sees it."""
    plan = plan_of(releases, vouched)
    return Change(plan.base, plan.adapters, frozenset(remove))


def plan_of(releases: ReleaseSet, vouched: Vouched) -> Plan:
    """A set of releases as planning sees it."""
    base = offer_of(releases.base, vouched) if releases.base else None
    return Plan(base, tuple(offer_of(adapter, vouched) for adapter in releases.adapters))


def current_plan(record: DesiredRecord, vouched: Vouched) -> Plan:
    """What the device shall have now."""
    return plan_of(current_set(record), vouched)


def offer_of(release: Release, vouched: Vouched) -> Offer:
    """A release as planning sees it."""
    return Offer(
        release_id=release.pk,
        name=release.name,
        version=release.version,
        digest=release.digest,
        base_digest=release.base.digest if release.base else None,
        is_yanked=release.is_yanked,
        is_unsigned=vouched.is_unsigned(release),
        is_revoked=vouched.is_revoked(release),
    )
