"""The database's schema: is it the one of this version, and how does it become that?"""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

OUTDATED, NEWER = "schema_outdated", "schema_newer"
# Any number that nobody else uses in this database.
MIGRATION_LOCK = 0x0CBB_0001
LOCK_TRIED_EVERY_S = 0.2


class SchemaError(Exception):
    """The database has the schema of another version of this product.

    Attributes:
        code: :data:`OUTDATED` or :data:`NEWER`.
        says: which of the two.
        do: what to do about it.
    """

    def __init__(self, code: str, says: str, do: str) -> None:
        super().__init__(f"{says} {do}")
        self.code, self.says, self.do = code, says, do


def find_schema_error() -> SchemaError | None:
    """What is wrong with the schema, by the migrations that the database has seen; None = nothing is.

    Code that does not know what a newer version added would write rows that break what that one counts on:
    it must not run, even where all of its own queries still work.
    """
    from django.apps import apps
    from django.db import connection
    from django.db.migrations.recorder import MigrationRecorder

    applied = MigrationRecorder(connection).applied_migrations().keys()
    known = _migrations_of_this_version()
    ours = {app.label for app in apps.get_app_configs() if app.name.startswith("ocpp_billing.")}
    if {(app, name) for app, name in applied if app in ours} - known:
        return SchemaError(
            NEWER,
            "The database was set up by a newer version of this product.",
            "Start that version, or restore the backup from before the upgrade.",
        )
    if known - applied:
        return SchemaError(
            OUTDATED,
            "The database has not been set up for this version.",
            "Run: ocpp-billing migrate",
        )
    return None


def bring_up_to_date(*, verbosity: int, notice: Callable[[str], None] | None = None) -> None:
    """Bring the schema up to date; of several processes that do so at once, each waits for the one before.

    Args:
        verbosity: as of Django's command; 0 says nothing.
        notice: is told when there is one to wait for.

    Raises:
        SchemaError: when it is the one of a newer version.
    """
    from django.core.management import call_command
    from django.db import connection

    with connection.cursor() as cursor:
        # Asked again and again: whoever waits in PostgreSQL would keep indexes from being built concurrently.
        waits = False
        while not _is_locked(cursor):
            if not waits and notice is not None:
                notice("Another process brings the database's schema up to date: waiting until it is done.")
            waits = True
            time.sleep(LOCK_TRIED_EVERY_S)
        try:
            error = find_schema_error()
            if error is not None and error.code == NEWER:
                raise error
            call_command("migrate", interactive=False, verbosity=verbosity)
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])


def _is_locked(cursor: Any) -> bool:
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [MIGRATION_LOCK])
    return bool(cursor.fetchone()[0])


@cache
def _migrations_of_this_version() -> set[tuple[str, str]]:
    """(app, name); read once, as the files do not change while the process lives."""
    from django.db.migrations.loader import MigrationLoader

    return set(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)
