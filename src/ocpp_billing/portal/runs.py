"""Synchronization: the history of runs, and one run with its steps, its errors and its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET
from django.views.decorators.vary import vary_on_headers

from ocpp_billing.portal.access import find_here
from ocpp_billing.portal.banners import alert_lines
from ocpp_billing.portal.live import current_mark, draw_live
from ocpp_billing.portal.paging import Page, read_page
from ocpp_billing.portal.queries import open_alerts
from ocpp_billing.portal.run_words import STEPS, describe, did
from ocpp_billing.sync.models import LANES, RunStatus, SyncLog, SyncRun, SyncStep

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse
    from django.utils.functional import Promise

    from ocpp_billing.portal.run_words import RunWords

RUNS_PER_PAGE = 50
LOG_LINES = 200

# What can be chosen above the list: code in the address, words, statuses, whether short runs count.
KINDS: dict[str, tuple[str | Promise, tuple[str, ...]]] = {
    "": (_("Full runs"), ()),
    "all": (_("With short runs"), ()),
    "trouble": (_("With errors"), (RunStatus.FAILED, RunStatus.PARTIAL, RunStatus.INTERRUPTED)),
}


@require_GET
@never_cache
@vary_on_headers("HX-Request")
def runs(request: HttpRequest) -> HttpResponse:
    """All runs, newest first; for htmx, only the live part."""
    source, kind = settings.CONFIG.steve_source, request.GET.get("show", "")
    kind = kind if kind in KINDS else ""
    mark = current_mark(source)

    def read(before: int | None, limit: int) -> list[RunWords]:
        chosen = SyncRun.objects.filter(source_id=source).order_by("-id")
        if statuses := KINDS[kind][1]:
            chosen = chosen.filter(status__in=statuses)
        elif not kind:
            chosen = chosen.exclude(trigger__in=LANES)
        if before is not None:
            chosen = chosen.filter(pk__lt=before)
        return [describe(run) for run in chosen[:limit]]

    page = read_page(request, "run", read, lambda row: row.run.pk, size=RUNS_PER_PAGE)
    return draw_live(
        request,
        "runs",
        {
            "mark": mark,
            "page": page,
            "alerts": alert_lines(open_alerts(source), "portal:runs"),
            "kind": kind,
            "kinds": [(code, words) for code, (words, _statuses) in KINDS.items()],
        },
    )


@require_GET
@never_cache
@vary_on_headers("HX-Request")
def run(request: HttpRequest, run_id: int) -> HttpResponse:
    """One run; while it goes on, it is drawn anew whenever it got on."""
    source = settings.CONFIG.steve_source
    mark = current_mark(source)
    missing = _("There is no run %(id)s: it may be too old to be kept.") % {"id": run_id}
    found = find_here(SyncRun.objects.all(), run_id, missing)
    steps = [_step(step) for step in found.steps.all()]
    return draw_live(
        request,
        "run",
        {
            "mark": mark,
            "row": describe(found),
            "steps": steps,
            "log": _log(request, found),
            "going": found.status in {RunStatus.RUNNING, RunStatus.REQUESTED},
        },
    )


def _step(step: SyncStep) -> dict[str, Any]:
    return {"step": step, "label": STEPS.get(step.name, step.name), "did": did(step.counts)}


def _log(request: HttpRequest, run: SyncRun) -> Page[SyncLog]:
    """What the run said, the newest first while it goes on, so that one sees it getting on."""

    def read(before: int | None, limit: int) -> list[SyncLog]:
        lines = SyncLog.objects.filter(run=run).order_by("-pk")
        if before is not None:
            lines = lines.filter(pk__lt=before)
        return list(lines[:limit])

    return read_page(request, "log", read, lambda line: line.pk, size=LOG_LINES)
