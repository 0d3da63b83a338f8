"""Transactions of a run: fenced, and with a boundary that tests can crash at; and the room they have."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from django.db import OperationalError, connection, transaction

from ocpp_billing.effects import effect

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Mapping

# They write down what Lago has just answered: lost, it would have to be asked again.
EVEN_WHEN_STOPPING = {"deliver", "finish run"}


class FenceError(Exception):
    """This run is no longer the one that may write: another worker has taken over."""


class StoppedError(Exception):
    """The process was told to stop: this run ends here, and the next one completes it."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The run on whose behalf something is written.

    Attributes:
        run_id: its number.
        stopping: set when the process is to stop; None = it cannot be.
    """

    run_id: int
    stopping: threading.Event | None = None

    def check(self) -> None:
        """Go no further when the process is to stop.

        Raises:
            StoppedError: when it is.
        """
        if self.stopping is not None and self.stopping.is_set():
            raise StoppedError("The worker was told to stop in the middle; the next run completes it.")


@contextmanager
def fenced_transaction(name: str, fence: Fence | None) -> Iterator[Any]:
    """A database transaction that only commits while its run is still the running one.

    Django reconnects silently, and a worker that was frozen may wake up when another has taken over; so
    every transaction of a run begins by locking its run row in ``running``. Taking over waits for that
    lock, so nothing that the old run began can commit afterwards.

    Args:
        name: what is written, for the boundary ``db commit <name>``.
        fence: the run; None for acts of a person outside a run.

    Yields:
        A cursor within the transaction.

    Raises:
        FenceError: when the run was ended by somebody else.
        StoppedError: when the process is to stop.
    """
    if fence is not None and name not in EVEN_WHEN_STOPPING:
        fence.check()
    with effect(f"db commit {name}"), transaction.atomic(), connection.cursor() as cursor:
        if fence is not None:
            cursor.execute(
                "SELECT 1 FROM sync_run WHERE id = %s AND status = 'running' FOR SHARE", [fence.run_id]
            )
            if cursor.fetchone() is None:
                raise FenceError(f"run {fence.run_id} was ended by another worker")
        yield cursor


def read_rows(sql: str, bound: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    with connection.cursor() as cursor:
        cursor.execute(sql, bound)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


@contextmanager
def bulk_cursor() -> Iterator[psycopg.Cursor[Any]]:
    """A cursor of Django's connection for reading very many rows: they arrive in PostgreSQL's binary form.

    Django's own cursor reads text, each time stamp by Python code: that costs more than deciding a session.
    Parameters are bound by the server here, so lists among them need a cast where their type is not plain.

    Raises:
        django.db.Error: in place of psycopg's errors, as everywhere.
    """
    connection.ensure_connection()
    with (
        connection.wrap_database_errors,
        psycopg.Cursor(connection.connection) as cursor,
    ):
        cursor.format = psycopg.pq.Format.BINARY
        yield cursor


def refresh_statistics(*tables: str) -> None:
    """Let PostgreSQL look at tables that have just grown a lot, before they are asked much.

    A table that was empty a moment ago has no statistics, and autovacuum comes a minute later: until then
    a plan may read it whole for every row.
    """
    with effect("db commit statistics"), connection.cursor() as cursor:
        cursor.execute("ANALYZE " + ", ".join(tables))


DISK_IS_FULL = "The disk of the database is full: nothing can be written. Nothing is lost."
MAKE_ROOM = (
    "Make room on it, outside of PostgreSQL's own folder (docs/operations.md, When the disk is full). "
    "Everything goes on by itself then."
)
# The rows of a function go to a temporary file when they do not fit into the memory allowed.
_TO_A_FILE = "SELECT set_config('work_mem', '64kB', true), set_config('temp_tablespaces', '', true)"
_WRITE = "SELECT count(*) FROM generate_series(1, 50000)"


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the database, psycopg's or Django's, says that its disk is full."""
    return isinstance(error, psycopg.errors.DiskFull) or isinstance(error.__cause__, psycopg.errors.DiskFull)


def why_away(error: Exception) -> str:
    """Why the database cannot be used, in a sentence for the operator."""
    if is_disk_full(error):
        return f"{DISK_IS_FULL} {MAKE_ROOM}"
    return f"The database went away: {first_line(error)}."


def first_line(error: Exception) -> str:
    """The first line of what the driver says, without the full stop that sentences of ours add."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")


def has_room() -> bool:
    """Whether the database can write about a megabyte more: to a temporary file, so that nothing is left.

    What is in a table that exists may be changed on a full disk for a while, and nothing can be added.
    """
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_TO_A_FILE)
            cursor.execute(_WRITE)
    except OperationalError as error:
        if is_disk_full(error):
            return False
        raise
    return True


# PostgreSQL's log of changes alone may take a gigabyte (max_wal_size) in a busy hour.
LITTLE_ROOM_BYTES = 2 * 10**9
LITTLE_ROOM_DO = (
    "Make room on it before it is full: nothing can be read, decided or sent then (docs/operations.md, When "
    "the disk is full)."
)


def free_bytes() -> int | None:
    """How much room the disk of the database has; None where that cannot be known.

    That is known of a server on this machine whose folder may be asked for: the embedded one, which is
    reached by a socket and tells us. What another machine names would be looked for on the wrong disk.
    """
    with connection.cursor() as cursor:
        cursor.execute(_FOLDER)
        row = cursor.fetchone()
    if row is None or not str(connection.settings_dict["HOST"]).startswith("/"):
        return None
    try:
        return shutil.disk_usage(row[0]).free
    except OSError:
        return None


def little_room() -> str | None:
    """That the disk of the database is nearly full, in a sentence; None when it is not, or not known."""
    free = free_bytes()
    if free is None or free >= LITTLE_ROOM_BYTES:
        return None
    return f"The disk of the database is nearly full: {free / 10**9:.1f} GB are left."


# Without the right to see it there is no such row.
_FOLDER = "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
