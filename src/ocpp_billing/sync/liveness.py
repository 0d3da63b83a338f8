"""Is a worker alive? One definition, for triggers, the portal, the API and alerts."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db.models import Exists, OuterRef, Q

from ocpp_billing.sync.models import (
    RunStatus,
    RunTrigger,
    SyncRun,
    SyncStep,
    WorkerHeartbeat,
    WorkerKind,
)

if TYPE_CHECKING:
    from datetime import datetime

# A worker says so often that it is alive, and is taken for gone when it was not heard of for so long: five
# times, so that pages, which look every two seconds, show it within half a minute.
HEARTBEAT_EVERY = timedelta(seconds=5)
SILENT_AFTER = timedelta(seconds=25)
# Runs that ask StEvE nothing.
OF_LAGO_ALONE = (RunTrigger.DELIVERY, RunTrigger.CONFIRM)
# The steps in which StEvE is read: by a full run, and by a short one that takes up what a look has found.
OF_STEVE = ("discover", "record")


@dataclass(frozen=True, slots=True)
class Liveness:
    """Whether triggers and the schedule of a source are served.

    Attributes:
        alive: a worker was heard of within :data:`SILENT_AFTER`, leading or standing by.
        since: alive: when it started; else when a worker was last heard of, None = never.
        seen_at: when a worker was last heard of; None = never.
        leader: name of the worker that leads; None while only standbys, a command or nobody is there.
        next_run_at: the next full run by the schedule; None when no worker leads.
        last_completed: when the last run that read StEvE ended, whatever else failed in it: a full one, or
            a short one that took up what a look had found. Lago says nothing about how fresh that is.
    """

    alive: bool
    since: datetime | None
    seen_at: datetime | None
    leader: str | None
    next_run_at: datetime | None
    last_completed: datetime | None


def worker_alive(source: str, now: datetime) -> Liveness:
    """Read it in two small queries.

    Workers on several machines are compared by their clocks, which must not be twenty seconds apart.

    Args:
        source: name of the StEvE.
        now: the present instant.
    """
    # What failed over Lago has read StEvE all the same: its step says so. Backwards through the primary key.
    read = SyncStep.objects.filter(run=OuterRef("pk"), name__in=OF_STEVE, ended_at__isnull=False, error=None)
    last_completed = (
        SyncRun.objects.filter(
            Q(status__in=[RunStatus.COMPLETED, RunStatus.PARTIAL]) & ~Q(trigger__in=OF_LAGO_ALONE)
            | Q(status__in=[RunStatus.FAILED, RunStatus.INTERRUPTED]) & Exists(read),
            source_id=source,
        )
        .order_by("-id")
        .values_list("ended_at", flat=True)
        .first()
    )
    workers = list(
        WorkerHeartbeat.objects.filter(source_id=source, kind=WorkerKind.WORKER).order_by(
            "-leader", "-seen_at"
        )
    )
    fresh = [
        worker for worker in workers if worker.stopped_at is None and now - worker.seen_at < SILENT_AFTER
    ]
    if not fresh:
        heard_at = max((worker.stopped_at or worker.seen_at for worker in workers), default=None)
        return Liveness(False, heard_at, heard_at, None, None, last_completed)
    first = fresh[0]
    if not first.leader:
        return Liveness(True, first.started_at, first.seen_at, None, None, last_completed)
    return Liveness(True, first.started_at, first.seen_at, first.worker, first.next_run_at, last_completed)


def heard_of_here(now: datetime) -> bool:
    """Whether a worker of this machine said lately that it is alive, leading or standing by."""
    here = f"{socket.gethostname()}:"  # sync/worker.py names workers so
    return WorkerHeartbeat.objects.filter(
        kind=WorkerKind.WORKER,
        worker__startswith=here,
        stopped_at=None,
        seen_at__gt=now - SILENT_AFTER,
    ).exists()
