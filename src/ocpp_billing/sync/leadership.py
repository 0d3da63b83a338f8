"""One leader per source: an advisory lock on a connection of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import psycopg
from django.db import connection as django_connection
from psycopg import sql

from ocpp_billing.sync.triggers import CHANNEL

if TYPE_CHECKING:
    from collections.abc import Iterator

# First half of the lock's key; the second is a hash of the source's name.
LOCK_CLASS = 0x0C99


class Leadership:
    """The connection that holds the lock and listens for triggers.

    It belongs to no transaction and is never silently replaced: when it is gone, so is the leadership.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect and listen; LISTEN comes first, so that no trigger falls between look and wait.

        Raises:
            psycopg.OperationalError: when the database is not there.
        """
        parameters = django_connection.get_connection_params()
        parameters = {
            key: value for key, value in parameters.items() if key not in {"context", "cursor_factory"}
        }
        self._connection = psycopg.connect(
            **{**parameters, "application_name": "ocpp-billing leader", "autocommit": True}
        )
        self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))

    def close(self) -> None:
        """Give the lock back, if it is held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def backend_pid(self) -> int | None:
        """The server process behind the lock: ending it ends this leadership."""
        return None if self._connection is None else self._connection.info.backend_pid

    def try_lead(self) -> bool:
        """Take the lock if nobody holds it.

        Raises:
            psycopg.OperationalError: when the connection is gone.
        """
        assert self._connection is not None  # noqa: S101 - connect() comes first
        row = self._connection.execute(
            "SELECT pg_try_advisory_lock(%s, hashtext(%s))", [LOCK_CLASS, self.source]
        ).fetchone()
        return bool(row and row[0])

    def wait(self, timeout_s: float) -> Iterator[str]:
        """Sources for which a trigger or an end of a run was announced, within so many seconds."""
        assert self._connection is not None  # noqa: S101 - connect() comes first
        for notification in self._connection.notifies(timeout=timeout_s, stop_after=1):
            yield notification.payload
