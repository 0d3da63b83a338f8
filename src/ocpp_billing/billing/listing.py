"""Lists of sessions and of usage events, for pages, the API and files: filter, page, totals.

Sessions go by StEvE's number (:mod:`charging.order`), events by ours: the one that was made last comes first.
These numbers never change and new rows get higher ones, so while rows arrive or change their state nothing is
shown twice and nothing that was there is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from django.db import connection

from ocpp_billing.billing.balance import STOPPED_BETWEEN_SQL
from ocpp_billing.charging.fold import ENDS_SQL, fold_id_tag
from ocpp_billing.charging.order import AFTER_SQL, NEWEST_FIRST_SQL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

# So many rows are read at once for a file: flat memory, however long it is.
CHUNK_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFilter:
    """Which sessions or events; what is None or empty does not matter.

    Attributes:
        source: name of the StEvE.
        since: sessions that stopped, or events that Lago sees, at or after this instant.
        until: before this instant.
        states: any of these.
        reason: this reason code.
        customer: Lago's external customer id.
        subscription: Lago's external subscription id.
        id_tag: the whole tag, in any case.
        id_tag_end: the last characters of the tag, exactly, for people who may not see more of it.
        charge_box: StEvE's charge box id.
        steve_id: StEvE's transaction id.
        session_id: our number of the session.
        event_id: our number of the usage event; for lists of events.
    """

    source: str
    since: datetime | None = None
    until: datetime | None = None
    states: Sequence[str] = ()
    reason: str | None = None
    customer: str | None = None
    subscription: str | None = None
    id_tag: str | None = None
    id_tag_end: str | None = None
    charge_box: str | None = None
    steve_id: int | None = None
    session_id: int | None = None
    event_id: int | None = None


class Totals(NamedTuple):
    """All rows of a filter together."""

    rows: int
    energy_wh: int


class SessionRow(NamedTuple):
    """A session in a list.

    ``customer`` and ``subscription`` are those of its newest event or decision. ``vanished_at``: since when
    StEvE does not show it; ``superseded_at``: since when a restored StEvE shows another under its number.
    """

    session_id: int
    steve_id: int
    charge_box_id: str
    connector_id: int
    id_tag: str
    started_at: datetime | None
    stopped_at: datetime | None
    start_wh: int
    stop_wh: int | None
    energy_wh: int | None
    state: str
    reason: str | None
    says: str | None
    customer: str | None
    subscription: str | None
    first_seen_at: datetime
    changed_at: datetime
    revision: int
    flags: list[Any]
    evidence: dict[str, Any] | None
    vanished_at: datetime | None
    superseded_at: datetime | None


class EventRow(NamedTuple):
    """A usage event in a list, with the session behind it."""

    event_id: int
    transaction_id: str
    session_id: int
    steve_id: int
    kind: str
    state: str
    reason: str | None
    customer: str
    subscription: str
    metric_code: str
    energy_wh: int
    timestamp: datetime
    charge_box_id: str
    connector_id: int
    id_tag: str
    started_at: datetime | None
    stopped_at: datetime | None
    lago_event_id: str | None
    attempts: int
    created_at: datetime
    accepted_at: datetime | None
    confirmed_at: datetime | None


@dataclass(slots=True)
class Where:
    """Conditions, and what is bound in them."""

    conditions: list[str]
    bound: dict[str, Any] = field(default_factory=dict)

    def add(self, condition: str, name: str, value: Any) -> None:
        """One more condition, unless its value is None or empty."""
        if value is not None and value != []:
            self.conditions.append(condition)
            self.bound[name] = value

    @property
    def sql(self) -> str:
        """All of them."""
        return " AND ".join(self.conditions)


def list_sessions(chosen: LedgerFilter, *, before: int | None = None, limit: int = 100) -> list[SessionRow]:
    """Sessions of a filter, newest first; ``before`` is our number of the last row of the page before."""
    where = _sessions_where(chosen)
    where.add(AFTER_SQL, "before", before)
    sql = _SESSIONS.format(where=where.sql)
    return [session_row(row) for row in _rows(sql, where.bound | {"limit": limit})]


def session_row(columns: Sequence[Any]) -> SessionRow:
    """A row of :data:`SESSION_COLUMNS_SQL`."""
    row = SessionRow(*columns)
    return row._replace(flags=_decoded(row.flags), evidence=_decoded(row.evidence))


def total_sessions(chosen: LedgerFilter) -> Totals:
    """Sessions of a filter and their energy, a negative one as 0."""
    where = _sessions_where(chosen)
    ((rows, energy_wh),) = _rows(_SESSION_TOTALS.format(where=where.sql), where.bound)
    return Totals(rows, energy_wh)


def list_events(chosen: LedgerFilter, *, before: int | None = None, limit: int = 100) -> list[EventRow]:
    """Usage events of a filter, newest first; ``before`` as for sessions. Void ones never existed."""
    where = _events_where(chosen)
    where.add("e.id < %(before)s", "before", before)
    sql = _EVENTS.format(where=where.sql)
    return [EventRow(*row) for row in _rows(sql, where.bound | {"limit": limit})]


def total_events(chosen: LedgerFilter) -> Totals:
    """Usage events of a filter and their energy, corrections with their sign."""
    where = _events_where(chosen)
    ((rows, energy_wh),) = _rows(_EVENT_TOTALS.format(where=where.sql), where.bound)
    return Totals(rows, energy_wh)


def all_sessions(chosen: LedgerFilter) -> Iterator[SessionRow]:
    """Every session of a filter, in chunks."""
    before = None
    while rows := list_sessions(chosen, before=before, limit=CHUNK_ROWS):
        yield from rows
        before = rows[-1].session_id


def all_events(chosen: LedgerFilter) -> Iterator[EventRow]:
    """Every usage event of a filter, in chunks."""
    before = None
    while rows := list_events(chosen, before=before, limit=CHUNK_ROWS):
        yield from rows
        before = rows[-1].event_id


def _rows(sql: str, bound: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, bound)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def _decoded(jsonb: Any) -> Any:
    return None if jsonb is None else msgspec.json.decode(jsonb)  # Django leaves it as text


def _sessions_where(chosen: LedgerFilter) -> Where:
    where = Where(["s.source_id = %(source)s"], {"source": chosen.source})
    where.add("s.state = ANY(%(states)s)", "states", list(chosen.states))
    where.add("s.reason = %(reason)s", "reason", chosen.reason)
    where.add(f"{_PAYER.format(column='external_customer_id')} = %(customer)s", "customer", chosen.customer)
    where.add(
        f"{_PAYER.format(column='external_subscription_id')} = %(subscription)s",
        "subscription",
        chosen.subscription,
    )
    return session_facts(stopped_between(where, chosen), chosen)


def _events_where(chosen: LedgerFilter) -> Where:
    where = Where(["e.source_id = %(source)s AND e.state <> 'void'"], {"source": chosen.source})
    where.add("e.id = %(event_id)s", "event_id", chosen.event_id)
    where.add("e.timestamp >= %(since)s", "since", chosen.since)
    where.add("e.timestamp < %(until)s", "until", chosen.until)
    where.add("e.state = ANY(%(states)s)", "states", list(chosen.states))
    where.add("e.reason = %(reason)s", "reason", chosen.reason)
    where.add("e.external_customer_id = %(customer)s", "customer", chosen.customer)
    where.add("e.external_subscription_id = %(subscription)s", "subscription", chosen.subscription)
    return session_facts(where, chosen)


def stopped_between(where: Where, chosen: LedgerFilter) -> Where:
    """Add what a filter says about the stop of the session ``s``."""
    if chosen.since is not None or chosen.until is not None:
        where.conditions.append(STOPPED_BETWEEN_SQL)
        where.bound |= {"from": chosen.since or "-infinity", "to": chosen.until or "infinity"}
    return where


def session_facts(where: Where, chosen: LedgerFilter) -> Where:
    """Add what a filter says about tag, charge box and numbers of the session ``s``."""
    tagged = "s.id_tag_id IN (SELECT t.id FROM id_tag t WHERE t.source_id = %(source)s AND {})"
    folded = None if chosen.id_tag is None else fold_id_tag(chosen.id_tag)
    where.add(tagged.format("t.folded = %(id_tag)s"), "id_tag", folded)
    end = None if chosen.id_tag_end is None else chosen.id_tag_end.lower()
    where.add(tagged.format(ENDS_SQL), "end", end)
    where.add("s.charge_box_id = %(charge_box)s", "charge_box", chosen.charge_box)
    where.add("s.steve_id = %(steve_id)s", "steve_id", chosen.steve_id)
    where.add("s.id = %(session_id)s", "session_id", chosen.session_id)
    return where


# A reading of a person takes the place of StEvE's stop, as it does in `energy_wh`.
_STOPPED_AT = "coalesce(s.reading_stopped_at, s.stopped_at)"

# Who pays: as the newest event says, else as the newest decision says.
_PAYER = """coalesce(
    (SELECT e.{column} FROM usage_event e WHERE e.session_id = s.id AND e.state <> 'void'
     ORDER BY e.n DESC LIMIT 1),
    (SELECT d.{column} FROM decision d WHERE d.session_id = s.id ORDER BY d.id DESC LIMIT 1)
)"""

SESSION_COLUMNS_SQL = f"""
    s.id, s.steve_id, s.charge_box_id, s.connector_id, s.id_tag_text, s.started_at, {_STOPPED_AT},
    s.start_wh, coalesce(s.reading_stop_wh, s.stop_wh), s.energy_wh, s.state, s.reason,
    (SELECT d.says FROM decision d WHERE d.session_id = s.id ORDER BY d.id DESC LIMIT 1),
    {_PAYER.format(column="external_customer_id")}, {_PAYER.format(column="external_subscription_id")},
    s.first_seen_at, s.changed_at, s.revision, s.flags, s.evidence, s.vanished_at,
    s.superseded_at
"""

_SESSIONS = f"""
SELECT {SESSION_COLUMNS_SQL} FROM charging_session s WHERE {{where}}
ORDER BY {NEWEST_FIRST_SQL} LIMIT %(limit)s
"""

_SESSION_TOTALS = """
SELECT count(*), coalesce(sum(greatest(s.energy_wh, 0)), 0)::bigint FROM charging_session s WHERE {where}
"""

_EVENTS = """
SELECT e.id, e.transaction_id, e.session_id, s.steve_id, e.kind, e.state, e.reason, e.external_customer_id,
    e.external_subscription_id, e.metric_code, e.energy_wh, e.timestamp, s.charge_box_id, s.connector_id,
    s.id_tag_text, s.started_at, coalesce(s.reading_stopped_at, s.stopped_at), e.lago_event_id, e.attempts,
    e.created_at, e.accepted_at, e.confirmed_at
FROM usage_event e JOIN charging_session s ON s.id = e.session_id
WHERE {where} ORDER BY e.id DESC LIMIT %(limit)s
"""

_EVENT_TOTALS = """
SELECT count(*), coalesce(sum(e.energy_wh), 0)::bigint
FROM usage_event e JOIN charging_session s ON s.id = e.session_id WHERE {where}
"""
