"""`manage.py trust init|status|make-key|add-key|rotate|revoke|limit|sign`: the ceremonies of the TUF repository.

Offline keys are named by files, whose passphrase comes from --passphrase-file or SOCLE_TRUST_OFFLINE_PASSPHRASE. Run it
where the database can be reached and the offline keys are plugged in; nothing of them is kept. What a ceremony did, and
with whose keys, goes into the audit chain in the ceremony's own transaction. `make-key` needs no database.
"""

import getpass
import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from securesystemslib.signer import CryptoSigner, Key

from fleet.audit import chain
from fleet.commands import check_database
from registry.errors import RegistryError
from registry.models import Release
from registry.queries import find_release
from registry.trust import ceremony, repository
from registry.trust.keys import (
    ONLINE_ROLES,
    KeyUnusableError,
    load_key,
    load_public_key,
    make_key,
    make_online_key,
    read_passphrase,
    write_public_key,
)
from registry.trust.vouched import read_vouched

Options = dict[str, Any]
Done = dict[str, Any]
"""What a ceremony did, for the audit chain."""


class Command(BaseCommand):
    """One sub-command per ceremony; each prints what waits for signatures."""

    help = "Make, show, rotate and revoke the keys that devices trust, and sign releases."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The sub-commands and their arguments."""
        steps = parser.add_subparsers(dest="step", required=True)
        init = steps.add_parser("init", help="make all first keys: offline ones in --keys, online ones for the service")
        init.add_argument("--keys", type=Path, required=True, help="directory for the offline keys; take it away after")
        for role, number, threshold in (("root", 3, 2), ("targets", 2, 1)):
            init.add_argument(f"--{role}-keys", type=int, default=number)
            init.add_argument(f"--{role}-threshold", type=int, default=threshold)
        steps.add_parser("status", help="roles, versions, expiry, keys, and what waits for signatures")
        make = steps.add_parser("make-key", help="a key of one's own, and beside it the public half to give away")
        make.add_argument("file", type=Path, help="for instance homes.pem; the public half is homes.pub.pem")
        add = steps.add_parser("add-key", help="one more key for a role; a publisher that is new is made")
        add.add_argument(
            "--artifact", action="append", default=[], help="name or pattern that a new publisher may sign"
        )
        add.add_argument("--public", type=Path, help="the public half of a key that somebody else keeps")
        rotate = steps.add_parser("rotate", help="a new key instead of all keys of a role")
        for step in (add, rotate):
            step.add_argument("role")
            step.add_argument("--new", type=Path, help="file for the new key; online roles have their own place")
        revoke = steps.add_parser("revoke", help="a key of a role, or a release for ever")
        revoke.add_argument("what", help="name@version, or ROLE:KEYID")
        limit = steps.add_parser("limit", help="for how long devices go on with expired metadata")
        limit.add_argument("max_stale_s", help="seconds, or `none` for ever")
        sign = steps.add_parser("sign", help="releases as their publisher, or what of a role waits for signatures")
        sign.add_argument("what", nargs="+", help="name@version ..., or a role")
        sign.add_argument("--publisher", help="whose releases these are")
        for step in (add, rotate, revoke, limit, sign):
            step.add_argument("--key", type=Path, action="append", default=[], help="an offline key to sign with")
        for step in (init, make, add, rotate, revoke, limit, sign):
            step.add_argument("--passphrase-file", type=Path, help="its first line opens the offline keys")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Do the step, then say how things stand."""
        step = options["step"].replace("-", "_")
        if step != "make_key":
            check_database()
        try:
            if step in ("make_key", "status"):
                getattr(self, f"_{step}")(options)
            else:
                self._hold(step, options)
        except RegistryError as error:
            raise CommandError(f"{error.detail}. {error.hint}") from error
        if step != "make_key":
            self._show_waiting()

    @transaction.atomic
    def _hold(self, step: str, options: Options) -> None:
        """A ceremony, and its entry in the audit chain."""
        keys = [] if step == "init" else _signers(options)
        done: Done = getattr(self, f"_{step}")(options, keys)
        signed = {"signed_by": [key.public_key.keyid for key in keys]} if keys else {}
        waits = {"waits_for_signatures": [role for role, _ in _waiting()]}
        chain.append(actor=_who(), kind=f"trust_{step}", detail={**done, **signed, **waits})

    def _make_key(self, options: Options) -> None:
        place: Path = options["file"]
        public = place.with_suffix(".pub.pem")
        signer = make_key(place, _passphrase(options))
        write_public_key(public, signer.public_key)
        self.stdout.write(f"Key {signer.public_key.keyid}. Keep {place}, give {public} to whoever adds keys:")
        self.stdout.write(f"`manage.py trust add-key ROLE --public {public.name} --key FILE`")

    def _init(self, options: Options, _keys: list[CryptoSigner]) -> Done:
        passphrase, directory = _passphrase(options), options["keys"]
        made = {
            role: ceremony.OfflineKeys(
                [make_key(directory / f"{role}-{n + 1}.pem", passphrase) for n in range(options[f"{role}_keys"])],
                options[f"{role}_threshold"],
            )
            for role in ("root", "targets")
        }
        ceremony.init(root=made["root"], targets=made["targets"])
        self.stdout.write(f"Root {repository.root_digest()}: write it down, devices can be told to trust no other.")
        self.stdout.write(f"Take {directory} off this machine: whoever has these keys decides what devices run.")
        keys = {role: [key.public_key.keyid for key in offline.signers] for role, offline in made.items()}
        return {"root_sha256": repository.root_digest(), "keys": keys}

    def _status(self, _options: Options) -> None:
        self.stdout.write(f"root SHA-256 {repository.root_digest() or '- (run `manage.py trust init`)'}")
        for role in (*ceremony.TOP_LEVEL, *repository.publishers()):
            found = repository.current(role)
            version = f"{found.signed.version:4} expires {found.signed.expires:%F %H:%M}" if found else "   -"
            self.stdout.write(f"{role:<20}{version}  {_keys_of(role)}")
        self._show_refused()

    def _add_key(self, options: Options, keys: list[CryptoSigner]) -> Done:
        role, new = options["role"], _further_key(options)
        public = new if isinstance(new, Key) else new.public_key
        done = {"role": role, "new_key": public.keyid}
        if role in (*ceremony.TOP_LEVEL, *repository.publishers()):
            ceremony.add_key(role=role, key=public, keys=keys)
            return done
        artifacts = options["artifact"] or [role]
        own = [] if isinstance(new, Key) else [new]
        ceremony.add_publisher(name=role, artifacts=artifacts, publisher=public, publisher_signs=own, keys=keys)
        return {**done, "artifacts": artifacts}

    def _rotate(self, options: Options, keys: list[CryptoSigner]) -> Done:
        new = _new_key(options)
        ceremony.rotate(role=options["role"], new=new, keys=keys)
        return {"role": options["role"], "new_key": new.public_key.keyid}

    def _revoke(self, options: Options, keys: list[CryptoSigner]) -> Done:
        role, colon, keyid = options["what"].partition(":")
        if colon:
            ceremony.revoke_key(role=role, keyid=keyid, keys=keys)
            return {"role": role, "revoked_key": keyid}
        release = find_release(options["what"])
        ceremony.revoke_release(release=release, keys=keys)
        return {"release": release.ref, "digest": release.digest}

    def _limit(self, options: Options, keys: list[CryptoSigner]) -> Done:
        given = options["max_stale_s"]
        if given != "none" and not given.isdecimal():
            raise ceremony.CeremonyRefusedError(
                f"{given!r} is no number of seconds", hint="For instance 2592000, or none."
            )
        max_stale_s = None if given == "none" else int(given)
        ceremony.set_max_stale(max_stale_s=max_stale_s, keys=keys)
        return {"max_stale_s": max_stale_s}

    def _sign(self, options: Options, keys: list[CryptoSigner]) -> Done:
        what, publisher = options["what"], options["publisher"]
        if not publisher:
            for role in what:
                for key in keys:
                    ceremony.sign_staged(role=role, key=key)
            return {"roles": what}
        releases = [find_release(ref) for ref in what]
        for key in keys:
            ceremony.sign_releases(publisher=publisher, releases=releases, key=key)
        return {"publisher": publisher, "releases": {release.ref: release.digest for release in releases}}

    def _show_refused(self) -> None:
        vouched, releases = read_vouched(), Release.objects.defer("manifest").select_related("artifact")
        revoked = [release.ref for release in releases if vouched.is_revoked(release)]
        unsigned = [release.ref for release in releases if vouched.is_unsigned(release) and release.ref not in revoked]
        for reason, refs in (("not signed", unsigned), ("revoked", revoked)):
            if refs:
                self.stdout.write(f"{reason}, so no device takes it: {', '.join(refs)}")

    def _show_waiting(self) -> None:
        for role, missing in _waiting():
            self.stdout.write(f"{role} waits for signatures ({missing}): `manage.py trust sign {role} --key FILE`")


