"""What a leader does: triggers first, then the schedule, then what has become due between full runs."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from django.db import close_old_connections

from ocpp_billing import clock
from ocpp_billing.alerts.watchman import Watchman
from ocpp_billing.billing import control
from ocpp_billing.config import ConfigError
from ocpp_billing.database import FenceError, StoppedError
from ocpp_billing.log import get_logger
from ocpp_billing.steve.errors import SteveError
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.heartbeat import DATABASE_GONE, LeadershipLostError, leader_transaction
from ocpp_billing.sync.journal import RunJournal, begin_run, end_abandoned_runs
from ocpp_billing.sync.lanes import Dues, take_up
from ocpp_billing.sync.models import LANES, RunTrigger, SyncRun
from ocpp_billing.sync.retention import prune
from ocpp_billing.sync.run import synchronize
from ocpp_billing.sync.schedule import Schedule
from ocpp_billing.sync.triggers import request_run
from ocpp_billing.sync.watch import look

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from ocpp_billing.config import Config
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.sync.heartbeat import Heartbeat
    from ocpp_billing.sync.leadership import Leadership
    from ocpp_billing.sync.watch import Look

log = get_logger(__name__)

# What nobody announces (an event that became due, delivery that was resumed) is looked for so often.
LOOKS_EVERY_S = 5.0
# The clock is looked at so often while nothing happens: it may be put forward or back.
TICKS_EVERY_S = 1.0
PRUNES_EVERY = timedelta(days=1)
# A look at a StEvE that does not answer is repeated ever more slowly.
LONGEST_WATCH_REST = timedelta(minutes=5)


@dataclass(slots=True)
class Leader:
    """One term of office: from taking the lock to losing it or being told to stop.

    Attributes:
        config: the settings.
        name: of the worker.
        leadership: the lock.
        heartbeat: its sign of life.
        stopping: set when the process is to stop.
        wake_fd: can be read when it is to stop.
        lost: why this process lost the database before this term; None when it did not.
    """

    config: Config
    name: str
    leadership: Leadership
    heartbeat: Heartbeat
    stopping: threading.Event
    wake_fd: int
    lost: str | None = None
    schedule: Schedule = field(init=False)
    dues: Dues = field(init=False)
    _clients: ExitStack = field(default_factory=ExitStack)
    _opened: tuple[SteveClient, LagoClient] | None = None
    _watch_at: datetime | None = None
    _watch_failures: int = 0
    _prune_at: datetime = field(default_factory=clock.now)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.config)
        self.dues = Dues(self.config)

    def lead(self) -> None:
        """Lead until told to stop.

        Raises:
            LeadershipLostError: when another worker leads.
            psycopg.OperationalError: when the lock's connection is gone.
        """
        with self._clients, Watchman(self.config, self.name) as watchman:
            self._recover()
            self._rest_watch()
            look_again = True
            while not self.stopping.is_set():
                self.heartbeat.plan(self.schedule.look(clock.now()))
                act = self._next_act(look_in_ledger=look_again)
                if act is None:
                    look_again = self._wait()
                    continue
                self._make_sure()
                act()
                watchman.look_soon()
                look_again = True

    def _make_sure(self) -> None:
        """Whatever is begun, is begun by the one who leads."""
        self.leadership.check()
        if self.heartbeat.lost.is_set():
            raise LeadershipLostError(f"{self.name} does not lead any more")

    def _recover(self) -> None:
        """Complete what a leader that is gone had begun; or run because the worker starts, if wanted."""
        source = self.config.steve_source
        with leader_transaction(self.name):
            if self.lost is not None:
                why = f"{self.lost} The run ended in the middle; the next one completes it."
                end_abandoned_runs(source, why=why, worker=self.name)
            end_abandoned_runs(source)
        latest = SyncRun.objects.filter(source_id=source).exclude(status="requested").order_by("-id").first()
        if latest is not None and latest.status == "interrupted":
            request_run(source, trigger=RunTrigger.RECOVERY, requested_by=self.name)
        elif self.config.sync_on_startup:
            request_run(source, trigger=RunTrigger.STARTUP, requested_by=self.name)

    # -- what comes next ---------------------------------------------------------------------------------

    def _next_act(self, *, look_in_ledger: bool) -> Callable[[], None] | None:
        """What is to be done now; None when nothing is."""
        now = clock.now()
        if now >= self.schedule.due_at:
            return self._ask_for_scheduled
        if look_in_ledger:
            requested = SyncRun.objects.filter(source_id=self.config.steve_source, status="requested").first()
            if requested is not None:
                return partial(self._run_in_full, requested.pk)
        if self._watch_at is not None and now >= self._watch_at:
            return self._watch
        if not look_in_ledger:
            return None
        for trigger, due_at in (
            (RunTrigger.DELIVERY, self.dues.delivery_at()),
            (RunTrigger.CONFIRM, self.dues.confirmation_at()),
        ):
            if due_at is not None and now >= due_at:
                return partial(self._run_due, trigger)
        return self._prune if now >= self._prune_at else None

    def _wait(self) -> bool:
        """Wait until something is announced or due; True when the ledger should be looked at."""
        deadline_s = time.monotonic() + LOOKS_EVERY_S
        while not self.stopping.is_set() and not self.heartbeat.lost.is_set():
            now = clock.now()
            due_at = min(self.schedule.look(now), self._watch_at or self.schedule.due_at)
            left_s = min((due_at - now).total_seconds(), deadline_s - time.monotonic(), TICKS_EVERY_S)
            if left_s <= 0:
                return time.monotonic() >= deadline_s
            if self.leadership.wait(left_s, self.wake_fd):
                return True
        return True

    # -- full runs ---------------------------------------------------------------------------------------

    def _ask_for_scheduled(self) -> None:
        request_run(
            self.config.steve_source,
            trigger=RunTrigger.SCHEDULE,
            requested_by=self.config.sync_cron_schedule,
        )
        self.schedule.begun(clock.now())

    def _run_in_full(self, run_id: int) -> None:
        began = clock.now()
        run = self._carry_out(run_id, RunTrigger.MANUAL, synchronize)
        self.dues.confirmed(began, took=timedelta())
        self._watch_failures = 1 if run is not None and _could_not_read(run) else 0
        self._rest_watch()

    # -- short runs --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look at StEvE; when there is news, take it up in a run of its own."""
        try:
            clients = self._open_clients()
            found = look(self.config, clients[0], worker=self.name)
        except ConfigError:  # a full run says what is missing
            self._watch_at = None
            return
        except SteveError as error:
            self._watch_failed(error)
            return
        if self._watch_failures:
            self._watch_recovered()
        if found is not None and found.news:
            self._take_up_news(found)
        else:
            self._rest_watch()

    def _take_up_news(self, found: Look) -> None:
        if not found.same_steve:
            log.warning("the last known sessions are not there any more", action="watch.doubt")
            request_run(
                self.config.steve_source,
                trigger=RunTrigger.RECOVERY,
                requested_by="watch: the last known sessions are not there any more",
            )
            self._rest_watch()
            return
        run = self._run_short(RunTrigger.WATCH, found)
        if run is not None and run.status == "failed":
            self._watch_failures += 1
        self._rest_watch(soon=run is not None and bool(run.counts.get("discovered")))

    def _watch_failed(self, error: SteveError) -> None:
        self._watch_failures += 1
        level = log.warning if self._watch_failures == 1 else log.debug
        level("StEvE cannot be watched", action="watch.failed", error=str(error))
        self._rest_watch()

    def _watch_recovered(self) -> None:
        """StEvE answers again: a full run that failed meanwhile is made good now, not on schedule."""
        self._watch_failures = 0
        log.info("StEvE can be watched again", action="watch.recovered")
        latest = (
            SyncRun.objects.filter(source_id=self.config.steve_source, ended_at__isnull=False)
            .exclude(trigger__in=LANES)
            .order_by("-id")
            .first()
        )
        if latest is not None and _could_not_read(latest):
            request_run(
                self.config.steve_source, trigger=RunTrigger.RECOVERY, requested_by="StEvE answers again"
            )

    def _rest_watch(self, *, soon: bool = False) -> None:
        """When to look next: at once while new sessions turn up, later while StEvE does not answer."""
        every = timedelta(seconds=self.config.sync_watch_seconds)
        if not every:
            return
        rest = timedelta() if soon else min(every * 2**self._watch_failures, max(every, LONGEST_WATCH_REST))
        self._watch_at = clock.now() + rest

    def _run_due(self, trigger: RunTrigger) -> None:
        run = self._run_short(trigger)
        if trigger == RunTrigger.DELIVERY and run is not None:
            self.dues.delivered(run)

    def _run_short(self, trigger: RunTrigger, found: Look | None = None) -> SyncRun | None:
        def short(config: Config, steve: SteveClient, lago: LagoClient, journal: RunJournal) -> SyncRun:
            return take_up(config, steve, lago, journal, self.dues, found)

        return self._carry_out(None, trigger, short)

    # -- a run, whatever it does -------------------------------------------------------------------------

    def _carry_out(
        self,
        run_id: int | None,
        trigger: RunTrigger,
        work: Callable[[Config, SteveClient, LagoClient, RunJournal], SyncRun],
    ) -> SyncRun | None:
        """Begin a run, carry it out and end it, whatever happens; None when it did not begin or end here."""
        with leader_transaction(self.name):
            run = begin_run(
                run_id,
                source=self.config.steve_source,
                trigger=trigger,
                requested_by=self.name,
                worker=self.name,
            )
        if run is None:
            return None
        journal = RunJournal(run, stopping=self.stopping)
        try:
            return work(self.config, *self._open_clients(), journal)
        except ConfigError as error:
            return journal.unconfigured(error, control.read_status(self.config).mode)
        except StoppedError as error:
            with leader_transaction(self.name):
                end_abandoned_runs(self.config.steve_source, why=str(error), worker=self.name)
            return None
        except (FenceError, *DATABASE_GONE):
            raise
        except Exception as error:  # the outermost loop: one run fails, the worker goes on
            log.exception("run failed", action="run.failed", run=run.pk)
            journal.failed("run", InternalError(error))
            return journal.finish(control.read_status(self.config).mode)
        finally:
            close_old_connections()

    def _open_clients(self) -> tuple[SteveClient, LagoClient]:
        """The clients of this term; their connections are kept for the next call.

        Raises:
            ConfigError: when a connection is not configured.
        """
        if self._opened is None:
            self._opened = self._clients.enter_context(open_clients(self.config))
        return self._opened

    def _prune(self) -> None:
        prune(self.config, self.name, clock.now())
        self._prune_at = clock.now() + PRUNES_EVERY


def _could_not_read(run: SyncRun) -> bool:
    return any(error["step"] == "discover" for error in run.errors)


class InternalError(Exception):
    """Something that should not happen; says so, and where more is to be found."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"An error of the program itself: {type(error).__name__}: {error}. Nothing is lost; the next run "
            "tries again. Please report it with the worker's log."
        )
