"""Short runs between two full ones: what has become due is done at once, and nothing else.

A stop that the watch lane saw is recorded, decided and delivered; usage events whose next attempt is due
are sent; accepted ones whose settle delay is over are confirmed. Each is a run like any other, with its
steps and its log, so that every watt-hour's way can be followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import connection

from ocpp_billing import clock
from ocpp_billing.billing import control
from ocpp_billing.billing.outbox import break_leases, next_due_at
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.steve.errors import SteveError
from ocpp_billing.steve.identity import AnotherSteveError
from ocpp_billing.steve.idle import REST_FACTOR
from ocpp_billing.sync.reading import (
    Recorder,
    look_for_stuck_sessions,
    pause_where_identity_is_in_doubt,
)
from ocpp_billing.sync.run import confirm, decide, deliver

if TYPE_CHECKING:
    from datetime import datetime

    from ocpp_billing.config import Config
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.sync.journal import RunJournal
    from ocpp_billing.sync.models import SyncRun
    from ocpp_billing.sync.watch import Look

# Meter values of sessions that were just closed by hand are read in one short run, a call each.
EVIDENCE_AT_ONCE = 5
# Between two deliveries of their own, and how much longer when nothing comes of them.
DELIVERY_REST = timedelta(seconds=5)
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=15), timedelta(minutes=15)


def take_up(
    config: Config,
    steve: SteveClient,
    lago: LagoClient,
    journal: RunJournal,
    dues: Dues,
    found: Look | None = None,
) -> SyncRun:
    """Carry out a short run: record what a look found, decide what asks for it, send and confirm what is due.

    Args:
        config: the settings.
        steve: has been asked already, if anything was found.
        lago: asks and tells Lago.
        journal: the running run; ended here.
        dues: what is due; told what was done.
        found: what the watch lane saw.

    Raises:
        FenceError: when another worker has taken over.
        StoppedError: when the process is to stop.
    """
    source = config.steve_source
    break_leases(source, journal.fence)
    directory = LagoDirectory(lago, config.lago_metric_code)
    with journal.counting_calls(steve, lago):
        if found is not None:
            record(config, found, journal)
        decide(config, directory, journal, ask_again=False)
        if _is_over(dues.queued_until(), clock.now()):
            deliver(config, lago, directory, journal)
        if _is_over(dues.confirmation_at(), began := clock.now()):
            confirm(config, lago, directory, journal)
            dues.confirmed(began, took=clock.now() - began)
    return journal.finish(control.read_status(config).mode)


def record(config: Config, found: Look, journal: RunJournal) -> None:
    """Write down what a look at StEvE found."""
    recorder = Recorder(config.steve_source, journal.fence)
    discovery = found.discovery
    with journal.step("record", SteveError, AnotherSteveError) as recorded:
        try:
            with pause_where_identity_is_in_doubt(config, discovery):
                for answer in found.answers:
                    strangers = recorder(answer.shown, gone=answer.gone, progress=discovery.progress)
                    discovery.strangers.update(strangers)
                discovery.record = recorder
                _look_for_evidence(config, found, journal)
        finally:
            recorded.update(recorder.found.by_name())
    recorder.say_what_came(journal)


def _look_for_evidence(config: Config, found: Look, journal: RunJournal) -> None:
    """An operator has just closed a session: what its meter values say is asked for now.

    The decision then need not wait for the next full run. A handful at once; what is left, and what StEvE
    does not answer, is made good there.
    """
    if not found.discovery.capabilities.details:
        return
    by_hand = sorted(
        row.steve_id
        for answer in found.answers
        for row in answer.shown.rows
        if row.stopped_at is not None and row.stop_actor == "manual"
    )
    if not by_hand:
        return
    try:
        look_for_stuck_sessions(config, found.discovery, journal, only=by_hand[:EVIDENCE_AT_ONCE])
    except SteveError as error:
        journal.say("stuck.later", f"evidence waits for the next full run: {error}", level="warning")


def _is_over(due_at: datetime | None, now: datetime) -> bool:
    return due_at is not None and due_at <= now


@dataclass(slots=True)
class Dues:
    """What is due beside the schedule and triggers, of a worker that leads.

    Attributes:
        config: the settings.
        delivery_rests_until: nothing is tried again before; longer each time that nothing came of it.
        confirmation_rests_until: paced by how long the last confirmation took.
        tried_until: events that were accepted up to then have been compared once; the next full run
            compares them again.
    """

    config: Config
    delivery_rests_until: datetime | None = None
    confirmation_rests_until: datetime | None = None
    tried_until: datetime | None = None
    _vain: int = 0

    def queued_until(self) -> datetime | None:
        """When the next queued usage event may be sent; None when none is, or nothing is sent at all now."""
        if control.read_status(self.config).mode != "live":
            return None
        return next_due_at(self.config.steve_source)

    def delivery_at(self) -> datetime | None:
        """When a delivery of its own is worth while."""
        due_at = self.queued_until()
        return None if due_at is None else max(due_at, self.delivery_rests_until or due_at)

    def confirmation_at(self) -> datetime | None:
        """When the settle delay of the first event that was not compared yet is over."""
        accepted_at = first_accepted_at(self.config.steve_source, self.tried_until)
        if accepted_at is None:
            return None
        settled_at = accepted_at + settle_delay(self.config)
        return max(settled_at, self.confirmation_rests_until or settled_at)

    def delivered(self, run: SyncRun) -> None:
        """A delivery of its own has ended: when nothing came of it the next one comes later."""
        moved = any(run.counts.get(count) for count in ("accepted", "rejected", "held"))
        self._vain = 0 if moved else self._vain + 1
        rest = DELIVERY_REST if moved else min(FIRST_BACKOFF * 2**self._vain, LONGEST_BACKOFF)
        self.delivery_rests_until = clock.now() + rest

    def confirmed(self, began: datetime, *, took: timedelta) -> None:
        """What was accepted long enough before has been compared, whatever came of it."""
        self.tried_until = began - settle_delay(self.config)
        self.confirmation_rests_until = began + REST_FACTOR * took


def settle_delay(config: Config) -> timedelta:
    """How long Lago gets to digest an event before its count is compared."""
    return timedelta(seconds=config.confirm_settle_seconds)


def first_accepted_at(source: str, after: datetime | None) -> datetime | None:
    """When the first event that is not confirmed yet was accepted; of those that were accepted after."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT min(accepted_at) FROM usage_event WHERE source_id = %(source)s AND state = 'accepted'"
            " AND (%(after)s::timestamptz IS NULL OR accepted_at > %(after)s)",
            {"source": source, "after": after},
        )
        accepted_at: datetime | None = cursor.fetchone()[0]
        return accepted_at
