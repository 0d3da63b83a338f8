"""Usage events: what we owe or gave to Lago."""

from typing import Any

from django.conf import settings
from django.http import Http404
from ninja import Query, Router

from ocpp_billing.accounts.models import Role
from ocpp_billing.api.auth import ApiRequest, Caller, allow
from ocpp_billing.api.ledger import chosen_by, event_detail, event_json, event_lines
from ocpp_billing.api.pages import (
    CSV_TOO,
    csv_file,
    cut_page,
    decode_cursor,
    wants_csv,
)
from ocpp_billing.api.queries import EventQuery
from ocpp_billing.api.schemas import (
    BillingEventDetail,
    BillingEventPage,
    Id,
)
from ocpp_billing.billing import review
from ocpp_billing.billing.listing import LedgerFilter, all_events, list_events, total_events
from ocpp_billing.billing.models import UsageEvent

router = Router(tags=["Billing events"])


@router.get("", response=BillingEventPage, auth=allow(Role.VIEWER), openapi_extra=CSV_TOO)
def find_events(
    request: ApiRequest,
    query: Query[EventQuery],
) -> Any:
    """Usage events, newest first, as JSON pages or a CSV file of all. Their date is the one Lago sees."""
    chosen = chosen_by(query, request.auth)
    caller = request.auth
    if wants_csv(request, query.format):
        return csv_file(request, "billing-events.csv", event_lines(all_events(chosen), caller))
    before = decode_cursor("event", query.cursor)
    rows = list_events(chosen, before=before, limit=query.limit + 1)
    page, following = cut_page(rows, query.limit, "event", lambda row: row.event_id)
    totals = total_events(chosen)._asdict() if before is None else None
    return {"items": [event_json(row, caller) for row in page], "next": following, "totals": totals}


@router.get("/{event_id}", response=BillingEventDetail, auth=allow(Role.VIEWER))
def get_event(request: ApiRequest, event_id: Id) -> Any:
    """A usage event with the exact payload and Lago's last words."""
    return _detail(event_id, request.auth)


@router.post("/{event_id}/retry", response=BillingEventDetail, auth=allow(Role.OPERATOR))
def retry_event(request: ApiRequest, event_id: Id) -> Any:
    """Send a rejected event once more, after its cause was mended in Lago."""
    _detail(event_id, request.auth)
    review.retry_rejected(event_id, by=request.auth.name, user=request.auth.user)
    return _detail(event_id, request.auth)


def _detail(event_id: int, caller: Caller) -> dict[str, Any]:
    rows = list_events(LedgerFilter(source=settings.CONFIG.steve_source, event_id=event_id))
    if not rows:
        raise Http404(f"There is no usage event {event_id}. The id is ours: see /api/billing-events.")
    return event_detail(rows[0], UsageEvent.objects.get(pk=event_id), caller)
