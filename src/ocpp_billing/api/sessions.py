"""Charging sessions: lists, files, and one with everything behind it; what waits for a person."""

from typing import Any

from django.conf import settings
from django.http import Http404
from ninja import Query, Router

from ocpp_billing.accounts.models import Role
from ocpp_billing.api.auth import ApiRequest, Caller, allow
from ocpp_billing.api.ledger import (
    chosen_by,
    event_detail,
    session_detail,
    session_json,
    session_lines,
)
from ocpp_billing.api.pages import (
    CSV_TOO,
    csv_file,
    cut_page,
    decode_cursor,
    wants_csv,
)
from ocpp_billing.api.queries import HeldQuery, Pages, SessionQuery
from ocpp_billing.api.schemas import (
    AcceptIn,
    AssignIn,
    ExcludeIn,
    Id,
    ReadingIn,
    Session,
    SessionDetail,
    SessionPage,
)
from ocpp_billing.billing import review
from ocpp_billing.billing.customers import verify_payer
from ocpp_billing.billing.listing import (
    LedgerFilter,
    all_sessions,
    list_events,
    list_sessions,
    total_sessions,
)
from ocpp_billing.charging.models import ChargingSession

router = Router(tags=["Sessions"])
held_router = Router(tags=["Held"])


@router.get("", response=SessionPage, auth=allow(Role.VIEWER), openapi_extra=CSV_TOO)
def find_sessions(
    request: ApiRequest,
    query: Query[SessionQuery],
) -> Any:
    """Sessions, the one that StEvE heard of last first, as JSON pages or a CSV file of all.

    A range is about when they stopped. The order never changes while sessions arrive or move on: whoever
    reads all pages sees each once.
    """
    chosen = chosen_by(query, request.auth)
    if wants_csv(request, query.format):
        return csv_file(request, "sessions.csv", session_lines(all_sessions(chosen), request.auth))
    return _page(chosen, request.auth, query)


@router.get("/{session_id}", response=SessionDetail, auth=allow(Role.VIEWER))
def get_session(request: ApiRequest, session_id: Id) -> Any:
    """A session: StEvE's row as read, every decision and order, every usage event with its payload."""
    return _detail(session_id, request.auth)


@held_router.get("", response=SessionPage, auth=allow(Role.VIEWER))
def list_held(
    request: ApiRequest,
    query: Query[HeldQuery],
) -> Any:
    """Sessions that wait for a person, newest first, with the reason in a code and in words (``says``)."""
    chosen = LedgerFilter(source=settings.CONFIG.steve_source, states=[query.state], reason=query.reason)
    return _page(chosen, request.auth, query)


@held_router.post("/{session_id}/accept", response=Session, auth=allow(Role.OPERATOR))
def accept(request: ApiRequest, session_id: Id, data: AcceptIn) -> Any:
    """Bill a held session although a rule holds it. It is decided anew in the next run."""
    review.accept(_known(session_id), note=data.note, by=request.auth.name, user=request.auth.user)
    return _one(session_id, request.auth)


@held_router.post("/{session_id}/exclude", response=Session, auth=allow(Role.OPERATOR))
def exclude(request: ApiRequest, session_id: Id, data: ExcludeIn) -> Any:
    """Never bill what is left of a session; say why."""
    review.exclude(_known(session_id), note=data.note, by=request.auth.name, user=request.auth.user)
    return _one(session_id, request.auth)


@held_router.post("/{session_id}/assign", response=Session, auth=allow(Role.OPERATOR))
def assign(request: ApiRequest, session_id: Id, data: AssignIn) -> Any:
    """Let a customer pay for this one session, whatever the mapping says.

    Lago is asked whether it knows the customer and the subscription; while it does not answer, the next run
    will see.
    """
    session_id = _known(session_id)
    verify_payer(settings.CONFIG, data.customer_id.strip(), (data.subscription_id or "").strip() or None)
    review.assign(
        session_id,
        customer=data.customer_id,
        subscription=data.subscription_id or None,
        note=data.note,
        by=request.auth.name,
        user=request.auth.user,
    )
    return _one(session_id, request.auth)


@held_router.post("/{session_id}/reading", response=Session, auth=allow(Role.OPERATOR))
def enter_reading(request: ApiRequest, session_id: Id, data: ReadingIn) -> Any:
    """Say what the meter showed at the end, where StEvE has no usable stop."""
    review.enter_reading(
        _known(session_id),
        stop_wh=data.stop_wh,
        stopped_at=data.stopped_at,
        note=data.note,
        by=request.auth.name,
        user=request.auth.user,
    )
    return _one(session_id, request.auth)


def _page(chosen: LedgerFilter, caller: Caller, query: Pages) -> dict[str, Any]:
    before = decode_cursor("session", query.cursor)
    rows = list_sessions(chosen, before=before, limit=query.limit + 1)
    page, following = cut_page(rows, query.limit, "session", lambda row: row.session_id)
    totals = total_sessions(chosen)._asdict() if before is None else None
    return {"items": [session_json(row, caller) for row in page], "next": following, "totals": totals}


def _known(session_id: int) -> int:
    source = settings.CONFIG.steve_source
    if not ChargingSession.objects.filter(pk=session_id, source_id=source).exists():
        raise Http404(f"There is no session {session_id}. The id is ours, not StEvE's: see /api/sessions.")
    return session_id


def _one(session_id: int, caller: Caller) -> dict[str, Any]:
    chosen = LedgerFilter(source=settings.CONFIG.steve_source, session_id=_known(session_id))
    return session_json(list_sessions(chosen)[0], caller)


def _detail(session_id: int, caller: Caller) -> dict[str, Any]:
    chosen = LedgerFilter(source=settings.CONFIG.steve_source, session_id=_known(session_id))
    session = ChargingSession.objects.get(pk=session_id)
    payloads = {event.pk: event for event in session.events.all()}
    events = [event_detail(row, payloads[row.event_id], caller) for row in list_events(chosen)]
    return session_detail(list_sessions(chosen)[0], session, events, caller)
