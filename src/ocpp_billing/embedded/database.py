"""The database of a command: the configured one, one that is running already, or an embedded server."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ocpp_billing.embedded.postgres import EmbeddedPostgres, default_data_dir, running_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocpp_billing.config import Config


@contextmanager
def database(config: Config, notice: Callable[[str], None]) -> Iterator[EmbeddedPostgres | None]:
    """Make ``DATABASE_URL`` name a running database for the time of a command.

    Yields:
        The embedded server when this process started it, else None.

    Raises:
        EmbeddedPostgresError: when the embedded server cannot be started.
    """
    if config.database_url is not None:
        os.environ["DATABASE_URL"] = config.database_url
        yield None
        return
    data_dir = default_data_dir()
    url = running_url(data_dir)
    if url is not None:
        os.environ["DATABASE_URL"] = url
        yield None
        return
    with EmbeddedPostgres(data_dir, notice=notice) as server:
        os.environ["DATABASE_URL"] = server.url
        yield server


def set_up_schema(*, embedded: bool) -> None:
    """Bring the schema up to date, or say that somebody has to.

    The embedded database is ours, so it is migrated without asking; a given one only by ``migrate``.

    Raises:
        OutdatedSchemaError: when a given database is behind the code.
    """
    from django.core.management import call_command  # noqa: PLC0415 - Django is set up by now
    from django.db import connection  # noqa: PLC0415
    from django.db.migrations.executor import MigrationExecutor  # noqa: PLC0415

    executor = MigrationExecutor(connection)
    if not executor.migration_plan(executor.loader.graph.leaf_nodes()):
        return
    if not embedded:
        raise OutdatedSchemaError(
            "The database has not been set up for this version. Run: ocpp-billing migrate"
        )
    call_command("migrate", interactive=False, verbosity=0)


class OutdatedSchemaError(Exception):
    """The database's schema is not the one of this version; says what to run."""
