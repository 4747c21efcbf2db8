"""The attacks of TUF's and Uptane's papers, each as what a hostile server or mirror does, and what must come of it.

`./dev attacks` prints the table; `test_attacks.py` carries each of them out against a running agent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.artifact import read_manifest
from engine.trust_documents import ReleaseTarget
from tests.simulators.fleet_server import FleetServer, Slow, policy_of
from tests.simulators.tuf_repository import PUBLISHER, in_days, make_signer

if TYPE_CHECKING:
    from tests.edge_agent.conftest import Catalogue

Attack = Callable[[FleetServer, "Catalogue"], None]
"""Carried out while the agent serves revision 1: `base` and `home 1`; revision 2 would bring `home 2`."""


@dataclass(frozen=True, slots=True)
class Case:
    """What the attacker holds, what it does, and the code under which operators see it."""

    attacker: str
    deed: str
    code: str
    carry_out: Attack
    prepare: Callable[[FleetServer], None] = lambda _: None
    """Done before the device comes to the fleet."""


def want_home_2(fleet: FleetServer, catalogue: Catalogue) -> None:
    fleet.want(fleet.desired.base, catalogue.adapter("home", "home 2"))


def arbitrary_software(fleet: FleetServer, catalogue: Catalogue) -> None:
    want_home_2(fleet, catalogue)
    fleet.trust.withdraw("home", fleet.desired.adapters[0].digest)


def revoked_software(fleet: FleetServer, catalogue: Catalogue) -> None:
    want_home_2(fleet, catalogue)
    fleet.trust.set_policy(policy_of(fleet.desired_signer, revoked=(fleet.desired.adapters[0].digest,)))


def unsigned_index(fleet: FleetServer, catalogue: Catalogue) -> None:
    """A publisher's metadata signed by nobody whom targets delegates to."""
    fleet.trust.signers[PUBLISHER] = [make_signer()]
    want_home_2(fleet, catalogue)


def below_threshold(fleet: FleetServer, catalogue: Catalogue) -> None:
    """One of two root keys makes itself the owner of all roles."""
    fleet.trust.signers["root"] = fleet.trust.signers["root"][:1]
    for role in ("targets", "snapshot", "timestamp"):
        fleet.trust.replace_keys(role)
    fleet.trust.rotate_root()
    want_home_2(fleet, catalogue)


def rollback(fleet: FleetServer, catalogue: Catalogue) -> None:
    fleet.trust.timestamp.version = 0
    fleet.trust.publish_timestamp()
    fleet.want(fleet.desired.base, fleet.desired.adapters[0], revision=5)


def fast_forward(fleet: FleetServer, catalogue: Catalogue) -> None:
    """The owner is back with honest metadata, which looks old to devices that believed the thief's."""
    fleet.trust.timestamp.version = 10
    want_home_2(fleet, catalogue)


def sign_a_huge_version(fleet: FleetServer) -> None:
    fleet.trust.timestamp.version = 2**31
    fleet.trust.publish_timestamp()


def freeze(fleet: FleetServer, catalogue: Catalogue) -> None:
    fleet.trust.timestamp.expires = in_days(-1)
    want_home_2(fleet, catalogue)


def mix_and_match(fleet: FleetServer, catalogue: Catalogue) -> None:
    """A mirror puts an older snapshot's content under the newest snapshot's name."""
    old = fleet.trust.files[f"metadata/{fleet.trust.snapshot.version}.snapshot.json"]
    want_home_2(fleet, catalogue)
    fleet.trust.files[f"metadata/{fleet.trust.snapshot.version}.snapshot.json"] = old


def lying_mirror(fleet: FleetServer, catalogue: Catalogue) -> None:
    """Other bytes of the same length under a target's name."""
    want_home_2(fleet, catalogue)
    digest = fleet.desired.adapters[0].digest
    name = next(path for path in fleet.trust.files if path.endswith(f"{digest}.json"))
    fleet.trust.files[name] = fleet.trust.files[name].replace(b"1.0.0", b"6.6.6")


def endless_data(fleet: FleetServer, catalogue: Catalogue) -> None:
    want_home_2(fleet, catalogue)
    fleet.trust.files["metadata/timestamp.json"] += b" " * 20_000