def _waiting() -> list[tuple[str, str]]:
    """Roles that wait for signatures, each with what is missing."""
    roles = ("root", "targets", *repository.publishers())
    return [(role, missing) for role in roles if (missing := repository.missing_signatures(role))]


def _who() -> str:
    """Who types, as far as the system knows; the keys that signed say it more surely."""
    try:
        return f"shell:{getpass.getuser()}"
    except (OSError, KeyError):  # a user without a name, as in some containers
        return f"shell:uid {os.getuid()}"


def _passphrase(options: Options) -> bytes:
    if options["passphrase_file"]:
        return read_passphrase(options["passphrase_file"])
    if given := os.environ.get("SOCLE_TRUST_OFFLINE_PASSPHRASE"):
        return given.encode()
    raise KeyUnusableError(
        "the offline keys have no passphrase", hint="Give --passphrase-file or set SOCLE_TRUST_OFFLINE_PASSPHRASE."
    )


def _signers(options: Options) -> list[CryptoSigner]:
    if not options["key"]:
        raise KeyUnusableError("no key to sign with", hint="Give --key FILE, once for each key.")
    return [load_key(path, _passphrase(options)) for path in options["key"]]


def _further_key(options: Options) -> CryptoSigner | Key:
    """The key to add: a new one, or the public half of somebody else's."""
    if options["public"] is None:
        return _new_key(options)
    if options["new"] is not None or options["role"] in ONLINE_ROLES:
        raise KeyUnusableError(
            "--public names a key that somebody keeps offline",
            hint="Give --public or --new; online keys are made where the service runs, without either.",
        )
    return load_public_key(options["public"])


def _new_key(options: Options) -> CryptoSigner:
    if options["role"] in ONLINE_ROLES:
        return make_online_key(options["role"])
    if options["new"] is None:
        raise KeyUnusableError("the new key needs a place", hint="Give --new FILE.")
    return make_key(options["new"], _passphrase(options))


def _keys_of(role: str) -> str:
    delegator = repository.current("root" if role in ceremony.TOP_LEVEL else "targets")
    if delegator is None:
        return ""
    known = delegator.signed.get_delegated_role(role)
    return f"{known.threshold} of {len(known.keyids)} keys: {' '.join(keyid[:16] for keyid in known.keyids)}"
