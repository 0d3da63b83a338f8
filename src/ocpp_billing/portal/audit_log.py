"""The audit log: who did what, to what, what changed, and from where. For admins."""

from __future__ import annotations

import json
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ocpp_billing.accounts.audit import find_entries
from ocpp_billing.accounts.models import Role, User
from ocpp_billing.api.pages import csv_file
from ocpp_billing.portal.access import needs
from ocpp_billing.portal.audit_words import ACTIONS, SUBJECTS, changes, target_words
from ocpp_billing.portal.days import day_field
from ocpp_billing.portal.paging import read_page
from ocpp_billing.spreadsheet import csv_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.models import QuerySet
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from ocpp_billing.accounts.models import AuditEntry
    from ocpp_billing.spreadsheet import Cell

CHUNK_ROWS = 1_000
COLUMNS = ["at", "who", "action", "target", "before", "after", "note", "address"]


class AuditFilter(forms.Form):
    """What the address says; everything is optional."""

    who = forms.CharField(label=gettext_lazy("Who"), max_length=254, required=False)
    action = forms.ChoiceField(label=gettext_lazy("What about"), required=False)
    target = forms.CharField(label=gettext_lazy("Which one"), max_length=200, required=False)
    since = day_field(gettext_lazy("From"))
    until = day_field(gettext_lazy("To"))

    def __init__(self, data: Any) -> None:
        # In the address they are called as everywhere: from and to.
        super().__init__(data)
        self.fields["action"].choices = [  # type: ignore[attr-defined]
            ("", _("Everything")),
            *SUBJECTS.items(),
            # One act, when the address names it: it can be linked to.
            *((code, words) for code, words in ACTIONS.items() if code == data.get("action")),
        ]

    def add_prefix(self, field_name: str) -> str:
        """The name in the address."""
        return {"since": "from", "until": "to"}.get(field_name, field_name)

    def entries(self) -> QuerySet[AuditEntry]:
        """What it lets through; a day that cannot be is left out, and said beside its field."""
        self.full_clean()
        given = self.cleaned_data
        since, until = given.get("since"), given.get("until")
        zone = settings.CONFIG.timezone
        return find_entries(
            who=given.get("who") or None,
            action=given.get("action") or None,
            mentions=given.get("target") or None,
            since=since and datetime.combine(since, time.min, zone),
            until=until and datetime.combine(until + timedelta(days=1), time.min, zone),
        )


@needs(Role.ADMIN)
@never_cache
@require_GET
def audit(request: HttpRequest) -> HttpResponseBase:
    """The list, newest first."""
    chosen = AuditFilter(request.GET)
    entries = chosen.entries()

    def read(after: int | None, limit: int) -> list[AuditEntry]:
        rows = entries if after is None else entries.filter(pk__lt=after)
        return list(rows[:limit])

    page = read_page(request, "audit", read, lambda entry: entry.pk)
    context = {
        "filter": chosen,
        "filtered": any(request.GET.get(name) for name in ("who", "action", "target", "from", "to")),
        "page": page,
        "rows": [
            {
                "entry": entry,
                "words": ACTIONS.get(entry.action, entry.action),
                "target": target_words(entry.target) if entry.target else "",
                "changes": changes(entry.before, entry.after),
            }
            for entry in page.rows
        ],
        "people": User.objects.order_by("email").values_list("email", flat=True)[:200],
    }
    return render(request, "portal/audit.html", context)


@needs(Role.ADMIN)
@require_GET
def audit_file(request: HttpRequest) -> HttpResponseBase:
    """All entries of the filter as CSV."""
    chosen = AuditFilter(request.GET)
    entries = chosen.entries()
    if not chosen.is_valid():
        return redirect(f"{request.path.removesuffix('.csv')}?{request.GET.urlencode()}")
    return csv_file(request, "audit-log.csv", csv_lines(COLUMNS, _rows(entries)))


def _rows(entries: QuerySet[AuditEntry]) -> Iterator[list[Cell]]:
    # By the number of the last row and not by a cursor of the database: each chunk has its own connection.
    last: int | None = None
    while rows := list((entries if last is None else entries.filter(pk__lt=last))[:CHUNK_ROWS]):
        for entry in rows:
            yield [
                entry.at,
                entry.actor,
                entry.action,
                entry.target,
                _json(entry.before),
                _json(entry.after),
                entry.note,
                entry.address,
            ]
        last = rows[-1].pk


def _json(facts: Any) -> str | None:
    return None if facts is None else json.dumps(facts, ensure_ascii=False)