def slow_retrieval(fleet: FleetServer, catalogue: Catalogue) -> None:
    fleet.order("/trust/metadata/timestamp", *[Slow(0.6)] * 9)
    want_home_2(fleet, catalogue)


def wrong_software(fleet: FleetServer, catalogue: Catalogue) -> None:
    """A genuine adapter of another base."""
    catalogue.base("other base")
    fleet.want(fleet.desired.base, catalogue.adapter("home", "home 2", base="other base"))


def other_name(fleet: FleetServer, catalogue: Catalogue) -> None:
    """A genuine adapter under another business's name."""
    car = catalogue.adapter("car", "car")
    manifest, _ = read_manifest(catalogue.path("car"))
    assert fleet.desired.base
    base = fleet.desired.base.digest
    fleet.trust.vouch_for(ReleaseTarget(manifest.kind, "car", "1.0.0", car.digest, "0" * 64, base))
    fleet.want(fleet.desired.base, replace(car, name="home"))


def lying_server(fleet: FleetServer, catalogue: Catalogue) -> None:
    """A key that the policy does not know signs a desired state."""
    fleet.desired_signer = make_signer()
    want_home_2(fleet, catalogue)


def forged_index(fleet: FleetServer, catalogue: Catalogue) -> None:
    """One that names other chunks of the same files, to make the device fetch without end."""
    want_home_2(fleet, catalogue)

    def forge(document: dict[str, Any]) -> None:
        document["files"][0]["chunks"][0]["sha256"] = "f" * 64

    fleet.spoil_index(fleet.desired.adapters[0], forge)


def others_desired_state(fleet: FleetServer, catalogue: Catalogue) -> None:
    fleet.hands_out_for = "dev_ffffffffffffffff"
    want_home_2(fleet, catalogue)


def old_desired_state(fleet: FleetServer, catalogue: Catalogue) -> None:
    fleet.want(fleet.desired.base, revision=0)


def expired_desired_state(fleet: FleetServer, catalogue: Catalogue) -> None:
    fleet.valid_s = -1
    want_home_2(fleet, catalogue)


ATTACKS = {
    "arbitrary software": Case("database and disk", "a release that no publisher signed", "release_not_signed",
                               arbitrary_software),
    "revoked software": Case("the server", "hands out a revoked release", "release_revoked", revoked_software),
    "forged publisher": Case("a key of its own", "signs a publisher's targets", "unsigned_metadata", unsigned_index),
    "key compromise below the threshold": Case("one of two root keys", "makes itself the owner", "unsigned_metadata",
                                               below_threshold),
    "rollback": Case("a mirror or the timestamp key", "serves an older timestamp", "metadata_rollback", rollback),
    "fast-forward": Case("the timestamp key", "signs version 2^31, then goes", "metadata_rollback", fast_forward,
                         sign_a_huge_version),
    "indefinite freeze": Case("a mirror", "goes on serving metadata that has expired", "metadata_expired", freeze),
    "mix-and-match": Case("a mirror", "serves files of different times", "metadata_mismatch", mix_and_match),
    "lying mirror": Case("a mirror", "serves other bytes under a target's name", "metadata_mismatch", lying_mirror),
    "endless data": Case("a mirror", "never ends a metadata file", "endless_data", endless_data),
    "slow retrieval": Case("a mirror", "drips a metadata file", "slow_retrieval", slow_retrieval),
    "wrong software": Case("desired-state key", "an adapter of another base", "wrong_software", wrong_software),
    "wrong name": Case("desired-state key", "an adapter under another's name", "release_not_signed", other_name),
    "lying server": Case("the server, no key", "signs a desired state itself", "desired_not_signed", lying_server),
    "forged index": Case("database and disk", "names other chunks of a signed release", "bad_index", forged_index),
    "another device's state": Case("the network", "hands out another device's desired state",
                                   "desired_of_another_device", others_desired_state),
    "replayed state": Case("the network", "hands out an older desired state", "desired_rollback", old_desired_state),
    "frozen state": Case("the network", "hands out an expired desired state", "desired_expired", expired_desired_state),
}  # fmt: skip


def main() -> None:
    """Print the table."""
    rows = [("attack", "the attacker holds", "and", "the device says")]
    rows += [(name, case.attacker, case.deed, case.code) for name, case in ATTACKS.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201


if __name__ == "__main__":
    main()
