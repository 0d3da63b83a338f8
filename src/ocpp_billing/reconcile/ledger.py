"""The ledger's side: what it knows of the sessions and usage events of a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from django.db import connection

from ocpp_billing.lago.wire import UsageEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class LedgerSession:
    """A session as the ledger has it.

    Attributes:
        session_id: our number.
        steve_id: StEvE's.
        stopped_at: StEvE's stop as last read; None where there was none (then a reading may stand for it).
        steve_wh: StEvE's energy as last read; None while it was open.
        state: of the session.
        rest_state: of the energy that no usage event carries; None where there is none.
        rest_wh: that energy.
        is_gone: StEvE did not show it when it was last asked for.
        customer: by the latest decision.
        subscription: by the latest decision.
    """

    session_id: int
    steve_id: int
    stopped_at: datetime | None
    steve_wh: int | None
    state: str
    rest_state: str | None
    rest_wh: int
    is_gone: bool
    customer: str | None
    subscription: str | None


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """A usage event as the ledger has it; void ones are left out."""

    session_id: int
    transaction_id: str
    state: str
    attempts: int
    customer: str
    subscription: str
    metric_code: str
    energy_wh: int
    timestamp: datetime
    accepted_at: datetime | None
    plan_code: str | None
    payload: str
    field_name: str

    def as_sent(self) -> UsageEvent:
        """The event as it was built for Lago."""
        return UsageEvent(**msgspec.json.decode(self.payload), value_field=self.field_name)


@dataclass(slots=True)
class LedgerSide:
    """Sessions that stopped in a window (or that StEvE shows there); events of them, or dated there."""

    sessions: list[LedgerSession]
    events: list[LedgerEvent]


def read_ledger(source: str, from_: datetime, to: datetime, shown: Iterable[int]) -> LedgerSide:
    """Read both, in two statements of one snapshot each.

    Args:
        source: name of the StEvE.
        from_: begin of the window, inclusive.
        to: its end, exclusive.
        shown: StEvE's ids that it holds as stopped in the window.
    """
    bound: dict[str, Any] = {"source": source, "from": from_, "to": to, "shown": list(shown)}
    with connection.cursor() as cursor:
        cursor.execute(_SESSIONS, bound)
        sessions = [LedgerSession(*row) for row in cursor.fetchall()]
        cursor.execute(_EVENTS, {**bound, "sessions": [session.session_id for session in sessions]})
        events = [LedgerEvent(*row) for row in cursor.fetchall()]
    return LedgerSide(sessions, events)


def states_of(transaction_ids: Sequence[str]) -> dict[str, str]:
    """State of each usage event that the ledger knows, void ones included.

    ``given_up`` and ``came_too_late`` for void ones that were sent: the second are known to be in Lago, where
    a final invoice does not count them.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT transaction_id, CASE WHEN state <> 'void' OR given_up_at IS NULL THEN state"
            " WHEN turned_up_at = given_up_at THEN 'came_too_late' ELSE 'given_up' END"
            " FROM usage_event WHERE transaction_id = ANY(%s)",
            [list(transaction_ids)],
        )
        return dict(cursor.fetchall())


# A reading of a person takes the place of StEvE's stop, as it does in the balance. Rows that a restored
# StEvE has given to other sessions have nothing to be compared with any more.
_SESSIONS = """
SELECT s.id, s.steve_id, s.stopped_at, s.stop_wh - s.start_wh, s.state, s.rest_state, s.rest_wh,
    s.vanished_at IS NOT NULL, d.external_customer_id, d.external_subscription_id
FROM charging_session s LEFT JOIN LATERAL (
    SELECT external_customer_id, external_subscription_id FROM decision
    WHERE session_id = s.id ORDER BY id DESC LIMIT 1
) d ON true
WHERE s.source_id = %(source)s AND s.superseded_at IS NULL AND (
    s.reading_stopped_at IS NULL AND s.stopped_at >= %(from)s AND s.stopped_at < %(to)s
    OR s.reading_stopped_at >= %(from)s AND s.reading_stopped_at < %(to)s
    OR s.steve_id = ANY(%(shown)s)
)
ORDER BY s.steve_id
"""

_EVENTS = """
SELECT e.session_id, e.transaction_id, e.state, e.attempts, e.external_customer_id,
    e.external_subscription_id, e.metric_code, e.energy_wh, e.timestamp, e.accepted_at, l.plan_code,
    e.payload, e.field_name
FROM usage_event e LEFT JOIN lago_subscription l ON l.lago_id = e.lago_subscription_id
WHERE e.source_id = %(source)s AND e.state <> 'void'
  AND (e.session_id = ANY(%(sessions)s) OR e.timestamp >= %(from)s AND e.timestamp < %(to)s)
ORDER BY e.id
"""
