"""`manage.py create_operator_token NAME --scope fleet:read --scope ...`: the first token, and any other."""

import os
from argparse import ArgumentParser
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from fleet.commands import check_database
from fleet.operators.actions import create_token
from fleet.operators.scopes import Scope
from registry.errors import ApiError


class Command(BaseCommand):
    """Print a new token, or write it to a file that only its owner can read."""

    help = "Create an operator token. It is shown once; only its hash is kept."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's arguments."""
        parser.add_argument("name")
        parser.add_argument("--scope", action="append", choices=list(Scope), required=True)
        parser.add_argument("--expires-in-days", type=float)
        parser.add_argument("--token-file", type=Path, help="write the token here, mode 600, instead of printing it")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Create and hand over."""
        check_database()
        days = options["expires_in_days"]
        expires_at = timezone.now() + timedelta(days=days) if days is not None else None
        try:
            _, secret = create_token(
                name=options["name"], scopes=options["scope"], expires_at=expires_at, created_by="command line"
            )
        except ApiError as error:
            raise CommandError(f"{error.detail} {error.hint}") from error
        if options["token_file"]:
            _write_secret(options["token_file"], secret)
        else:
            self.stdout.write(secret)


def _write_secret(path: Path, secret: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secret + "\n")
