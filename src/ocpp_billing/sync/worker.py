"""The sync worker: runs on schedule and on demand, one leader per source, others stand by."""

from __future__ import annotations

import os
import signal
import socket
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
from cronsim import CronSim
from django.db import InterfaceError, OperationalError, close_old_connections, connection

from ocpp_billing import clock
from ocpp_billing.config import ConfigError
from ocpp_billing.log import get_logger
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.database import FenceError
from ocpp_billing.sync.journal import RunJournal, begin_run, end_abandoned_runs
from ocpp_billing.sync.leadership import Leadership
from ocpp_billing.sync.models import SyncRun, WorkerHeartbeat
from ocpp_billing.sync.run import synchronize
from ocpp_billing.sync.triggers import request_run

if TYPE_CHECKING:
    from types import FrameType

    from ocpp_billing.config import Config

log = get_logger(__name__)

HEARTBEAT_EVERY = timedelta(seconds=5)
STANDBY_TRIES_EVERY_S = 1.0
STOP_NOTICED_WITHIN_S = 0.25
# While the database is away the worker tries again, ever more slowly.
FIRST_RECONNECT_S, LONGEST_RECONNECT_S = 0.2, 10.0
DATABASE_GONE = (OperationalError, InterfaceError, psycopg.OperationalError)


def worker_name() -> str:
    """Who this process is, for people: host, process, and something that no other process has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"


def next_scheduled(config: Config, after: datetime) -> datetime:
    """The next time of the cron schedule after an instant, in UTC; the schedule's own zone decides."""
    local = after.astimezone(config.timezone)
    return next(CronSim(config.sync_cron_schedule, local)).astimezone(after.tzinfo)


@dataclass(slots=True)
class Worker:
    """One worker process."""

    config: Config
    name: str = field(default_factory=worker_name)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Work until told to stop. A database that restarts is waited for."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        reconnect_s = FIRST_RECONNECT_S
        while not self.stopping.is_set():
            try:
                with Leadership(self.config.steve_source) as leadership:
                    leadership.connect()
                    reconnect_s = FIRST_RECONNECT_S
                    self._serve(leadership)
            except DATABASE_GONE as error:
                log.warning("database away", action="worker.database", error=str(error).strip())
                close_old_connections()
                self.stopping.wait(reconnect_s)
                reconnect_s = min(reconnect_s * 2, LONGEST_RECONNECT_S)
        log.info("worker stopped", action="worker.stop", worker=self.name)

    def _stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        self.stopping.set()

    # -- standing by and leading -----------------------------------------------------------------------

    def _serve(self, leadership: Leadership) -> None:
        """Stand by until the lock is ours, then lead until told to stop or the lock is lost."""
        log.info("worker stands by", action="worker.standby", worker=self.name)
        self._beat(leader=False, leadership=leadership)
        while not self.stopping.is_set() and not leadership.try_lead():
            self._beat(leader=False, leadership=leadership)
            self.stopping.wait(STANDBY_TRIES_EVERY_S)
        if not self.stopping.is_set():
            log.info("worker leads", action="worker.lead", worker=self.name)
            with _Heart(self, leadership):
                self._lead(leadership)
        WorkerHeartbeat.objects.filter(worker=self.name).delete()

    def _lead(self, leadership: Leadership) -> None:
        source = self.config.steve_source
        if end_abandoned_runs(source):
            request_run(source, trigger="recovery", requested_by=self.name)
        elif self.config.sync_on_startup:
            request_run(source, trigger="startup", requested_by=self.name)
        next_at = next_scheduled(self.config, clock.now())
        while not self.stopping.is_set():
            self._beat(leader=True, leadership=leadership, next_run_at=next_at)
            if clock.now() >= next_at:
                request_run(source, trigger="schedule", requested_by=self.config.sync_cron_schedule)
                next_at = next_scheduled(self.config, clock.now())
            requested = SyncRun.objects.filter(source_id=source, status="requested").first()
            if requested is not None:
                self._carry_out(requested.pk)
                continue
            self._wait(leadership, min(next_at, clock.now() + HEARTBEAT_EVERY))

    def _wait(self, leadership: Leadership, until: datetime) -> None:
        """Wait for a trigger, an instant, or the word to stop, which does not interrupt waiting by itself."""
        while not self.stopping.is_set() and (left_s := (until - clock.now()).total_seconds()) > 0:
            if any(leadership.wait(min(left_s, STOP_NOTICED_WITHIN_S))):
                return

    def _carry_out(self, run_id: int) -> None:
        run = begin_run(
            run_id, source=self.config.steve_source, trigger="manual", requested_by="", worker=self.name
        )
        if run is None:
            return
        try:
            carry_out(self.config, run)
        except FenceError as error:
            log.warning("run taken over", action="worker.fence", error=str(error))
        finally:
            close_old_connections()

    def _beat(self, *, leader: bool, leadership: Leadership, next_run_at: datetime | None = None) -> None:
        values: dict[str, object] = {
            "source_id": self.config.steve_source,
            "leader": leader,
            "lock_pid": leadership.backend_pid if leader else None,
            "seen_at": clock.now(),
        }
        if next_run_at is not None:
            values["next_run_at"] = next_run_at
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO source (name) VALUES (%s) ON CONFLICT DO NOTHING", [self.config.steve_source]
            )
        WorkerHeartbeat.objects.update_or_create(worker=self.name, defaults=values)


class _Heart:
    """Says that the leader is alive while it is busy with a run."""

    def __init__(self, worker: Worker, leadership: Leadership) -> None:
        self._worker, self._leadership = worker, leadership
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_EVERY.total_seconds()):
            try:
                WorkerHeartbeat.objects.filter(worker=self._worker.name).update(seen_at=clock.now())
            except DATABASE_GONE as error:
                log.debug("heartbeat missed", action="worker.heartbeat", error=str(error).strip())
            finally:
                connection.close()


def carry_out(config: Config, run: SyncRun, journal: RunJournal | None = None) -> SyncRun:
    """Carry out a run that has begun; missing connections end it as failed, with what to set."""
    journal = journal or RunJournal(run)
    try:
        with open_clients(config) as (steve, lago):
            return synchronize(config, steve, lago, journal)
    except ConfigError as error:
        for problem in error.problems:
            journal.failed("settings", ConfigError([problem]))
        return journal.finish("shadow")
