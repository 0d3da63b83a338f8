"""Billing events: every synchronized transaction, what became of its energy, and what it all comes to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ocpp_billing import clock
from ocpp_billing.api.ledger import end_of_tag
from ocpp_billing.api.pages import csv_file
from ocpp_billing.billing.balance import counted_balance
from ocpp_billing.billing.listing import LedgerFilter
from ocpp_billing.billing.parts import all_parted, list_parted, total_parts
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.portal import wording
from ocpp_billing.portal.access import caller
from ocpp_billing.portal.days import day_field
from ocpp_billing.portal.paging import Page, read_page
from ocpp_billing.portal.parts_csv import part_lines
from ocpp_billing.portal.queries import midnight

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

    from ocpp_billing.api.auth import Caller
    from ocpp_billing.billing.parts import PartedSession, PartTotals

ROWS = 50
OFFERED_CUSTOMERS = 300
FURTHER = ("subscription", "charge_box")
FIELDS = ("from", "to", "state", "reason", "customer", "subscription", "tag", "charge_box")


def _text(label: Any, **attrs: str) -> forms.CharField:
    given = {"autocomplete": "off", "spellcheck": "false", **attrs}
    return forms.CharField(label=label, required=False, max_length=255, widget=forms.TextInput(attrs=given))


class EventFilter(forms.Form):
    """What the address asks for. Days are those of the organisation's zone; ``to`` is included."""

    state = forms.ChoiceField(
        label=gettext_lazy("State"),
        required=False,
        choices=[("", gettext_lazy("All")), *((code, words.label) for code, words in wording.STATES.items())],
    )
    reason = forms.ChoiceField(label=gettext_lazy("Reason"), required=False)
    customer = _text(gettext_lazy("Customer"), list="customers")
    tag = _text(gettext_lazy("Tag"))
    subscription = _text(gettext_lazy("Subscription"))
    charge_box = _text(gettext_lazy("Charge box"))

    def __init__(self, data: Any, *, reasons: list[str], whole_tags: bool) -> None:
        super().__init__(data)
        self.fields["from"] = day_field(gettext_lazy("Stopped from"))  # no name of Python's
        self.fields["to"] = day_field(gettext_lazy("to"))
        self.order_fields(FIELDS)
        chosen = self.data.get("reason", "")
        codes = sorted({*reasons, chosen} - {""}, key=_reason_label)
        self.fields["reason"].choices = [  # type: ignore[attr-defined]
            ("", _("All")),
            *((code, _reason_label(code)) for code in codes),
        ]
        if not whole_tags:
            self.fields["tag"].label = _("Tag, last 4 characters")

    def clean(self) -> dict[str, Any]:
        """Days in their order."""
        given: dict[str, Any] = super().clean() or {}
        since, until = given.get("from"), given.get("to")
        if since is not None and until is not None and until < since:
            self.add_error("to", _("This lies before the first day."))
        return given

    @property
    def first(self) -> list[forms.BoundField]:
        """What is asked for often."""
        return [self[name] for name in FIELDS if name not in FURTHER]

    @property
    def further(self) -> list[forms.BoundField]:
        """What is folded away."""
        return [self[name] for name in FURTHER]

    def chosen(self, who: Caller) -> LedgerFilter:
        """As the ledger is asked; only of a valid form."""
        given, zone = self.cleaned_data, settings.CONFIG.timezone
        since, until, tag = given["from"], given["to"], given["tag"] or None
        return LedgerFilter(
            source=settings.CONFIG.steve_source,
            since=None if since is None else midnight(since, zone),
            until=None if until is None else midnight(until + timedelta(days=1), zone),
            states=[given["state"]] if given["state"] else [],
            reason=given["reason"] or None,
            customer=given["customer"] or None,
            subscription=given["subscription"] or None,
            charge_box=given["charge_box"] or None,
            id_tag=tag if who.sees_tags else None,
            id_tag_end=end_of_tag(tag) if tag is not None and not who.sees_tags else None,
        )


def _reason_label(code: str) -> str:
    words = wording.REASONS.get(code)
    return code if words is None else str(words.label)


@dataclass(frozen=True, slots=True)
class QuickRange:
    """A range to choose by one click; days as in the address, empty = no limit."""

    label: str
    first: str
    last: str


