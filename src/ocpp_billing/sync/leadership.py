"""One leader per source: an advisory lock on a connection of its own, which also listens for triggers."""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import psycopg
from django.db import connection as django_connection
from django.db import connections
from psycopg import sql

from ocpp_billing.log import get_logger

if TYPE_CHECKING:
    from datetime import datetime

log = get_logger(__name__)

# First half of the lock's key; the second is a hash of the source's name.
LOCK_CLASS = 0x0C99
# Begins the application name of every connection of a worker; what follows tells workers apart.
APPLICATION = "ocpp-billing worker "
# A leader that says nothing for so long, and holds the lock all the same, is frozen.
FROZEN_AFTER_S = 30.0
# Between two looks of a standby. One that has not looked for much longer was frozen itself.
STANDBY_LOOKS_EVERY_S = 1.0


def application_name(worker: str) -> str:
    """What every database connection of a worker is called: PostgreSQL cuts names at 63 characters."""
    return (APPLICATION + worker.rpartition(":")[2])[:63]


def name_connections(worker: str) -> None:
    """Call all connections of this process after the worker, so that a standby can end all of them."""
    for alias in connections:
        connections[alias].close()
        connections.settings[alias]["OPTIONS"]["application_name"] = application_name(worker)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock.

    Attributes:
        pid: the server process of the connection that holds it.
        application: that connection's name.
    """

    pid: int
    application: str


class Leadership:
    """The connection that holds the lock and listens.

    It belongs to no transaction and is never silently replaced: when it is gone, so is the leadership.
    """

    def __init__(self, source: str, worker: str) -> None:
        self.source = source
        self._worker = worker
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def connect(self, channel: str) -> None:
        """Connect and listen; LISTEN comes first, so that nothing falls between look and wait.

        Raises:
            psycopg.OperationalError: when the database is not there.
        """
        parameters = django_connection.get_connection_params()
        parameters = {
            key: value for key, value in parameters.items() if key not in {"context", "cursor_factory"}
        }
        self._connection = psycopg.connect(
            **{**parameters, "application_name": application_name(self._worker), "autocommit": True}
        )
        self._connection.execute(_LONG_LIVED)
        self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def close(self) -> None:
        """Give the lock back, if it is held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def backend_pid(self) -> int:
        """The server process behind the lock: ending it ends this leadership."""
        return self._connected.info.backend_pid

    @property
    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        assert self._connection is not None  # noqa: S101 - connect() comes first
        return self._connection

    def try_lead(self) -> bool:
        """Take the lock if nobody holds it.

        Raises:
            psycopg.OperationalError: when the connection is gone.
        """
        row = self._connected.execute(
            "SELECT pg_try_advisory_lock(%s, hashtext(%s))", [LOCK_CLASS, self.source]
        ).fetchone()
        return bool(row and row[0])

    def check(self) -> None:
        """Make sure that the connection, and with it the lock, is still there.

        Raises:
            psycopg.OperationalError: when it is not.
        """
        self._connected.execute("SELECT")

    def holder(self) -> Holder | None:
        """Who holds the lock now, as far as the server shows it."""
        row = self._connected.execute(_HOLDER, {"class": LOCK_CLASS, "source": self.source}).fetchone()
        return None if row is None else Holder(int(str(row[0])), str(row[1] or ""))

    def end_holder(self, holder: Holder) -> bool:
        """End the lock's connection and all others of that worker; False when this is not allowed.

        The others as well: what one of them had begun would keep rows locked for as long as it is frozen.
        """
        family = holder.application if holder.application.startswith(APPLICATION) else None
        bound = {"pid": holder.pid, "family": family, "class": LOCK_CLASS, "source": self.source}
        try:
            self._connected.execute(_END_HOLDER, bound)
        except psycopg.errors.InsufficientPrivilege:
            return False
        return True

    def wait(self, timeout_s: float, wake_fd: int | None = None) -> bool:
        """Wait for an announcement, for so many seconds at most, or until ``wake_fd`` can be read.

        Returns:
            Whether something was announced.

        Raises:
            psycopg.OperationalError: when the connection is gone.
        """
        connection = self._connected
        if any([True for _ in connection.notifies(timeout=0)]):  # noqa: C419 - all are taken
            return True
        watched = [connection.fileno()] + ([] if wake_fd is None else [wake_fd])
        readable, _, _ = select.select(watched, [], [], max(timeout_s, 0))
        if connection.fileno() not in readable:
            return False
        return any([True for _ in connection.notifies(timeout=0)])  # noqa: C419 - all are taken


class Patience:
    """A standby's view of the leader: is it frozen? By this process's own clock alone.

    What is looked at is whether the leader's sign of life changes, so that differing clocks of two
    machines play no part. A standby that has itself been frozen starts over.
    """

    def __init__(self) -> None:
        self._sign: tuple[int, datetime | None] | None = None
        self._since_s = self._looked_s = time.monotonic()

    def is_over(self, holder: Holder | None, seen_at: datetime | None, now_s: float) -> bool:
        """Whether the holder has given no sign of life for too long.

        Args:
            holder: who holds the lock; None = nobody does.
            seen_at: the leader's heartbeat as last written; None = there is none.
            now_s: monotonic seconds.
        """
        sign = None if holder is None else (holder.pid, seen_at)
        was_away = now_s - self._looked_s > 10 * STANDBY_LOOKS_EVERY_S
        self._looked_s = now_s
        if sign is None or sign != self._sign or was_away:
            self._sign, self._since_s = sign, now_s
            return False
        return now_s - self._since_s > FROZEN_AFTER_S


# A lock connection is idle for hours and must still be there, and when its host is gone the server is to
# notice. Only those that this server knows; on a Unix socket they mean nothing.
_LONG_LIVED = """
SELECT set_config(wanted.name, wanted.value, false)
FROM (VALUES ('idle_session_timeout', '0'), ('statement_timeout', '0'),
             ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3'))
     AS wanted (name, value)
JOIN pg_settings USING (name)
"""

_LOCK = """
locktype = 'advisory' AND classid = %(class)s AND objid = (hashtext(%(source)s)::bigint & 4294967295)::oid
AND objsubid = 2 AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

_HOLDER = f"""
SELECT lock.pid, activity.application_name
FROM pg_locks lock LEFT JOIN pg_stat_activity activity USING (pid) WHERE {_LOCK}
"""

_END_HOLDER = f"""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND (pid = %(pid)s OR application_name = %(family)s::text)
  AND EXISTS (SELECT 1 FROM pg_locks WHERE {_LOCK} AND pid = %(pid)s)
"""
