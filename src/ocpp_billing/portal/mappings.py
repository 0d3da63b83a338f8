"""The list of mappings, what waits for one, the file of all, and what their fields can be filled with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role
from ocpp_billing.api.pages import csv_file
from ocpp_billing.billing.customers import search_customers
from ocpp_billing.charging.mask import SHOWN
from ocpp_billing.mappings.csv import mapping_lines
from ocpp_billing.mappings.listing import MappingFilter, count_by_standing, list_mappings
from ocpp_billing.mappings.tags import list_tags, total_waiting
from ocpp_billing.portal.access import needs, person
from ocpp_billing.portal.paging import read_page
from ocpp_billing.portal.queries import midnight

if TYPE_CHECKING:
    from datetime import datetime

    from django.http import HttpRequest, HttpResponse
    from django.http.response import HttpResponseBase

    from ocpp_billing.mappings.tags import TagRow

WAITING_SHOWN, WAITING_MOST = 8, 500
OPTIONS = 20

# What ?show= may be, and the standings that it means.
SHOWN_BY_CHOICE: dict[str, tuple[str, ...]] = {
    "current": ("active", "off", "future"),
    "active": ("active",),
    "off": ("off",),
    "future": ("future",),
    "ended": ("ended",),
    "unverified": (),
    "all": (),
}
CHOICES = {
    "current": gettext_lazy("Current"),
    "active": gettext_lazy("Active"),
    "off": gettext_lazy("Switched off"),
    "future": gettext_lazy("Beginning later"),
    "ended": gettext_lazy("Ended"),
    "unverified": gettext_lazy("Not verified"),
    "all": gettext_lazy("All"),
}


def month_start(now: datetime) -> datetime:
    """The first instant of the organisation's present month."""
    return midnight(timezone.localtime(now).date().replace(day=1), settings.CONFIG.timezone)


def chosen_filter(request: HttpRequest, now: datetime) -> MappingFilter:
    """What the address asks for; what it does not say is the search for current ones."""
    show = request.GET.get("show", "current")
    return MappingFilter(
        source=settings.CONFIG.steve_source,
        now=now,
        month_from=month_start(now),
        search=request.GET.get("q", ""),
        whole_tags=person(request).is_operator,
        stands=SHOWN_BY_CHOICE.get(show, SHOWN_BY_CHOICE["current"]),
        verified=False if show == "unverified" else None,
        customer=request.GET.get("customer"),
    )


@require_GET
@never_cache
def mappings(request: HttpRequest) -> HttpResponse:
    """Who pays for which tag; above it the tags whose sessions nobody pays for."""
    now, source = clock.now(), settings.CONFIG.steve_source
    chosen = chosen_filter(request, now)
    page = read_page(
        request,
        "mapping",
        lambda before, limit: list_mappings(chosen, before=before, limit=limit),
        lambda row: row.mapping_id,
    )
    all_waiting = request.GET.get("waiting") == "all"
    return render(
        request,
        "portal/mappings.html",
        {
            "page": page,
            "counts": count_by_standing(source, now),
            "choices": CHOICES,
            "show": request.GET.get("show") if request.GET.get("show") in CHOICES else "current",
            "waiting": _waiting(chosen, WAITING_MOST if all_waiting else WAITING_SHOWN) if page.first else [],
            "all_waiting": all_waiting,
            "waiting_total": total_waiting(source),
            "filtered": bool(chosen.search.strip() or chosen.customer),
            "month": timezone.localtime(now),
        },
    )


def _waiting(chosen: MappingFilter, limit: int) -> list[TagRow]:
    search = chosen.search.strip()
    if search and not chosen.whole_tags and len(search) != SHOWN:
        return []
    return list_tags(
        chosen.source,
        chosen.now,
        search=search if chosen.whole_tags else None,
        end=search if search and not chosen.whole_tags else None,
        unmapped=True,
        limit=limit,
    )


@require_GET
@never_cache
def export(request: HttpRequest) -> HttpResponseBase:
    """All mappings as a file that the import reads; viewers see the end of each tag, and no notes."""
    user = person(request)
    lines = mapping_lines(settings.CONFIG.steve_source, whole_tags=user.is_operator)
    return csv_file(request, f"mappings-{timezone.localtime(clock.now()):%Y-%m-%d}.csv", lines)


@needs(Role.OPERATOR)
@require_GET
@never_cache
def tag_options(request: HttpRequest) -> HttpResponse:
    """Tags to choose from while somebody types: ``?tag=``."""
    rows = list_tags(
        settings.CONFIG.steve_source, clock.now(), search=request.GET.get("tag", "").strip(), limit=OPTIONS
    )
    return render(request, "portal/parts/tag_options.html", {"rows": rows, "most": OPTIONS})


@needs(Role.OPERATOR)
@require_GET
@never_cache
def customer_options(request: HttpRequest) -> HttpResponse:
    """Lago's customers to choose from while somebody types: ``?customer=``."""
    found = search_customers(settings.CONFIG, request.GET.get("customer", ""), limit=OPTIONS)
    return render(request, "portal/parts/customer_options.html", {"found": found, "most": OPTIONS})
