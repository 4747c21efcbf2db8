"""What commands of `manage.py` share: the database must have its tables before one begins."""

from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections
from django.db.migrations.executor import MigrationExecutor


def check_database() -> None:
    """Raise `CommandError` for a database that can't be reached, or that has not been migrated."""
    try:
        executor = MigrationExecutor(connections[DEFAULT_DB_ALIAS])
    except OperationalError as error:
        raise CommandError(f"the database can't be opened: {error}. Look at SOCLE_DATABASE_URL.") from error
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise CommandError("the database is not prepared for this version: run `manage.py migrate` first.")
