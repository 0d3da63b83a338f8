"""The sync worker: one process that leads or stands by, until it is told to stop.

    Worker.run -> stand by until the lock is ours -> lead: triggers, schedule, watch, what has become due

What a leader does in which order is in :mod:`ocpp_billing.sync.leader`; what a run does, in
:mod:`ocpp_billing.sync.run` (full) and :mod:`ocpp_billing.sync.lanes` (short).
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from django.db import connection

from ocpp_billing.billing import control
from ocpp_billing.config import ConfigError
from ocpp_billing.database import FenceError, why_away
from ocpp_billing.log import get_logger
from ocpp_billing.schema import NEWER, SchemaError, find_schema_error
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.heartbeat import DATABASE_GONE, Heartbeat, say_good_bye
from ocpp_billing.sync.journal import RunJournal, end_abandoned_runs
from ocpp_billing.sync.leader import Leader
from ocpp_billing.sync.leadership import STANDBY_LOOKS_EVERY_S, Leadership, Patience, name_connections
from ocpp_billing.sync.models import WorkerHeartbeat, WorkerKind
from ocpp_billing.sync.run import synchronize
from ocpp_billing.sync.triggers import CHANNEL

if TYPE_CHECKING:
    from types import FrameType

    from ocpp_billing.config import Config
    from ocpp_billing.sync.models import SyncRun

log = get_logger(__name__)

# A standby asks for the lock so often: a leader that died has given it back at once.
STANDBY_TRIES_EVERY_S = 0.2
# While the database is away, or cannot be written, the worker tries again, ever more slowly. One that
# lets us in and fails soon after, such as one whose disk is full, has not come back.
FIRST_RECONNECT_S, LONGEST_RECONNECT_S = 0.2, 10.0
BACK_AFTER_S = 20.0
# What is under way when the process is told to stop has so long; then it is handed back. Docker kills
# after 10 seconds.
GRACE_S = 6.0
CLEAN, UNCLEAN = 0, 1


def worker_name() -> str:
    """Who this process is, for people: host, process, and something that no other process has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:12]}"


