"""`manage.py trust init|status|add-key|rotate|revoke|limit|sign`: the ceremonies of the TUF repository.

Offline keys are named by files, whose passphrase comes from --passphrase-file or SOCLE_TRUST_OFFLINE_PASSPHRASE. Run it
where the database can be reached and the offline keys are plugged in; nothing of them is kept.
"""

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from securesystemslib.signer import CryptoSigner

from registry.errors import RegistryError
from registry.models import Release
from registry.queries import find_release
from registry.trust import ceremony, repository
from registry.trust.keys import (
    ONLINE_ROLES,
    KeyUnusableError,
    load_key,
    make_key,
    make_online_key,
    read_passphrase,
)
from registry.trust.vouched import read_vouched


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
        add = steps.add_parser("add-key", help="one more key for a role; a publisher that is new is made")
        add.add_argument(
            "--artifact", action="append", default=[], help="name or pattern that a new publisher may sign"
        )
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
        for step in (init, add, rotate, revoke, limit, sign):
            step.add_argument("--passphrase-file", type=Path, help="its first line opens the offline keys")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Do the step, then say how things stand."""
        try:
            getattr(self, f"_{options['step'].replace('-', '_')}")(options)
        except RegistryError as error:
            raise CommandError(f"{error.detail}. {error.hint}") from error
        if options["step"] != "status":
            self._show_waiting()

    def _init(self, options: dict[str, Any]) -> None:
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

    def _status(self, _options: dict[str, Any]) -> None:
        self.stdout.write(f"root SHA-256 {repository.root_digest() or '- (run `manage.py trust init`)'}")
        for role in (*ceremony.TOP_LEVEL, *repository.publishers()):
            found = repository.current(role)
            version = f"{found.signed.version:4} expires {found.signed.expires:%F %H:%M}" if found else "   -"
            self.stdout.write(f"{role:<20}{version}  {_keys_of(role)}")
        self._show_waiting()
        self._show_refused()

    def _add_key(self, options: dict[str, Any]) -> None:
        role, keys = options["role"], _signers(options)
        if role in (*ceremony.TOP_LEVEL, *repository.publishers()):
            ceremony.add_key(role=role, key=_new_key(options).public_key, keys=keys)
        else:
            artifacts = options["artifact"] or [role]
            ceremony.add_publisher(name=role, artifacts=artifacts, publisher=_new_key(options), keys=keys)

    def _rotate(self, options: dict[str, Any]) -> None:
        keys = _signers(options)
        ceremony.rotate(role=options["role"], new=_new_key(options), keys=keys)

    def _revoke(self, options: dict[str, Any]) -> None:
        role, colon, keyid = options["what"].partition(":")
        if colon:
            ceremony.revoke_key(role=role, keyid=keyid, keys=_signers(options))
        else:
            ceremony.revoke_release(release=find_release(options["what"]), keys=_signers(options))

    def _limit(self, options: dict[str, Any]) -> None:
        given = options["max_stale_s"]
        if given != "none" and not given.isdecimal():
            raise ceremony.CeremonyRefusedError(
                f"{given!r} is no number of seconds", hint="For instance 2592000, or none."
            )
        ceremony.set_max_stale(max_stale_s=None if given == "none" else int(given), keys=_signers(options))

    def _sign(self, options: dict[str, Any]) -> None:
        for key in _signers(options):
            if options["publisher"]:
                releases = [find_release(ref) for ref in options["what"]]
                ceremony.sign_releases(publisher=options["publisher"], releases=releases, key=key)
            else:
                for role in options["what"]:
                    ceremony.sign_staged(role=role, key=key)

    def _show_refused(self) -> None:
        vouched, releases = read_vouched(), Release.objects.defer("manifest").select_related("artifact")
        revoked = [release.ref for release in releases if vouched.is_revoked(release)]
        unsigned = [release.ref for release in releases if vouched.is_unsigned(release) and release.ref not in revoked]
        for reason, refs in (("not signed", unsigned), ("revoked", revoked)):
            if refs:
                self.stdout.write(f"{reason}, so no device takes it: {', '.join(refs)}")

    def _show_waiting(self) -> None:
        for role in ("root", "targets", *repository.publishers()):
            if missing := repository.missing_signatures(role):
                self.stdout.write(f"{role} waits for signatures ({missing}): `manage.py trust sign {role} --key FILE`")


def _passphrase(options: dict[str, Any]) -> bytes:
    if options["passphrase_file"]:
        return read_passphrase(options["passphrase_file"])
    if given := os.environ.get("SOCLE_TRUST_OFFLINE_PASSPHRASE"):
        return given.encode()
    raise KeyUnusableError(
        "the offline keys have no passphrase", hint="Give --passphrase-file or set SOCLE_TRUST_OFFLINE_PASSPHRASE."
    )


def _signers(options: dict[str, Any]) -> list[CryptoSigner]:
    if not options["key"]:
        raise KeyUnusableError("no key to sign with", hint="Give --key FILE, once for each key.")
    return [load_key(path, _passphrase(options)) for path in options["key"]]


def _new_key(options: dict[str, Any]) -> CryptoSigner:
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
