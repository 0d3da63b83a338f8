"""Sync now: ask the worker for a run, and say honestly what will happen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.models import Role
from ocpp_billing.portal.access import needs, person
from ocpp_billing.sync.triggers import request_run

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


def ask_for_run(request: HttpRequest) -> str:
    """Have what this person just changed decided at once; returns what will happen, in a sentence."""
    return request_run(
        settings.CONFIG.steve_source, trigger="manual", requested_by=person(request).email
    ).says


@require_POST
@needs(Role.OPERATOR)
def sync_now(request: HttpRequest) -> HttpResponse:
    """Request a run; operators and admins only."""
    user = person(request)
    with transaction.atomic():
        requested = request_run(settings.CONFIG.steve_source, trigger="manual", requested_by=user.email)
        record("sync.requested", user=user, target=f"run {requested.run_id}", request=request)
    if request.headers.get("HX-Request") == "true":
        return render(request, "portal/parts/sync_says.html", {"requested": requested})
    level = messages.WARNING if requested.status == "no worker" else messages.SUCCESS
    messages.add_message(request, level, requested.says)
    return redirect("portal:run", requested.run_id)
