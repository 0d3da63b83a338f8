"""The dashboard: is every watt-hour accounted for, and what needs a person?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET
from django.views.decorators.vary import vary_on_headers

from ocpp_billing import clock
from ocpp_billing.billing.balance import counted_balance, last_proof
from ocpp_billing.portal import charts, queries, wording
from ocpp_billing.portal.live import current_mark, draw_live
from ocpp_billing.portal.run_words import describe
from ocpp_billing.portal.setup import read_progress

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.billing.balance import Balance

CHART_DAYS = 30
CHART_HEIGHT_PX = 180
RECENT_RUNS = 6


def _state_rows(balance: Balance) -> list[dict[str, Any]]:
    return [{"words": words, "amount": balance.states[state]} for state, words in wording.STATES.items()]


def _attention_rows(source: str, balance: Balance) -> list[dict[str, Any]]:
    return [
        {
            "group": group,
            "words": wording.of_reason(group.state, group.reason),
            "state": wording.STATES[group.state],
        }
        for group in queries.attention_groups(source, balance)
    ]


@require_GET
@never_cache
@vary_on_headers("HX-Request")
def dashboard(request: HttpRequest) -> HttpResponse:
    """The page; for htmx, only its live part."""
    source, now, zone = settings.CONFIG.steve_source, clock.now(), settings.CONFIG.timezone
    # Before anything is read: what changes meanwhile is announced, at worst once too often.
    mark = current_mark(source)
    balance, proof = counted_balance(source), last_proof(source)
    mapped = queries.count_mappings(source, now)
    today, week = queries.today_and_week(source, now, zone)
    days, energies_wh = queries.energy_by_day(source, now, zone, CHART_DAYS)
    context = {
        "mark": mark,
        "now": now,
        "monday": queries.monday(now, zone),
        "balance": balance,
        "proved_at": proof.proved_at if proof else None,
        "accounted_for": not balance.unexplained.sessions and not balance.unexplained.energy_wh,
        "states": _state_rows(balance),
        "bar": charts.stack({state: balance.states[state].energy_wh for state in wording.STATES}),
        "attention": _attention_rows(source, balance),
        "today": today,
        "week": week,
        "mappings": mapped,
        "chart": charts.day_chart(days, energies_wh, list(wording.STATES), CHART_HEIGHT_PX),
        "runs": [describe(run) for run in queries.recent_runs(source, RECENT_RUNS)],
        "progress": read_progress(settings.CONFIG, mapped.total),
    }
    return draw_live(request, "dashboard", context)
