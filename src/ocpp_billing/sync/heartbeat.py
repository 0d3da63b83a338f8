"""The sign of life of a process that leads or stands by, and the proof that it still leads."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from django.db import InterfaceError, OperationalError, connection, transaction

from ocpp_billing import clock
from ocpp_billing.charging.models import Source
from ocpp_billing.database import FenceError
from ocpp_billing.effects import effect
from ocpp_billing.log import get_logger
from ocpp_billing.sync.liveness import HEARTBEAT_EVERY
from ocpp_billing.sync.models import WorkerHeartbeat, WorkerKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

log = get_logger(__name__)

DATABASE_GONE = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)


class LeadershipLostError(FenceError):
    """Another process leads now."""


class Heartbeat:
    """Keeps the row of one process fresh, from a thread of its own, also while the process is busy.

    Attributes:
        lost: set when the row says that this process, which led, does not lead any more.
    """

    def __init__(self, source: str, worker: str, kind: WorkerKind) -> None:
        self._source, self._worker, self._kind = source, worker, kind
        self._leads = False
        self._next_run_at: datetime | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = threading.Event()

    def start(self) -> None:
        """Begin to beat; a role has to be written first."""
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop beating and say good-bye, if the database is there to hear it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if self._kind == WorkerKind.WORKER:
                say_good_bye(self._worker)
            else:
                with effect("db commit heartbeat"):
                    WorkerHeartbeat.objects.filter(worker=self._worker).delete()
        except DATABASE_GONE as error:
            log.debug("no good-bye", action="worker.heartbeat", error=str(error).strip())

    def stand_by(self) -> None:
        """Write that this process stands by."""
        self._leads = False
        with effect("db commit heartbeat"), transaction.atomic():
            Source.objects.get_or_create(name=self._source)
            self._write(leader=False, lock_pid=None)

    def lead(self, lock_pid: int) -> None:
        """Write that this process leads, and nobody else; it holds the lock."""
        with effect("db commit heartbeat"), transaction.atomic():
            Source.objects.get_or_create(name=self._source)
            others = WorkerHeartbeat.objects.filter(source_id=self._source, leader=True)
            # Waits for what they are just beginning as leaders: see leader_transaction().
            others.exclude(worker=self._worker).update(leader=False, lock_pid=None)
            self._write(leader=True, lock_pid=lock_pid)
        self.lost.clear()
        self._leads = True

    def plan(self, next_run_at: datetime) -> None:
        """Tell when the next full run is due, if that is news."""
        if next_run_at != self._next_run_at:
            self._next_run_at = next_run_at
            self.beat()

    def beat(self) -> None:
        """Write a sign of life now."""
        with effect("db commit heartbeat"):
            written = WorkerHeartbeat.objects.filter(worker=self._worker, leader=self._leads).update(
                seen_at=clock.now(), next_run_at=self._next_run_at if self._leads else None
            )
        if not written and self._leads:
            self.lost.set()

    def _write(self, **role: Any) -> None:
        now = clock.now()
        WorkerHeartbeat.objects.update_or_create(
            worker=self._worker,
            defaults={"source_id": self._source, "kind": self._kind, "seen_at": now, "next_run_at": None}
            | {"stopped_at": None}
            | role,
            create_defaults={
                "source_id": self._source,
                "kind": self._kind,
                "seen_at": now,
                "started_at": now,
                **role,
            },
        )

    def _beat(self) -> None:
        try:
            while not self._ended.wait(HEARTBEAT_EVERY.total_seconds()):
                try:
                    self.beat()
                except DATABASE_GONE as error:
                    log.debug("heartbeat missed", action="worker.heartbeat", error=str(error).strip())
                    connection.close()
        finally:
            connection.close()


def say_good_bye(worker: str) -> None:
    """Write that a worker ended by itself: since when nobody is there remains known."""
    with effect("db commit heartbeat"):
        WorkerHeartbeat.objects.filter(worker=worker).update(
            leader=False, lock_pid=None, stopped_at=clock.now(), next_run_at=None
        )


@contextmanager
def leader_transaction(worker: str) -> Iterator[None]:
    """A transaction that only commits while this worker leads: whoever takes over waits for its end.

    A run's own transactions are fenced by the run; this is for what a leader does outside a run, above
    all beginning one.

    Raises:
        LeadershipLostError: when another process leads.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM worker_heartbeat WHERE worker = %s AND leader FOR SHARE", [worker])
        if cursor.fetchone() is None:
            raise LeadershipLostError(f"{worker} does not lead any more")
        yield
