"""Synchronization: trigger a run, see whether all is well, look at what ran."""

from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import Http404
from ninja import Query, Router, Status

from ocpp_billing import clock
from ocpp_billing.accounts import audit
from ocpp_billing.accounts.models import Role
from ocpp_billing.api.auth import ApiRequest, allow
from ocpp_billing.api.pages import cut_page, decode_cursor, encode_cursor
from ocpp_billing.api.queries import Pages, RunQuery
from ocpp_billing.api.schemas import Id, LogPage, Run, RunDetail, RunPage, SyncStatus, Triggered
from ocpp_billing.billing import control
from ocpp_billing.sync.liveness import worker_alive
from ocpp_billing.sync.models import RunStatus, SyncLog, SyncRun
from ocpp_billing.sync.triggers import request_run

router = Router(tags=["Synchronization"])


@router.post("", response={202: Triggered}, auth=allow(Role.OPERATOR))
def trigger_sync(request: ApiRequest) -> Any:
    """Ask for a run.

    The answer says which of three will happen: it starts now, it waits for the run that is going on, or it
    waits for a worker. No trigger is lost, and however many come while one waits, one run answers them.
    """
    caller = request.auth
    with transaction.atomic():
        requested = request_run(settings.CONFIG.steve_source, trigger="api", requested_by=caller.name)
        audit.record("sync.requested", user=caller.user, actor=caller.name, target=f"run {requested.run_id}")
    run = SyncRun.objects.get(pk=requested.run_id)
    outcome = requested.status.replace(" ", "_")
    return Status(202, {"run": _run(run), "outcome": outcome, "message": requested.says})


@router.get("/status", response=SyncStatus, auth=allow(Role.VIEWER))
def sync_status(request: ApiRequest) -> Any:  # noqa: ARG001 - ninja's signature
    """Is a worker alive, how fresh is the ledger, when is the next run, is anything sent?"""
    source = settings.CONFIG.steve_source
    worker = worker_alive(source, clock.now())
    delivery = control.read_status(settings.CONFIG)
    runs = SyncRun.objects.filter(source_id=source)
    return {
        "worker_alive": worker.alive,
        "worker_seen_at": worker.seen_at,
        "next_run_at": worker.next_run_at,
        "last_completed_at": worker.last_completed,
        "running": _run(runs.filter(status=RunStatus.RUNNING).first()),
        "requested": _run(runs.filter(status=RunStatus.REQUESTED).first()),
        "last": _run(
            runs.exclude(status__in=[RunStatus.RUNNING, RunStatus.REQUESTED]).order_by("-id").first()
        ),
        "delivery": {
            "mode": delivery.mode,
            "live_from": delivery.live_from,
            "paused_at": delivery.paused_at,
            "paused_by": delivery.paused_by,
            "pause_reason": delivery.pause_reason,
        },
    }


@router.get("/runs", response=RunPage, auth=allow(Role.VIEWER))
def list_runs(
    request: ApiRequest,  # noqa: ARG001 - ninja's signature
    query: Query[RunQuery],
) -> Any:
    """Runs, newest first."""
    runs = SyncRun.objects.filter(source_id=settings.CONFIG.steve_source).order_by("-id")
    if query.status is not None:
        runs = runs.filter(status=query.status)
    before = decode_cursor("run", query.cursor)
    if before is not None:
        runs = runs.filter(pk__lt=before)
    page, following = cut_page(list(runs[: query.limit + 1]), query.limit, "run", lambda run: run.pk)
    return {"items": [_run(run) for run in page], "next": following}


@router.get("/runs/{run_id}", response=RunDetail, auth=allow(Role.VIEWER))
def get_run(request: ApiRequest, run_id: Id) -> Any:  # noqa: ARG001 - ninja's signature
    """A run with its steps."""
    run = _find(run_id)
    return {**(_run(run) or {}), "steps": list(run.steps.all())}


@router.get("/runs/{run_id}/log", response=LogPage, auth=allow(Role.VIEWER))
def get_run_log(
    request: ApiRequest,  # noqa: ARG001 - ninja's signature
    run_id: Id,
    query: Query[Pages],
) -> Any:
    """What a run said, oldest first.

    While the run goes on, ``next`` is there even when the page is not full: ask again with it to follow.
    """
    run = _find(run_id)
    after = decode_cursor("log", query.cursor) or 0
    lines = list(SyncLog.objects.filter(run=run, pk__gt=after).order_by("pk")[: query.limit + 1])
    page, following = cut_page(lines, query.limit, "log", lambda line: line.pk)
    if following is None and run.status in {RunStatus.RUNNING, RunStatus.REQUESTED}:
        following = encode_cursor("log", page[-1].pk if page else after)
    return {"items": page, "next": following}


def _find(run_id: int) -> SyncRun:
    run = SyncRun.objects.filter(source_id=settings.CONFIG.steve_source, pk=run_id).first()
    if run is None:
        raise Http404(f"There is no run {run_id}: it may be too old to be kept.")
    return run


def _run(run: SyncRun | None) -> dict[str, Any] | None:
    if run is None:
        return None
    ended = run.started_at is not None and run.ended_at is not None
    return {
        **{name: getattr(run, name) for name in Run.model_fields if name not in {"id", "duration_s"}},
        "id": run.pk,
        "duration_s": round((run.ended_at - run.started_at).total_seconds(), 3) if ended else None,  # type: ignore[operator]  # both are there
    }
