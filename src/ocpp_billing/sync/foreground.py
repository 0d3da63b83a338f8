"""One synchronization in the foreground: ``ocpp-billing sync``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from django.db import connection

from ocpp_billing.database import why_away
from ocpp_billing.sync.heartbeat import DATABASE_GONE, Heartbeat, leader_transaction
from ocpp_billing.sync.journal import PROGRESS, RunJournal, begin_run, end_abandoned_runs
from ocpp_billing.sync.leadership import Leadership, name_connections
from ocpp_billing.sync.models import SyncLog, SyncRun, WorkerKind
from ocpp_billing.sync.triggers import request_run
from ocpp_billing.sync.worker import carry_out, worker_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocpp_billing.config import Config

FINISHED = ("completed", "partial", "failed", "interrupted")
# A followed run is looked at so often even if nothing is announced.
LOOK_EVERY_S = 0.5


def synchronize_once(config: Config, *, by: str, on_progress: Callable[[str], None]) -> SyncRun:
    """Run once and return the ended run.

    Nobody else leads: this process does, for one run. A worker leads: it is triggered and followed; should
    it end before it came to it, this process takes its place.

    Args:
        config: the settings.
        by: who asks.
        on_progress: told each sentence of the run's log.
    """
    name = worker_name()
    name_connections(name)
    with Leadership(config.steve_source, name) as leadership:
        leadership.connect(PROGRESS)
        if leadership.try_lead():
            return _lead_once(config, name, leadership, by, on_progress)
        requested = request_run(config.steve_source, trigger="command", requested_by=by)
        on_progress(requested.says)
        said = 0
        while (run := SyncRun.objects.get(pk=requested.run_id)).status not in FINISHED:
            said = _repeat(run, said, on_progress)
            if leadership.try_lead():
                return _lead_once(config, name, leadership, by, on_progress)
            leadership.wait(LOOK_EVERY_S)
        _repeat(run, said, on_progress)
        return run


def _lead_once(
    config: Config, name: str, leadership: Leadership, by: str, on_progress: Callable[[str], None]
) -> SyncRun:
    """Carry out one run as the leader: the one that waits, or one of its own."""
    source = config.steve_source
    heartbeat = Heartbeat(source, name, WorkerKind.COMMAND)
    heartbeat.lead(leadership.backend_pid)
    heartbeat.start()
    try:
        end_abandoned_runs(source)
        waiting = SyncRun.objects.filter(source_id=source, status="requested").first()
        run_id = (
            waiting.pk
            if waiting is not None
            else request_run(source, trigger="command", requested_by=by).run_id
        )
        with leader_transaction(name):
            run = begin_run(run_id, source=source, trigger="command", requested_by=by, worker=name)
        assert run is not None  # noqa: S101 - only the leader begins runs, and that is us
        return carry_out(config, run, RunJournal(run, on_progress))
    except KeyboardInterrupt:
        end_abandoned_runs(source, why="Stopped at the terminal; the next run completes it.", worker=name)
        raise
    except DATABASE_GONE as error:
        _say_what_cut_it_off(source, name, error)
        raise
    finally:
        heartbeat.stop()


def _say_what_cut_it_off(source: str, name: str, error: Exception) -> None:
    """Write it into the run, as far as the database takes that: on a full disk, what is there may be changed.

    Else the next leader ends the run, and says only that the process ended.
    """
    connection.close()
    with suppress(*DATABASE_GONE):
        end_abandoned_runs(source, why=f"{why_away(error)} The next run completes this one.", worker=name)


def _repeat(run: SyncRun, said: int, on_progress: Callable[[str], None]) -> int:
    """Repeat what a run's log says after a line; returns the last line."""
    for line in SyncLog.objects.filter(run=run, pk__gt=said):
        said = line.pk
        on_progress(line.message)
    return said
