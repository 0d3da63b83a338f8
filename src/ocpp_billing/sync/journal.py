"""The record of a run: its row, its steps, its log, written as it happens."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from django.db import connection, transaction

from ocpp_billing import clock
from ocpp_billing.billing.outbox import free_claimed
from ocpp_billing.config import ConfigError
from ocpp_billing.database import Fence, fenced_transaction
from ocpp_billing.effects import effect
from ocpp_billing.log import get_logger
from ocpp_billing.sync.models import RunStatus, SyncLog, SyncRun

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.steve.client import SteveClient

log = get_logger(__name__)

# Tells those who follow a run that it began, got on or ended.
PROGRESS = "ocpp_billing_progress"

# What a run counts; always all of them, so that the JSON has one shape.
COUNTS = (
    "discovered",
    "changed",
    "malformed",
    "held",
    "excluded",
    "queued",
    "accepted",
    "rejected",
    "confirmed",
    "steve_calls",
    "lago_calls",
)


@dataclass(slots=True)
class RunJournal:
    """A run in progress.

    Attributes:
        run: its row.
        on_progress: told every sentence of the log, for a terminal.
        counts: what happened in this run.
        errors: what went wrong, step by step, each a sentence that says what to do.
        unfinished: sentences about what is left for the next run.
        stopping: set when the process is to stop in the middle.
    """

    run: SyncRun
    on_progress: Callable[[str], None] | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    errors: list[dict[str, str]] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    stopping: threading.Event | None = None

    @property
    def fence(self) -> Fence:
        """What the run's transactions are fenced with."""
        return Fence(self.run.pk, self.stopping)

    def say(self, action: str, message: str, *, level: str = "info") -> None:
        """Write a sentence into the run's log at once: it survives whatever comes next."""
        with effect("db commit log"):
            SyncLog.objects.create(run=self.run, level=level, action=action, message=message, at=clock.now())
        getattr(log, level)(message, action=action, run=self.run.pk)
        if self.on_progress is not None:
            self.on_progress(message)

    def failed(self, step: str, error: Exception) -> None:
        """A step could not be carried out; the others still may."""
        self.errors.append({"step": step, "error": str(error), "kind": kind_of(error)})
        self.say(f"{step}.failed", str(error), level="error")

    def unconfigured(self, error: ConfigError, delivery: str) -> SyncRun:
        """End the run because connections are not configured, with what to set."""
        for problem in error.problems:
            self.failed("settings", ConfigError([problem]))
        return self.finish(delivery)

    @contextmanager
    def counting_calls(self, steve: SteveClient, lago: LagoClient) -> Iterator[None]:
        """Count what StEvE and Lago are asked meanwhile."""
        before = (steve.calls, lago.calls)
        yield
        self.counts["steve_calls"] = steve.calls - before[0]
        self.counts["lago_calls"] = lago.calls - before[1]

    def left(self, message: str) -> None:
        """Something is left for the next run."""
        self.unfinished.append(message)
        self.say("run.unfinished", message, level="warning")

    @contextmanager
    def step(self, name: str, *expected: type[Exception]) -> Iterator[dict[str, int]]:
        """Record a step: when it began and ended, what it counted, why it failed.

        Yields:
            What the step counts; stored when it ends.

        An expected error ends the step and is recorded; the run goes on with the next step.

        Raises:
            StoppedError: instead of beginning, when the process is to stop.
        """
        self.fence.check()
        with effect("db commit step"), connection.cursor() as cursor:
            cursor.execute(_BEGIN_STEP, [self.run.pk, name, clock.now(), PROGRESS, self.run.source_id])
            ((step_id, _),) = cursor.fetchall()
        counted: dict[str, int] = {}
        error_text: str | None = None
        try:
            yield counted
        except expected as error:
            error_text = str(error)
            self.failed(name, error)
        except Exception as error:
            error_text = str(error)
            raise
        finally:
            for key, number in counted.items():
                self.counts[key] = self.counts.get(key, 0) + number
            with effect("db commit step"), connection.cursor() as cursor:
                written = msgspec.json.encode(counted).decode()
                ended = [clock.now(), written, error_text, step_id, PROGRESS, self.run.source_id]
                cursor.execute(_END_STEP, ended)

    def finish(self, delivery: str) -> SyncRun:
        """End the run: completed, partial (something set aside or left) or failed (a step had an error).

        Raises:
            FenceError: when another worker has ended it already.
        """
        partial = bool(self.counts["malformed"] or self.counts["rejected"] or self.unfinished)
        status = RunStatus.FAILED if self.errors else RunStatus.PARTIAL if partial else RunStatus.COMPLETED
        with fenced_transaction("finish run", self.fence) as cursor:
            cursor.execute(
                "UPDATE sync_run SET status = %s, ended_at = %s, delivery = %s, counts = %s, errors = %s"
                " WHERE id = %s",
                [
                    status.value,
                    clock.now(),
                    delivery,
                    msgspec.json.encode(self.counts).decode(),
                    msgspec.json.encode(
                        self.errors + [{"step": "run", "error": text} for text in self.unfinished]
                    ).decode(),
                    self.run.pk,
                ],
            )
            _notify(cursor, self.run.source_id)
        self.run.refresh_from_db()
        return self.run