def quick_ranges(today: date) -> list[QuickRange]:
    """All, today, this week (since Monday), this month, last month."""
    month = today.replace(day=1)
    month_end = (month + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    before = month - timedelta(days=1)
    week = today - timedelta(days=today.weekday())
    return [
        QuickRange(_("All"), "", ""),
        QuickRange(_("Today"), today.isoformat(), today.isoformat()),
        QuickRange(_("This week"), week.isoformat(), (week + timedelta(days=6)).isoformat()),
        QuickRange(_("This month"), month.isoformat(), month_end.isoformat()),
        QuickRange(_("Last month"), before.replace(day=1).isoformat(), before.isoformat()),
    ]


@require_GET
@never_cache
def events(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """The list and its totals; with ``format=csv`` all of the filter as a file."""
    who = caller(request)
    source = settings.CONFIG.steve_source
    parts = counted_balance(source).parts
    reasons = [reason for (_state, reason), amount in parts.items() if reason and amount]
    form = EventFilter(request.GET, reasons=reasons, whole_tags=who.sees_tags)
    if not form.is_valid():
        nothing: dict[str, Any] = {"page": Page([], None, first=True), "totals": None}
        return render(request, "portal/billing_events.html", _frame(request, form) | nothing, status=400)
    chosen = form.chosen(who)
    if request.GET.get("format") == "csv":
        days = [form.cleaned_data[name].isoformat() for name in ("from", "to") if form.cleaned_data[name]]
        name = "-".join(["billing-events", *days])
        return csv_file(request, f"{name}.csv", part_lines(all_parted(chosen), chosen, who))
    page = read_page(
        request,
        "session",
        lambda before, limit: list_parted(chosen, before=before, limit=limit),
        lambda row: row.session.session_id,
        size=ROWS,
    )
    totals = total_parts(chosen)
    names = _names(page.rows)
    context = {
        "page": Page([_row(parted, names) for parted in page.rows], page.next, page.first),
        "totals": totals,
        "states": _state_totals(totals),
        "by_parts": totals.read is None,
    }
    return render(request, "portal/billing_events.html", _frame(request, form) | context)


def _frame(request: HttpRequest, form: EventFilter) -> dict[str, Any]:
    today = clock.now().astimezone(settings.CONFIG.timezone).date()
    ranges = quick_ranges(today)
    first, last = request.GET.get("from", ""), request.GET.get("to", "")
    return {
        "form": form,
        "ranges": ranges,
        "range": next((each for each in ranges if (each.first, each.last) == (first, last)), None),
        "last_month": ranges[-1],
        "filtered": any(request.GET.get(name) for name in FIELDS),
        "more": any(request.GET.get(name) for name in FURTHER),
        "customers": LagoCustomer.objects.order_by("name")[:OFFERED_CUSTOMERS],
        "cleared": reverse("portal:events"),
    }


def _names(rows: list[PartedSession]) -> dict[str, str]:
    ids = {part.customer for row in rows for part in row.parts} | {row.session.customer for row in rows}
    known = LagoCustomer.objects.filter(external_id__in=ids - {None})
    return {customer.external_id: customer.name for customer in known}


def _row(parted: PartedSession, names: dict[str, str]) -> dict[str, Any]:
    """One line: what matched, and how much that is of the whole session."""
    session, matching = parted.session, parted.matching
    energy_wh = sum(part.energy_wh for part in matching)
    whole_wh = sum(part.energy_wh for part in parted.parts)
    several = len(parted.parts) > 1
    return {
        "session": session,
        "parts": parted.parts if several else matching,
        "several": several,
        "energy_wh": energy_wh,
        "whole_wh": whole_wh if len(matching) < len(parted.parts) else None,
        "unknown": session.energy_wh is None,
        "negative_wh": session.energy_wh if (session.energy_wh or 0) < 0 else None,
        "customer": names.get(session.customer or "", session.customer),
        "reason": wording.of_reason(session.state, session.reason) if session.reason else None,
        "lasted": session.stopped_at - session.started_at
        if session.stopped_at and session.started_at and session.stopped_at >= session.started_at
        else None,
        "events": [part for part in parted.parts if part.event_id is not None],
    }


def _state_totals(totals: PartTotals) -> list[dict[str, Any]]:
    return [
        {"code": code, "amount": totals.states[code]} for code in wording.STATES if totals.states.get(code)
    ]
