"""Transactions of a run: fenced, and with a boundary that tests can crash at."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import connection, transaction

from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from collections.abc import Iterator


class FenceError(Exception):
    """This run is no longer the one that may write: another worker has taken over."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The run on whose behalf something is written."""

    run_id: int


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
    """
    with effect(f"db commit {name}"), transaction.atomic(), connection.cursor() as cursor:
        if fence is not None:
            cursor.execute(
                "SELECT 1 FROM sync_run WHERE id = %s AND status = 'running' FOR SHARE", [fence.run_id]
            )
            if cursor.fetchone() is None:
                raise FenceError(f"run {fence.run_id} was ended by another worker")
        yield cursor


def refresh_statistics(*tables: str) -> None:
    """Let PostgreSQL look at tables that have just grown a lot, before they are asked much.

    A table that was empty a moment ago has no statistics, and autovacuum comes a minute later: until then
    a plan may read it whole for every row.
    """
    with effect("db commit statistics"), connection.cursor() as cursor:
        cursor.execute("ANALYZE " + ", ".join(tables))
