"""One synchronization in the foreground: ``ocpp-billing sync``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing import clock
from ocpp_billing.sync.journal import RunJournal, begin_run, end_abandoned_runs
from ocpp_billing.sync.leadership import Leadership
from ocpp_billing.sync.models import SyncLog, SyncRun
from ocpp_billing.sync.triggers import request_run
from ocpp_billing.sync.worker import carry_out, worker_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocpp_billing.config import Config

FINISHED = ("completed", "partial", "failed", "interrupted")
# A followed run is looked at so often even if no announcement arrives.
LOOK_EVERY_S = 0.5


def synchronize_once(config: Config, *, by: str, on_progress: Callable[[str], None]) -> SyncRun:
    """Run once and return the ended run.

    Nobody else leads: this process does, for one run. A worker leads: it is triggered and followed.

    Args:
        config: the settings.
        by: who asks.
        on_progress: told each sentence of the run's log.
    """
    source = config.steve_source
    with Leadership(source) as leadership:
        leadership.connect()
        if leadership.try_lead():
            end_abandoned_runs(source)
            waiting = SyncRun.objects.filter(source_id=source, status="requested").first()
            request = None if waiting is None else waiting.pk
            if request is None:
                request = request_run(source, trigger="command", requested_by=by).run_id
            run = begin_run(request, source=source, trigger="command", requested_by=by, worker=worker_name())
            assert run is not None  # noqa: S101 - only the leader begins runs, and that is us
            return carry_out(config, run, RunJournal(run, on_progress))
        requested = request_run(source, trigger="command", requested_by=by)
        on_progress(requested.says)
        return _follow(requested.run_id, leadership, on_progress)


def _follow(run_id: int, leadership: Leadership, on_progress: Callable[[str], None]) -> SyncRun:
    """Wait for a run of another process to end, repeating what its log says."""
    said = 0
    while True:
        run = SyncRun.objects.get(pk=run_id)
        for line in SyncLog.objects.filter(run_id=run_id, pk__gt=said):
            said = line.pk
            on_progress(line.message)
        if run.status in FINISHED:
            return run
        for _ in leadership.wait(LOOK_EVERY_S):
            clock.sleep(0)
