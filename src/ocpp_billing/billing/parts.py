"""Sessions by the parts of their energy: lists and totals that agree with the balance to the watt-hour.

The energy of a session is a sum of parts: a *rest* that no usage event carries, and its usage events. Each
part is in one state. As in the balance a session is counted once, under its least advanced part, while its
energy counts where each part is. So a list of one state has every session with energy there, also those
that are counted elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connection

from ocpp_billing.billing.balance import Amount, counted_balance
from ocpp_billing.billing.listing import (
    CHUNK_ROWS,
    SESSION_COLUMNS_SQL,
    LedgerFilter,
    SessionRow,
    Where,
    session_facts,
    session_row,
    stopped_between,
)
from ocpp_billing.charging.order import AFTER_SQL, NEWEST_FIRST_SQL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime


class Part(NamedTuple):
    """A part of a session's energy.

    Attributes:
        event_id: our number of the usage event that carries it; None = the rest, which none carries.
        n: which of the session's events; 0 = the rest.
        matches: whether it is what the filter asked for; other parts are shown beside it.
    """

    session_id: int
    n: int
    state: str
    reason: str | None
    energy_wh: int
    customer: str | None
    subscription: str | None
    event_id: int | None
    transaction_id: str | None
    lago_event_id: str | None
    kind: str | None
    timestamp: datetime | None
    matches: bool


@dataclass(frozen=True, slots=True)
class PartedSession:
    """A session of a list, with its parts: the rest first, then its events in their order."""

    session: SessionRow
    parts: tuple[Part, ...]

    @property
    def matching(self) -> list[Part]:
        """The parts that the filter asked for."""
        return [part for part in self.parts if part.matches]


@dataclass(frozen=True, slots=True)
class PartTotals:
    """What a filter comes to.

    Attributes:
        states: sessions (by their least advanced part) and energy (by parts), of states that occur.
        elsewhere: sessions that are listed for a part of their energy and counted under another state.
        read: the same sessions and energy by the registers alone, where the filter is about whole
            sessions: it must equal the sum of the states. None where it is about parts.
    """

    states: dict[str, Amount]
    elsewhere: int
    read: Amount | None

    @property
    def total(self) -> Amount:
        """All states together."""
        return Amount(
            sum(amount.sessions for amount in self.states.values()),
            sum(amount.energy_wh for amount in self.states.values()),
        )


def list_parted(chosen: LedgerFilter, *, before: int | None = None, limit: int = 100) -> list[PartedSession]:
    """Sessions with a part that the filter asks for, newest first, each with all its parts."""
    sql, bound = _candidates(chosen, before=before)
    bound["limit"] = limit
    with connection.cursor() as cursor:
        cursor.execute(f"{_LIST.format(candidates=sql)}", bound)
        sessions = [session_row(row) for row in cursor.fetchall()]
        parts = _read_parts(cursor, chosen, [session.session_id for session in sessions])
    return [PartedSession(session, tuple(parts.get(session.session_id, ()))) for session in sessions]


def all_parted(chosen: LedgerFilter) -> Iterator[PartedSession]:
    """Every session of a filter, in chunks."""
    before = None
    while rows := list_parted(chosen, before=before, limit=CHUNK_ROWS):
        yield from rows
        before = rows[-1].session.session_id


def total_parts(chosen: LedgerFilter) -> PartTotals:
    """What a filter comes to, by state; from the counters of the balance where it is about all sessions."""
    whole = not _asks_for_parts(chosen)
    elsewhere = 0 if whole else _count_elsewhere(chosen)
    if _asks_for_sessions(chosen) or chosen.customer or chosen.subscription:
        states, read = _add_up(chosen)
        return PartTotals(states, elsewhere, read if whole else None)
    states = {}
    balance = counted_balance(chosen.source)
    for (state, reason), amount in balance.parts.items():
        if (not chosen.states or state in chosen.states) and chosen.reason in {None, reason}:
            states.setdefault(state, Amount()).add(amount.sessions, amount.energy_wh)
    return PartTotals(states, elsewhere, balance.read if whole else None)


# -- which parts: SQL over `s` (session), `e` (event) ---------------------------------------------------


def _asks_for_parts(chosen: LedgerFilter) -> bool:
    return bool(chosen.states or chosen.reason or chosen.customer or chosen.subscription)


def _asks_for_sessions(chosen: LedgerFilter) -> bool:
    return any(
        value is not None
        for value in (
            *(chosen.since, chosen.until, chosen.id_tag, chosen.id_tag_end, chosen.charge_box),
            *(chosen.steve_id, chosen.session_id),
        )
    )


def _sessions_where(chosen: LedgerFilter) -> Where:
    where = Where(["s.source_id = %(source)s"], {"source": chosen.source})
    return session_facts(stopped_between(where, chosen), chosen)


def _part_conditions(chosen: LedgerFilter, *, state: str, reason: str, payer: str) -> list[str]:
    """What a part must be; ``payer`` is SQL for its payer with ``{column}`` to fill in."""
    conditions = []
    if chosen.states:
        conditions.append(f"{state} = ANY(%(states)s)")
    if chosen.reason:
        conditions.append(f"{reason} = %(reason)s")
    if chosen.customer:
        conditions.append(f"{payer.format(column='external_customer_id')} = %(customer)s")
    if chosen.subscription:
        conditions.append(f"{payer.format(column='external_subscription_id')} = %(subscription)s")
    return conditions


def _bound(chosen: LedgerFilter, where: Where) -> dict[str, Any]:
    return where.bound | {
        "states": list(chosen.states),
        "reason": chosen.reason,
        "customer": chosen.customer,
        "subscription": chosen.subscription,
    }


# Whoever pays for a part: an event says so itself, for the rest the latest decision does. A session is
# counted where the part is that names it; of several such events, the newest.
_REST_PAYER = "(SELECT d.{column} FROM decision d WHERE d.session_id = s.id ORDER BY d.id DESC LIMIT 1)"
_NAMING_PAYER = f"""CASE WHEN s.state = s.rest_state THEN {_REST_PAYER} ELSE (
    SELECT e.{{column}} FROM usage_event e WHERE e.session_id = s.id AND e.state = s.state
    ORDER BY e.n DESC LIMIT 1) END"""
_EVENT_PAYER = "e.{column}"


def _named(chosen: LedgerFilter) -> list[str]:
    """Conditions of a session that is counted for the filter: the part that names it is asked for."""
    conditions = _part_conditions(chosen, state="s.state", reason="s.reason", payer=_NAMING_PAYER)
    return conditions + _payer_candidates(chosen)


def _payer_candidates(chosen: LedgerFilter) -> list[str]:
    """Where a payer is asked for: the few sessions that it can be, by indexes."""
    return [
        f"""s.id IN (
            SELECT session_id FROM usage_event WHERE {column} = %({name})s
            UNION SELECT session_id FROM decision WHERE {column} = %({name})s AND outcome <> 'bill')"""
        for name, column, value in (
            ("customer", "external_customer_id", chosen.customer),
            ("subscription", "external_subscription_id", chosen.subscription),
        )
        if value
    ]


def _other_part(chosen: LedgerFilter) -> str:
    """A condition: the rest or an event of the session is asked for."""
    rest = _part_conditions(chosen, state="s.rest_state", reason="s.rest_reason", payer=_REST_PAYER)
    event = _part_conditions(chosen, state="e.state", reason="e.reason", payer=_EVENT_PAYER)
    return f"""(s.rest_state IS NOT NULL AND {" AND ".join(rest)} OR EXISTS (
        SELECT 1 FROM usage_event e
        WHERE e.session_id = s.id AND e.state <> 'void' AND {" AND ".join(event)}))"""


# Why a rest can stand beside events (events.settle, outbox.hold_difference): it waits for a decision or a
# person, or a person settled it.
DIFFERS = ("changed_after_billing", "refund_by_credit_note", "by_operator", "credited")

# Only these can have a part that is counted elsewhere: a correction or a move has a number above 1; the
# others have a rest beside an event. Each is found by an index of its own.
_SEVERAL_PARTS = f"""s.id IN (
    SELECT session_id FROM usage_event WHERE n > 1
    UNION SELECT h.id FROM charging_session h WHERE h.source_id = %(source)s AND h.rest_reason IN {DIFFERS}
    UNION SELECT h.id FROM charging_session h
        WHERE h.source_id = %(source)s AND h.needs_decision AND h.rest_reason = 'undecided')"""


def _candidates(chosen: LedgerFilter, *, before: int | None) -> tuple[str, dict[str, Any]]:
    """The newest sessions of a filter, by number; a branch per state, so that each has its index."""
    where = _sessions_where(chosen)
    where.add(AFTER_SQL, "before", before)
    bound = _bound(chosen, where)
    # Nothing added is PostgreSQL's cue to take the few sessions of a closed range by their stop, and not to
    # walk backwards through all that are newer.
    steve_id = "s.steve_id" if chosen.since is None or chosen.until is None else "s.steve_id + 0"
    if not _asks_for_parts(chosen):
        return _BRANCH.format(where=where.sql, steve_id=steve_id), bound
    branches = []
    for number, state in enumerate(chosen.states or [None]):
        conditions = [where.sql, *_named(chosen)]
        if state is not None:
            conditions.append(f"s.state = %(state_{number})s")
            bound[f"state_{number}"] = state
        branches.append(" AND ".join(conditions))
    branches.append(" AND ".join([where.sql, _SEVERAL_PARTS, _other_part(chosen)]))
    return " UNION ".join(
        f"({_BRANCH.format(where=branch, steve_id=steve_id)})" for branch in branches
    ), bound


_BRANCH = """
SELECT s.steve_id, s.id FROM charging_session s WHERE {where}
ORDER BY {steve_id} DESC, s.id DESC LIMIT %(limit)s
"""

_LIST = f"""
SELECT {SESSION_COLUMNS_SQL} FROM charging_session s
WHERE s.id IN (SELECT s.id FROM ({{candidates}}) s ORDER BY {NEWEST_FIRST_SQL} LIMIT %(limit)s)
ORDER BY {NEWEST_FIRST_SQL}
"""


def _count_elsewhere(chosen: LedgerFilter) -> int:
    """How many sessions are listed for one of their parts only."""
    where = _sessions_where(chosen)
    counted = " AND ".join(_part_conditions(chosen, state="s.state", reason="s.reason", payer=_NAMING_PAYER))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM charging_session s WHERE {where.sql} AND {_SEVERAL_PARTS}"
            f" AND {_other_part(chosen)} AND ({counted}) IS NOT TRUE",
            _bound(chosen, where),
        )
        return int(cursor.fetchone()[0])


def _add_up(chosen: LedgerFilter) -> tuple[dict[str, Amount], Amount]:
    where = _sessions_where(chosen)
    candidates = _payer_candidates(chosen)
    named = _part_conditions(chosen, state="s.state", reason="s.reason", payer=_NAMING_PAYER)
    rest = _part_conditions(chosen, state="s.rest_state", reason="s.rest_reason", payer=_REST_PAYER)
    event = _part_conditions(chosen, state="e.state", reason="e.reason", payer=_EVENT_PAYER)
    events = _EVENTS_OF_EACH if _is_about_few(chosen) else _EVENTS_OF_ALL
    sql = _TOTALS.format(
        session=" AND ".join([where.sql, *named, *candidates]),
        rest=" AND ".join([where.sql, *rest, *candidates]),
        events=events.format(where=where.sql, event=" AND ".join(["e.state <> 'void'", *event])),
    )
    states: dict[str, Amount] = {}
    read = Amount()
    with connection.cursor() as cursor:
        cursor.execute(sql, _bound(chosen, where))
        for state, sessions, energy_wh, read_wh in cursor.fetchall():
            states[state] = Amount(sessions, energy_wh)
            read.add(sessions, read_wh)
    return states, read


# Sessions by the state that names them, energy by its parts, and beside it the energy by the registers.
_TOTALS = """
SELECT state, sum(sessions)::bigint, sum(energy_wh)::bigint, sum(read_wh)::bigint FROM (
    SELECT s.state, count(*) AS sessions, 0 AS energy_wh,
        coalesce(sum(greatest(s.energy_wh, 0)), 0) AS read_wh
    FROM charging_session s WHERE {session} GROUP BY s.state
    UNION ALL
    SELECT s.rest_state, 0, sum(s.rest_wh), 0
    FROM charging_session s WHERE s.rest_state IS NOT NULL AND {rest} GROUP BY s.rest_state
    UNION ALL
    {events}
) part
GROUP BY state
"""

# The events of few sessions one by one, by their index; those of many in one go.
_EVENTS_OF_EACH = """
SELECT e.state, 0, sum(e.energy_wh), 0 FROM charging_session s CROSS JOIN LATERAL (
    SELECT e.state, sum(e.energy_wh) AS energy_wh FROM usage_event e
    WHERE e.session_id = s.id AND {event} GROUP BY e.state
) e WHERE {where} GROUP BY e.state
"""
_EVENTS_OF_ALL = """
SELECT e.state, 0, sum(e.energy_wh), 0 FROM usage_event e JOIN charging_session s ON s.id = e.session_id
WHERE {event} AND {where} GROUP BY e.state
"""
_FEW_DAYS = timedelta(days=92)


def _is_about_few(chosen: LedgerFilter) -> bool:
    """Whether a filter leaves a small part of a big ledger, and its payer does not lead to the events."""
    if chosen.customer or chosen.subscription:
        return False
    if chosen.since is not None and chosen.until is not None and chosen.until - chosen.since <= _FEW_DAYS:
        return True
    return any(
        value is not None
        for value in (chosen.id_tag, chosen.id_tag_end, chosen.charge_box, chosen.steve_id, chosen.session_id)
    )


def _read_parts(cursor: Any, chosen: LedgerFilter, session_ids: Sequence[int]) -> dict[int, list[Part]]:
    rest = _part_conditions(chosen, state="s.rest_state", reason="s.rest_reason", payer=_REST_PAYER)
    event = _part_conditions(chosen, state="e.state", reason="e.reason", payer=_EVENT_PAYER)
    sql = _PARTS.format(
        rest=" AND ".join(rest) or "true",
        event=" AND ".join(event) or "true",
        customer=_REST_PAYER.format(column="external_customer_id"),
        subscription=_REST_PAYER.format(column="external_subscription_id"),
    )
    cursor.execute(sql, _bound(chosen, Where([], {})) | {"ids": list(session_ids)})
    parts: dict[int, list[Part]] = {}
    for row in cursor.fetchall():
        part = Part(*row)
        parts.setdefault(part.session_id, []).append(part)
    return parts


_PARTS = """
SELECT s.id, 0 AS n, s.rest_state, s.rest_reason, s.rest_wh, {customer}, {subscription},
    NULL::bigint, NULL, NULL, NULL, NULL::timestamptz, ({rest}) IS TRUE
FROM charging_session s WHERE s.id = ANY(%(ids)s) AND s.rest_state IS NOT NULL
UNION ALL
SELECT e.session_id, e.n, e.state, e.reason, e.energy_wh, e.external_customer_id, e.external_subscription_id,
    e.id, e.transaction_id, e.lago_event_id, e.kind, e.timestamp, ({event}) IS TRUE
FROM usage_event e WHERE e.session_id = ANY(%(ids)s) AND e.state <> 'void'
ORDER BY 1, 2
"""
