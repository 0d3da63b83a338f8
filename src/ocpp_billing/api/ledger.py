"""Sessions and usage events as the API shows them: to pages, to files, and in full."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from django.conf import settings

from ocpp_billing.api.auth import Caller
from ocpp_billing.api.queries import EventQuery, SessionQuery
from ocpp_billing.billing.listing import EventRow, LedgerFilter, SessionRow
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.mask import IDENTITY_IN_DOUBT, SHOWN
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.spreadsheet import csv_lines

SESSION_COLUMNS = [
    *("id", "steve_id", "charge_box_id", "connector_id", "id_tag", "started_at", "stopped_at", "start_wh"),
    *("stop_wh", "energy_wh", "energy_kwh", "state", "reason", "says", "customer_id", "subscription_id"),
    *("vanished_at", "superseded_at"),
]
EVENT_COLUMNS = [
    *("id", "transaction_id", "lago_event_id", "steve_id", "kind", "state", "reason", "customer_id"),
    *("subscription_id", "metric_code", "energy_wh", "energy_kwh", "timestamp", "charge_box_id"),
    *("connector_id", "id_tag", "started_at", "stopped_at", "accepted_at", "confirmed_at"),
]


def chosen_by(query: SessionQuery | EventQuery, caller: Caller) -> LedgerFilter:
    """The sessions or usage events that a query asks for, of the configured StEvE.

    By tag a caller may look for the whole one, or for its last four characters: a viewer who asks for more
    or less than four finds nothing, else a tag could be found out bit by bit.
    """
    tag = query.tag
    return LedgerFilter(
        source=settings.CONFIG.steve_source,
        since=query.since,
        until=query.until,
        states=query.state,
        reason=query.reason,
        customer=query.customer,
        subscription=query.subscription,
        id_tag=tag if caller.sees_tags else None,
        id_tag_end=end_of_tag(tag) if tag is not None and not caller.sees_tags else None,
        charge_box=query.charge_box,
        steve_id=query.steve_id,
    )


def end_of_tag(tag: str) -> str:
    """What a viewer who looks for this tag may look for: its last four characters, or nothing."""
    return tag if len(tag) == SHOWN else "-----"


def session_json(row: SessionRow, caller: Caller) -> dict[str, Any]:
    """A session for a list."""
    shown = row._asdict()
    tag = shown["id_tag"]
    return {
        **shown,
        "id": shown.pop("session_id"),
        "id_tag": caller.tag(tag),
        "says": says_to(caller, row.says, row.reason, tag),
        "flags": without_tag(row.flags, tag, caller),
        "evidence": without_tag(row.evidence, tag, caller),
        "customer_id": shown.pop("customer"),
        "subscription_id": shown.pop("subscription"),
    }


def event_json(row: EventRow, caller: Caller) -> dict[str, Any]:
    """A usage event for a list."""
    shown = row._asdict()
    return {
        **shown,
        "id": shown.pop("event_id"),
        "id_tag": caller.tag(row.id_tag),
        "customer_id": shown.pop("customer"),
        "subscription_id": shown.pop("subscription"),
    }


def event_detail(row: EventRow, event: UsageEvent, caller: Caller) -> dict[str, Any]:
    """A usage event with the exact payload and Lago's last words."""
    return {
        **event_json(row, caller),
        "payload": without_tag(json.loads(event.payload), row.id_tag, caller),
        "answer": without_tag(event.answer, row.id_tag, caller),
    }


def session_detail(
    row: SessionRow, session: ChargingSession, events: list[dict[str, Any]], caller: Caller
) -> dict[str, Any]:
    """A session with everything that was read, decided and sent."""
    tag = row.id_tag
    decisions = [
        {
            "id": decision.pk,
            "revision": decision.revision,
            "outcome": decision.outcome,
            "reason": decision.reason,
            "says": says_to(caller, decision.says, decision.reason, tag),
            "energy_wh": decision.energy_wh,
            "mapping_id": decision.mapping_id,
            "customer_id": decision.external_customer_id,
            "subscription_id": decision.external_subscription_id,
            "decided_at": decision.decided_at,
            "decided_by": decision.decided_by,
            "note": without_tag(decision.note, tag, caller),
        }
        for decision in session.decisions.order_by("-pk")
    ]
    rulings = [
        {
            "kind": ruling.kind,
            "revision": ruling.revision,
            "reason": ruling.reason,
            "customer_id": ruling.customer_external_id,
            "subscription_id": ruling.subscription_external_id,
            "note": without_tag(ruling.note, tag, caller),
            "at": ruling.at,
            "by": ruling.by,
            "revoked_at": ruling.revoked_at,
        }
        for ruling in session.rulings.order_by("-pk")
    ]
    return {
        **session_json(row, caller),
        "raw": without_tag(session.raw, tag, caller),
        "decisions": decisions,
        "rulings": rulings,
        "events": events,
    }


def session_lines(rows: Iterator[SessionRow], caller: Caller) -> Iterator[str]:
    """Sessions as lines of a CSV file."""
    return _lines(SESSION_COLUMNS, (session_json(row, caller) for row in rows))


def event_lines(rows: Iterator[EventRow], caller: Caller) -> Iterator[str]:
    """Usage events as lines of a CSV file."""
    return _lines(EVENT_COLUMNS, (event_json(row, caller) for row in rows))


def without_tag(value: Any, tag: str, caller: Caller) -> Any:
    """A value in which whoever may not see tags does not find this one."""
    if caller.sees_tags:
        return value
    if isinstance(value, dict):
        # Also one that the session had before StEvE changed it, in an event that was sent then.
        return {
            key: caller.tag(inner)
            if key == "id_tag" and isinstance(inner, str)
            else without_tag(inner, tag, caller)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [without_tag(inner, tag, caller) for inner in value]
    if isinstance(value, str) and tag and tag.casefold() in value.casefold():
        return caller.tag(tag)
    return value


def says_to(caller: Caller, says: str | None, reason: str | None, tag: str) -> Any:
    """The words of a decision as a caller may see them."""
    # An identity conflict names the other tag, too.
    if says and reason == "identity_conflict" and not caller.sees_tags:
        return IDENTITY_IN_DOUBT
    return without_tag(says, tag, caller)


def _lines(columns: list[str], rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    return csv_lines(columns, ([_cell(row, column) for column in columns] for row in rows))


def _cell(row: dict[str, Any], column: str) -> Any:
    if column != "energy_kwh":
        return row[column]
    return None if row["energy_wh"] is None else Decimal(row["energy_wh"]).scaleb(-3)
