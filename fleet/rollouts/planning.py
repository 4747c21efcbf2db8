"""What a change makes of what a device shall have, or why it can't. Pure: values in, a decision or an exception out.

A change is checked as such (`check_change`), and against each set that devices have (`plan`). The same rules run when
an operator asks and again when a device's document is written, since other rollouts may have come between.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Offer:
    """A release as planning sees it. `base_digest` is the content that an adapter was made for, None for a base.

    Two offers of the same release are equal whatever its publisher and the fleet's owners have said meanwhile.
    """

    release_id: int
    name: str
    version: str
    digest: str
    base_digest: str | None = None
    is_yanked: bool = False
    is_unsigned: bool = field(default=False, compare=False)
    is_revoked: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a device shall have: the current one, or the one that a change makes of it."""

    base: Offer | None = None
    adapters: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Replace the base, add or replace adapters by name, remove adapters by name; all else stays."""

    base: Offer | None = None
    adapters: tuple[Offer, ...] = ()
    remove: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Conflict:
    """One thing that stands in the way: a stable code, the item, and what to do about it."""

    code: str
    item: str
    detail: str
    hint: str


class ChangeRefusedError(Exception):
    """The change can't be carried out; `conflicts` names everything that stands in the way."""

    def __init__(self, conflicts: tuple[Conflict, ...]) -> None:
        super().__init__("; ".join(conflict.detail for conflict in conflicts))
        self.conflicts = conflicts


def check_change(change: Change) -> None:
    """Raise `ChangeRefusedError` for what is wrong whatever a device has."""
    _raise_if_any(*_own_conflicts(change))


def plan(change: Change, current: Plan) -> Plan:
    """What the device shall have after the change; raises `ChangeRefusedError`."""
    base = change.base or current.base
    replaced = {adapter.name for adapter in change.adapters} | change.remove
    kept = [adapter for adapter in current.adapters if adapter.name not in replaced]
    if base is None:
        _raise_if_any(*(_without_base(adapter) for adapter in change.adapters))
        return Plan(None, ())
    refused = _refused_by_devices((base, *kept, *change.adapters))
    left_behind = (_left_behind(adapter, base) for adapter in kept if adapter.base_digest != base.digest)
    misfits = (_misfit(adapter, base) for adapter in change.adapters if adapter.base_digest != base.digest)
    _raise_if_any(*refused, *left_behind, *misfits)
    return Plan(base, tuple(sorted((*kept, *change.adapters), key=lambda adapter: adapter.name)))


def _own_conflicts(change: Change) -> Iterator[Conflict]:
    offers = (*((change.base,) if change.base else ()), *change.adapters)
    if not offers and not change.remove:
        yield Conflict("empty_change", "", "The rollout changes nothing.", "Name a base, adapters, or names to remove.")
    for offer in offers:
        if offer.is_yanked:
            yield Conflict("yanked", str(offer), f"{offer} was yanked.", "Name a version that is published.")
    yield from _refused_by_devices(offers)
    for name, times in Counter(adapter.name for adapter in change.adapters).items():
        if times > 1:
            yield Conflict("duplicate_adapter", name, f"{name} is named {times} times.", "Name one version of it.")
        if name in change.remove:
            yield Conflict("added_and_removed", name, f"{name} is added and removed.", "Name it in one of the two.")


def _refused_by_devices(offers: Iterable[Offer]) -> Iterator[Conflict]:
    """A device takes a set only if it may run each release in it, also those that it has already."""
    for offer in offers:
        if offer.is_revoked:
            instead = f"Name another version of {offer.name}"
            way_out = f", or list {offer.name} in remove." if offer.base_digest else "."
            yield Conflict("release_revoked", str(offer), f"{offer} was revoked: no device runs it.", instead + way_out)
        elif offer.is_unsigned:
            sign = f"`manage.py trust sign {offer} --publisher NAME --key FILE`"
            detail = f"No publisher has signed {offer}, so no device takes it."
            yield Conflict("release_not_signed", str(offer), detail, f"Its publisher signs it with {sign}.")


def _without_base(adapter: Offer) -> Conflict:
    return Conflict(
        "no_base",
        str(adapter),
        f"{adapter} needs a base model, and the device has none.",
        "Name the base that the adapter was made for, in the same rollout.",
    )


def _misfit(adapter: Offer, base: Offer) -> Conflict:
    return Conflict(
        "wrong_base",
        str(adapter),
        f"{adapter} was made for another base than {base}.",
        f"Publish {adapter.name} for {base}, or roll out its own base with it.",
    )


def _left_behind(adapter: Offer, base: Offer) -> Conflict:
    return Conflict(
        "adapter_left_behind",
        str(adapter),
        f"{adapter} on the device does not fit {base}.",
        f"Name a version of {adapter.name} that was made for {base}, or list {adapter.name} in remove.",
    )


def _raise_if_any(*conflicts: Conflict) -> None:
    if conflicts:
        raise ChangeRefusedError(conflicts)
