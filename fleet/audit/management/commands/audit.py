"""`manage.py audit verify|head|log`: check the audit chain, show the hash to note down elsewhere, or read it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from engine.strict_json import canonical_json
from fleet.audit.chain import first_break, head
from fleet.audit.models import AuditEntry
from fleet.commands import check_database

_SHOWN_CHARS = 400


class Command(BaseCommand):
    """Exit code 0 if the chain is whole, 1 with the first broken entry if not."""

    help = "Verify the chain of what operators, keepers of keys and devices did, show its head, or read it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The sub-commands and their arguments."""
        steps = parser.add_subparsers(dest="step", required=True)
        verify = steps.add_parser("verify", help="every hash, every device's signature")
        verify.add_argument("--noted", help="a hash that `audit head` has shown before and that somebody wrote down")
        steps.add_parser("head", help="the newest entry's number and hash")
        log = steps.add_parser("log", help="the newest entries, the last one at the end")
        log.add_argument("--last", type=int, default=20, help="how many")
        log.add_argument("--kind", default="", help="only kinds that begin so, for instance trust or rollout")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Verify or show."""
        check_database()
        getattr(self, f"_{options['step']}")(options)

    def _verify(self, options: dict[str, Any]) -> None:
        newest, found = head(), first_break(noted_hash=options["noted"])
        if found:
            raise CommandError(
                f"entry {found.number} is broken: {found.reason}. Entries before it are whole; compare with a backup."
            )
        self.stdout.write(f"{newest.number} entries are whole; the last is {newest.hash}")

    def _head(self, _options: dict[str, Any]) -> None:
        newest = head()
        self.stdout.write(f"{newest.number} {newest.hash}")

    def _log(self, options: dict[str, Any]) -> None:
        entries = AuditEntry.objects.filter(kind__startswith=options["kind"]).order_by("-number")
        for entry in reversed(entries[: max(1, options["last"])]):
            detail = canonical_json(entry.detail).decode()
            shown = detail if len(detail) <= _SHOWN_CHARS else f"{detail[:_SHOWN_CHARS]}…"
            self.stdout.write(f"{entry.number} {entry.at:%FT%TZ} {entry.actor} {entry.kind} {shown}")
