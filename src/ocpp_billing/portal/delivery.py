"""Whether anything is sent to Lago: going live after a preview, pausing, resuming."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.shortcuts import redirect, render
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role
from ocpp_billing.billing import control
from ocpp_billing.billing.balance import Amount, counted_balance
from ocpp_billing.config import parse_instant
from ocpp_billing.local_time import day_and_time
from ocpp_billing.portal.access import needs, person
from ocpp_billing.portal.banners import who_paused
from ocpp_billing.portal.days import validate_day
from ocpp_billing.portal.sync_now import ask_for_run

if TYPE_CHECKING:
    from datetime import datetime

    from django.http import HttpRequest, HttpResponse


class GoLiveForm(forms.Form):
    """From when on sessions are billed: a date, or a date and time, in the organisation's zone."""

    live_from = forms.DateTimeField(
        label=gettext_lazy("Bill sessions that stopped at or after"),
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        input_formats=["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"],
        error_messages={"invalid": gettext_lazy("Enter a date and a time, such as 2026-12-01T00:00.")},
        validators=[validate_day],
    )


class PauseForm(forms.Form):
    """Why it is paused, for the others."""

    reason = forms.CharField(
        label=gettext_lazy("Why"),
        max_length=500,
        help_text=gettext_lazy("Shown to everybody in the banner, until it is resumed."),
    )


def _offers(now: datetime) -> list[dict[str, Any]]:
    """Instants that people usually mean; none is chosen for them."""
    zone = settings.CONFIG.timezone
    today = now.astimezone(zone).date()
    month = today.replace(day=1)
    following = (
        (month.replace(year=month.year + 1, month=1))
        if month.month == 12
        else month.replace(month=month.month + 1)
    )
    return [
        {"words": words, "value": f"{parse_instant(day.isoformat(), zone).astimezone(zone):%Y-%m-%dT%H:%M}"}
        for words, day in (
            (_("the beginning of this month"), month),
            (_("today, 00:00"), today),
            (_("the beginning of next month"), following),
        )
    ]


@never_cache
@require_http_methods(["GET", "POST"])
@needs(Role.ADMIN)
def go_live(request: HttpRequest) -> HttpResponse:
    """Choose the instant, look at what it would bill, then do it.

    The instant is in the address, so the preview can be sent to somebody else to look at.
    """
    if control.read_status(settings.CONFIG).mode != "shadow":
        messages.info(request, _("Billing is live already."))
        return redirect("portal:setup")
    given = request.POST if request.method == "POST" else request.GET
    form = GoLiveForm(given) if "live_from" in given else GoLiveForm()
    context: dict[str, Any] = {"form": form, "offers": _offers(clock.now())}
    if form.is_bound and form.is_valid():
        live_from = form.cleaned_data["live_from"]
        if request.method == "POST":
            return _go_live(request, live_from)
        context |= _preview(live_from)
    return render(request, "portal/go_live.html", context, status=400 if form.errors else 200)


def _preview(live_from: datetime) -> dict[str, Any]:
    config = settings.CONFIG
    lines = control.preview_go_live(config, live_from)
    return {
        "live_from": live_from,
        "lines": lines,
        "sent": Amount(sum(line.sessions for line in lines), sum(line.energy_wh for line in lines)),
        "unbilled": control.preview_unbilled(config, live_from),
    }


def _go_live(request: HttpRequest, live_from: datetime) -> HttpResponse:
    user = person(request)
    try:
        control.go_live(settings.CONFIG, live_from, by=user.email, user=user)
    except control.ControlError as error:
        messages.error(request, str(error))
        return redirect("portal:setup")
    messages.success(
        request,
        _("Billing is live: sessions that stopped at or after %(at)s are sent.")
        % {"at": day_and_time(live_from)}
        + f" {ask_for_run(request)}",
    )
    return redirect("portal:dashboard")


@never_cache
@require_http_methods(["GET", "POST"])
@needs(Role.OPERATOR)
def pause(request: HttpRequest) -> HttpResponse:
    """Stop sending, with the reason; whoever maps and reviews may do it, for stopping loses nothing."""
    status = control.read_status(settings.CONFIG)
    if status.mode == "shadow":
        messages.info(request, _("Nothing is sent before going live: there is nothing to pause."))
        return redirect("portal:setup")
    if status.paused_by not in {None, control.BY_ITSELF}:
        messages.info(
            request, _("Delivery is paused already, by %(who)s.") % {"who": who_paused(status.paused_by)}
        )
        return redirect("portal:setup")
    form = PauseForm(request.POST or None)
    if form.is_valid():
        user = person(request)
        control.pause(settings.CONFIG, by=user.email, reason=form.cleaned_data["reason"], user=user)
        messages.success(request, _("Delivery is paused. What is queued stays queued; nothing is lost."))
        return redirect("portal:setup")
    return render(request, "portal/pause.html", {"form": form}, status=400 if form.errors else 200)


@never_cache
@require_http_methods(["GET", "POST"])
@needs(Role.ADMIN)
def resume(request: HttpRequest) -> HttpResponse:
    """Send again, after a look at what stopped it and what is sent then."""
    config, status = settings.CONFIG, control.read_status(settings.CONFIG)
    if status.paused_at is None:
        messages.info(request, _("Delivery is not paused any more."))
        return redirect("portal:setup")
    if request.method == "POST":
        user = person(request)
        seen = dataclasses.replace(
            status,
            paused_at=parse_datetime(request.POST.get("paused_at", "")),
            pause_reason=request.POST.get("reason"),
        )
        try:
            if control.resume(config, by=user.email, user=user, seen=seen):
                messages.success(request, _("Delivery goes on.") + f" {ask_for_run(request)}")
            else:
                messages.info(request, _("Delivery is not paused any more."))
        except control.ControlError as error:
            messages.error(request, str(error))
            return redirect("portal:resume")
        return redirect("portal:setup")
    queued = counted_balance(config.steve_source).states["queued"]
    by_itself = status.paused_by == control.BY_ITSELF
    return render(
        request,
        "portal/resume.html",
        {
            "delivery": status,
            "queued": queued,
            "by_itself": by_itself,
            "paused_by": who_paused(status.paused_by),
        },
    )
