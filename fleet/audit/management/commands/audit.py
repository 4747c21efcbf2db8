"""`manage.py audit verify|head`: check the audit chain, or show the hash to note down elsewhere."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from fleet.audit.chain import first_break, head


class Command(BaseCommand):
    """Exit code 0 if the chain is whole, 1 with the first broken entry if not."""

    help = "Verify the chain of what happened to devices, or show its head."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The sub-commands and their arguments."""
        steps = parser.add_subparsers(dest="step", required=True)
        verify = steps.add_parser("verify", help="every hash, every device's signature")
        verify.add_argument("--noted", help="a hash that `audit head` has shown before and that somebody wrote down")
        steps.add_parser("head", help="the newest entry's number and hash")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Verify or show."""
        newest = head()
        if options["step"] == "head":
            self.stdout.write(f"{newest.number} {newest.hash}")
            return
        found = first_break(noted_hash=options["noted"])
        if found:
            raise CommandError(
                f"entry {found.number} is broken: {found.reason}. Entries before it are whole; compare with a backup."
            )
        self.stdout.write(f"{newest.number} entries are whole; the last is {newest.hash}")