@dataclass(slots=True)
class Worker:
    """One worker process.

    Attributes:
        config: the settings.
        name: see :func:`worker_name`.
        stopping: set when it is to stop; noticed within a second, by a signal at once.
    """

    config: Config
    name: str = field(default_factory=worker_name)
    stopping: threading.Event = field(default_factory=threading.Event)
    _lost: str | None = None
    _wake: socket.socket | None = None
    _told: set[int] = field(default_factory=set)
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Work until told to stop. A database that restarts is waited for."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        name_connections(self.name)
        woken, self._wake = socket.socketpair()
        heartbeat = Heartbeat(self.config.steve_source, self.name, WorkerKind.WORKER)
        heartbeat.start()
        try:
            self._work(heartbeat, woken)
        finally:
            heartbeat.stop()
            woken.close()
            self._wake.close()
            self._ended.set()
        log.info("worker stopped", action="worker.stop", worker=self.name)

    def _work(self, heartbeat: Heartbeat, woken: socket.socket) -> None:
        reconnect_s = FIRST_RECONNECT_S
        while not self.stopping.is_set():
            connected_s = math.inf
            why: str | None = None
            try:
                with Leadership(self.config.steve_source, self.name) as leadership:
                    leadership.connect(CHANNEL)
                    connected_s = time.monotonic()
                    self._serve(leadership, heartbeat, woken.fileno())
                continue
            except DATABASE_GONE as error:
                why = why_away(error)
                log.warning("database away", action="worker.database", error=why)
            except SchemaError as error:
                log.error("wrong schema", action="worker.schema", error=str(error))  # noqa: TRY400 - says all
            except FenceError as error:
                log.warning("leadership lost", action="worker.lost", error=str(error))
                continue
            except Exception:  # the outermost loop: the worker does not exit by itself
                log.exception("unexpected error", action="worker.error")
            finally:
                connection.close()
            if time.monotonic() - connected_s > BACK_AFTER_S:
                reconnect_s, self._lost = FIRST_RECONNECT_S, None
            self._lost = self._lost or why  # what came first explains the rest
            self.stopping.wait(reconnect_s)
            reconnect_s = min(reconnect_s * 2, LONGEST_RECONNECT_S)

    def _serve(self, leadership: Leadership, heartbeat: Heartbeat, wake_fd: int) -> None:
        """Stand by until the lock is ours, then lead until told to stop or the lock is lost."""
        if not leadership.try_lead():
            heartbeat.stand_by()
            log.info("worker stands by", action="worker.standby", worker=self.name)
            if not self._stand_by(leadership, wake_fd):
                return
        # A standby may have waited for days, while another machine was upgraded.
        if (error := find_schema_error()) is not None and error.code == NEWER:
            raise error
        heartbeat.lead(leadership.backend_pid)
        log.info("worker leads", action="worker.lead", worker=self.name)
        Leader(self.config, self.name, leadership, heartbeat, self.stopping, wake_fd, self._lost).lead()

    def _stand_by(self, leadership: Leadership, wake_fd: int) -> bool:
        """Wait for the lock, and take it from a leader that is frozen; False when told to stop."""
        patience = Patience()
        looked_s = time.monotonic()
        while not self.stopping.is_set():
            if leadership.try_lead():
                return True
            now_s = time.monotonic()
            if now_s - looked_s >= STANDBY_LOOKS_EVERY_S:
                looked_s = now_s
                self._look_after(leadership, patience, now_s)
            leadership.wait(STANDBY_TRIES_EVERY_S, wake_fd)
        return False

    def _look_after(self, leadership: Leadership, patience: Patience, now_s: float) -> None:
        holder = leadership.holder()
        heartbeats = WorkerHeartbeat.objects.filter(source_id=self.config.steve_source, leader=True)
        seen_at = heartbeats.values_list("seen_at", flat=True).first()
        if holder is None or not patience.is_over(holder, seen_at, now_s):
            return
        bound = {"holder": holder.application, "pid": holder.pid, "silent_since": str(seen_at)}
        if leadership.end_holder(holder):
            log.error("frozen leader ended", action="worker.ended_frozen", **bound)
        else:
            log.error(
                "the leader is frozen, and this database user may not end its connections; end that "
                "process, or grant the user pg_signal_backend",
                action="worker.cannot_end",
                **bound,
            )

    # -- the end -----------------------------------------------------------------------------------------

    def _stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        """Finish what is under way and end; told twice in the same way, end at once."""
        if signum in self._told:
            os._exit(128 + signum)
        self._told.add(signum)
        if self.stopping.is_set():
            return
        self.stopping.set()
        if self._wake is not None:
            self._wake.send(b"!")
        threading.Thread(target=self._hand_back, name="hand-back", daemon=True).start()

    def _hand_back(self) -> None:
        """When what is under way takes too long: leave it to the next worker, and end."""
        if self._ended.wait(GRACE_S):
            return
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '2s'")
            running = end_abandoned_runs(
                self.config.steve_source,
                why="The worker was told to stop in the middle; the next run completes it.",
                worker=self.name,
            )
            say_good_bye(self.name)
        except DATABASE_GONE as error:
            log.warning("stopped without the database", action="worker.stop", error=str(error).strip())
            os._exit(UNCLEAN)
        log.info("worker stopped", action="worker.stop", worker=self.name, handed_back=running)
        os._exit(CLEAN)


def carry_out(config: Config, run: SyncRun, journal: RunJournal | None = None) -> SyncRun:
    """Carry out a full run that has begun; missing connections end it as failed, with what to set."""
    journal = journal or RunJournal(run)
    try:
        with open_clients(config) as (steve, lago):
            return synchronize(config, steve, lago, journal)
    except ConfigError as error:
        return journal.unconfigured(error, control.read_status(config).mode)
