"""The database of a command: the configured one, one that is running already, or an embedded server."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ocpp_billing.embedded.errors import DataFolderError
from ocpp_billing.embedded.keeper import Keeper
from ocpp_billing.embedded.postgres import EmbeddedPostgres, default_data_dir, running_url
from ocpp_billing.schema import NEWER, bring_up_to_date, find_schema_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocpp_billing.config import Config


@contextmanager
def database(config: Config, notice: Callable[[str], None]) -> Iterator[EmbeddedPostgres | None]:
    """Make ``DATABASE_URL`` name a running database for the time of a command, an embedded one kept alive.

    Yields:
        The embedded server when this process started it, else None.

    Raises:
        EmbeddedPostgresError: when the embedded server cannot be started.
    """
    if config.database_url is not None:
        os.environ["DATABASE_URL"] = config.database_url
        yield None
        return
    data_dir = data_dir_of(config)
    url = running_url(data_dir)
    if url is not None:
        os.environ["DATABASE_URL"] = url
        yield None
        return
    with (
        EmbeddedPostgres(data_dir, notice=notice, binaries_dir=binaries_dir_of(config)) as server,
        Keeper(server),
    ):
        os.environ["DATABASE_URL"] = server.url
        yield server


def data_dir_of(config: Config) -> Path:
    """Where the embedded database and generated secrets lie, by the settings or the platform.

    Raises:
        DataFolderError: this user has no home folder, or the one that is named is nowhere.
    """
    chosen = config.ocpp_billing_data_dir
    if chosen is None:
        return default_data_dir()
    try:
        return Path(chosen).expanduser().absolute()
    except (OSError, RuntimeError) as error:  # no such user, or started in a folder that is gone
        raise DataFolderError(
            f"OCPP_BILLING_DATA_DIR is {chosen!r}, and that cannot be found: {error}. Name the whole path."
        ) from error


def binaries_dir_of(config: Config) -> Path | None:
    """PostgreSQL's programs that the settings name instead of the embedded ones."""
    return Path(config.ocpp_billing_pg_bin) if config.ocpp_billing_pg_bin else None


def set_up_schema(*, embedded: bool, notice: Callable[[str], None]) -> None:
    """Bring the schema up to date, or say that somebody has to.

    The embedded database is ours, so it is migrated without asking; a given one only by ``migrate``.

    Raises:
        SchemaError: when a given database is behind the code, or any is ahead of it.
    """
    error = find_schema_error()
    if error is None:
        return
    if error.code == NEWER or not embedded:
        raise error
    bring_up_to_date(verbosity=0, notice=notice)
