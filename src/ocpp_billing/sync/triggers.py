"""Asking for a run: a row and a NOTIFY in one transaction, so that no trigger is ever lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from django.db import connection, transaction
from django.utils.translation import gettext as _

from ocpp_billing import clock
from ocpp_billing.charging.models import Source
from ocpp_billing.effects import effect
from ocpp_billing.local_time import day_and_time
from ocpp_billing.sync.liveness import worker_alive
from ocpp_billing.sync.models import SyncRun

# Wakes the worker: a run is wanted.
CHANNEL = "ocpp_billing_sync"


@dataclass(frozen=True, slots=True)
class Requested:
    """What will become of a trigger, honestly.

    Attributes:
        run_id: the requested run; an earlier trigger's when one was waiting already.
        status: which of the three will happen.
        says: the same as a sentence.
    """

    run_id: int
    status: Literal["starts now", "queued behind", "no worker"]
    says: str


def request_run(source: str, *, trigger: str, requested_by: str) -> Requested:
    """Ask for a run. At most one waits: a second trigger before it begins asks for the same run."""
    with effect("db commit trigger"), transaction.atomic(), connection.cursor() as cursor:
        Source.objects.get_or_create(name=source)
        cursor.execute(
            "INSERT INTO sync_run (source_id, status, trigger, requested_by, requested_at)"
            " VALUES (%s, 'requested', %s, %s, %s)"
            " ON CONFLICT (source_id) WHERE status = 'requested' DO NOTHING",
            [source, trigger, requested_by, clock.now()],
        )
        cursor.execute(
            "SELECT id FROM sync_run WHERE source_id = %s AND status = 'requested' FOR SHARE", [source]
        )
        row = cursor.fetchone()
        with effect("notify sync"):
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, source])
    if row is None:  # a worker took the waiting run between the two statements: that run is this trigger's
        run = SyncRun.objects.filter(source_id=source).latest("id")
        return Requested(run.pk, "starts now", _("The synchronization starts now."))
    return _foretell(source, int(row[0]))


def _foretell(source: str, run_id: int) -> Requested:
    liveness = worker_alive(source, clock.now())
    running = SyncRun.objects.filter(source_id=source, status="running").first()
    if not liveness.alive:
        says = _("No worker is alive. The synchronization is noted and starts when one comes.")
        if liveness.since:
            says = _(
                "No worker is alive since %(at)s. The synchronization is noted and starts when one comes."
            ) % {"at": day_and_time(liveness.since)}
        return Requested(run_id, "no worker", says)
    if running is not None and running.pk != run_id:
        says = _("The synchronization starts when run %(id)s has ended.") % {"id": running.pk}
        return Requested(run_id, "queued behind", says)
    return Requested(run_id, "starts now", _("The synchronization starts now."))