def kind_of(error: Exception) -> str:
    """What kind of error it is, for those who count: ``steve.Unreachable``, ``lago.Unauthorised``."""
    return f"{type(error).__module__.split('.')[1]}.{type(error).__name__}"


# Whoever follows the run looks again after each. One statement, because it needs no transaction around it and
# there are ten of them in every run.
# A step that goes on after a decision of its own begins anew: it is one step of its run.
_BEGIN_STEP = """
WITH begun AS (
    INSERT INTO sync_step (run_id, name, started_at, counts) VALUES (%s, %s, %s, '{}')
    ON CONFLICT (run_id, name) DO UPDATE SET started_at = EXCLUDED.started_at, ended_at = NULL, error = NULL
    RETURNING id
)
SELECT id, pg_notify(%s, %s) FROM begun
"""
_END_STEP = """
WITH ended AS (
    UPDATE sync_step SET ended_at = %s, counts = %s::jsonb, error = %s WHERE id = %s RETURNING id
)
SELECT pg_notify(%s, %s) FROM ended
"""


def _notify(cursor: Any, source: str) -> None:
    with effect("notify progress"):
        cursor.execute("SELECT pg_notify(%s, %s)", [PROGRESS, source])


def begin_run(
    run_id: int | None, *, source: str, trigger: str, requested_by: str, worker: str
) -> SyncRun | None:
    """Turn a requested run into the running one, or make one; None when there is nothing to begin.

    Only the leader calls this.

    Args:
        run_id: the requested run; None = make a new one.
        source: name of the StEvE.
        trigger: why, for a new one.
        requested_by: who, for a new one.
        worker: this process.
    """
    with effect("db commit begin run"), transaction.atomic(), connection.cursor() as cursor:
        if run_id is None:
            cursor.execute(
                "INSERT INTO sync_run"
                " (source_id, status, trigger, requested_by, requested_at, started_at, worker)"
                " VALUES (%s, 'running', %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING id",
                [source, trigger, requested_by, clock.now(), clock.now(), worker],
            )
        else:
            cursor.execute(
                "UPDATE sync_run SET status = 'running', started_at = %s, worker = %s"
                " WHERE id = %s AND status = 'requested' RETURNING id",
                [clock.now(), worker, run_id],
            )
        row = cursor.fetchone()
        if row is None:
            return None
        _notify(cursor, source)
    return SyncRun.objects.get(pk=row[0])


DIED = "The process ended in the middle; the next run completes it."


def end_abandoned_runs(source: str, *, why: str = DIED, worker: str | None = None) -> int:
    """Mark the running run of a process that is gone, or about to go, as interrupted; and free its leases.

    Waits for transactions of such a run that are still in flight, so nothing it began commits later. The
    caller holds the leader's lock.

    Args:
        source: name of the StEvE.
        why: what stands in the run's errors.
        worker: whose run; None = whoever's it is.

    Returns:
        How many runs were ended: 0 or 1.
    """
    with effect("db commit end abandoned"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE sync_run SET status = 'interrupted', ended_at = %s, errors = errors || %s::jsonb"
            " WHERE source_id = %s AND status = 'running' AND worker = coalesce(%s, worker)",
            [
                clock.now(),
                msgspec.json.encode([{"step": "run", "error": why, "kind": "sync.Interrupted"}]).decode(),
                source,
                worker,
            ],
        )
        ended = int(cursor.rowcount)
        if ended:
            free_claimed(cursor, source)
            _notify(cursor, source)
        return ended
