"""The outbox: claiming usage events, and writing down what became of them. SQL only, no HTTP.

An event is claimed by a committed lease, so no row lock is held while HTTP runs. ``attempts`` is raised
in the same transaction: from then on Lago may know the event, whatever happens to this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from django.db import connection

from ocpp_billing.billing.balance import STATE_RANK_SQL
from ocpp_billing.lago.directory import FRESH_FOR
from ocpp_billing.lago.wire import UsageEvent
from ocpp_billing.sync.database import Fence, fenced_transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

# Long enough for a batch with its time-outs; a dead worker's leases are broken by the next leader.
LEASE = timedelta(minutes=10)
FIRST_BACKOFF = timedelta(seconds=2)
LONGEST_BACKOFF = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    """An event that this worker may send now.

    Attributes:
        attempts: how often it was claimed to be sent, this time included.
        may_be_known: Lago may hold it already: read it back before it is sent again.
        first_attempt_at: when it was claimed for the first time.
    """

    event_id: int
    attempts: int
    event: UsageEvent
    may_be_known: bool
    first_attempt_at: datetime


@dataclass(frozen=True, slots=True)
class EventResult:
    """What became of one claimed event.

    Attributes:
        state: ``accepted``, ``rejected``, ``held``, or ``queued`` for another attempt.
        answer: Lago's last words, or ours about what happened.
        reason: of ``held`` and ``rejected``.
        lago_event_id: Lago's id of it; None on the ClickHouse store.
        wait: until the next attempt, when queued.
    """

    event_id: int
    state: str
    answer: Mapping[str, Any]
    reason: str | None = None
    lago_event_id: str | None = None
    wait: timedelta = timedelta()


def break_leases(source: str, fence: Fence | None) -> int:
    """Free what a dead worker had claimed; only the leader does this, at the start of a run."""
    with fenced_transaction("break leases", fence) as cursor:
        cursor.execute(
            "UPDATE usage_event SET lease = NULL, lease_until = NULL"
            " WHERE source_id = %s AND state = 'queued' AND lease IS NOT NULL",
            [source],
        )
        return int(cursor.rowcount)


@dataclass(frozen=True, slots=True)
class Contract:
    """What Lago bills at all, as it says now.

    Attributes:
        metric_code: the billable metric.
        field_name: the property it sums; None = it is missing or does not sum, so nothing is billed.
        plans: codes of the plans that charge it.
    """

    metric_code: str
    field_name: str | None
    plans: frozenset[str]


def claim_events(
    source: str, lease: UUID, limit: int, now: datetime, contract: Contract, fence: Fence | None
) -> list[ClaimedEvent]:
    """Claim up to ``limit`` due events that Lago would bill.

    The contract and the billing period are checked once more here, against what Lago said not longer ago
    than :data:`FRESH_FOR`: an event that is not covered by such an answer is not claimed.
    """
    with fenced_transaction("claim", fence) as cursor:
        cursor.execute(
            _CLAIM,
            {
                "source": source,
                "lease": lease,
                "limit": limit,
                "now": now,
                "until": now + LEASE,
                "fresh": now - FRESH_FOR,
                **_bound(contract),
            },
        )
        return [_claimed(row) for row in cursor.fetchall()]


def _bound(contract: Contract) -> dict[str, Any]:
    return {
        "metric_code": contract.metric_code,
        "field_name": contract.field_name,
        "plans": sorted(contract.plans),
    }


def _claimed(row: tuple[Any, ...]) -> ClaimedEvent:
    event_id, attempts, payload, field_name, first_attempt_at, unsettled = row
    event = UsageEvent(**msgspec.json.decode(payload), value_field=field_name)
    return ClaimedEvent(event_id, attempts, event, attempts > 1 and unsettled, first_attempt_at)


def customers_to_ask(source: str, now: datetime) -> set[str]:
    """Customers of due events whose subscription was read too long ago, or whose period has ended since."""
    with connection.cursor() as cursor:
        cursor.execute(_CUSTOMERS_TO_ASK, {"source": source, "now": now, "fresh": now - FRESH_FOR})
        return {customer for (customer,) in cursor.fetchall()}


def set_aside_unbilled(source: str, now: datetime, contract: Contract, fence: Fence | None) -> int:
    """Take out of the queue what Lago would not bill (any more), by a fresh answer of Lago.

    What was never attempted is voided and its session decided anew: late, not charged, or by another
    subscription row. What Lago may know already stays queued: it is read back, and only then held.
    """
    bound = {"source": source, "now": now, "fresh": now - FRESH_FOR, **_bound(contract)}
    with fenced_transaction("set aside unbilled", fence) as cursor:
        cursor.execute(_HOLD_UNBILLED_MOVES, bound)
        restate_sessions(cursor, [session_id for (session_id,) in cursor.fetchall()])
        cursor.execute(_REDECIDE_UNBILLED, bound)
        return int(cursor.rowcount)


def claim_attempted_unbilled(
    source: str, lease: UUID, limit: int, now: datetime, contract: Contract, fence: Fence | None
) -> list[ClaimedEvent]:
    """Claim events of unknown outcome that Lago would not bill any more, only to read them back."""
    with fenced_transaction("claim unbilled", fence) as cursor:
        cursor.execute(
            _CLAIM_UNBILLED,
            {
                "source": source,
                "lease": lease,
                "limit": limit,
                "now": now,
                "until": now + LEASE,
                "fresh": now - FRESH_FOR,
                **_bound(contract),
            },
        )
        return [_claimed(row) for row in cursor.fetchall()]


def plans_of_due(source: str, now: datetime) -> set[str]:
    """Codes of the plans behind due events, as far as their subscription rows are known."""
    with connection.cursor() as cursor:
        cursor.execute(_PLANS_OF_DUE, {"source": source, "now": now})
        return {plan for (plan,) in cursor.fetchall()}


def record_results(results: Sequence[EventResult], lease: UUID, now: datetime, fence: Fence | None) -> int:
    """Write down what became of claimed events; only those still under this lease.

    Returns:
        How many were written.
    """
    if not results:
        return 0
    with fenced_transaction("deliver", fence) as cursor:
        cursor.execute(_CREATE_RESULTS)
        with cursor.copy("COPY result FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "text", "text", "text", "text", "timestamptz"])
            for result in results:
                copy.write_row(
                    (
                        result.event_id,
                        result.state,
                        result.reason,
                        result.lago_event_id,
                        msgspec.json.encode(result.answer).decode(),
                        now + result.wait,
                    )
                )
        cursor.execute(_RECORD, {"lease": lease, "now": now})
        sessions = [session_id for (session_id,) in cursor.fetchall()]
        restate_sessions(cursor, sessions)
        return len(sessions)


def restate_sessions(cursor: Any, session_ids: Sequence[int]) -> None:
    """Set the state of sessions to that of their least advanced part, after their events changed."""
    if session_ids:
        cursor.execute(_RESTATE, {"session_ids": list(session_ids)})


def hold_difference(cursor: Any, session_id: int) -> None:
    """The events of a session changed: hold what they do not carry at once, and ask for a decision."""
    cursor.execute(_HOLD_DIFFERENCE, {"session_id": session_id})
    restate_sessions(cursor, [session_id])


def unfinished(source: str) -> int:
    """How many usage events wait to be sent."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM usage_event WHERE source_id = %s AND state = 'queued'", [source])
        (number,) = cursor.fetchone()
        return int(number)


def next_due_at(source: str) -> datetime | None:
    """When the next queued event may be attempted; None when none is queued."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT min(next_attempt_at) FROM usage_event WHERE source_id = %s AND state = 'queued'",
            [source],
        )
        (due_at,) = cursor.fetchone()
        return due_at if due_at is None or isinstance(due_at, datetime) else None


# The subscription row that the event was decided for, still active, its present period covering the
# event, its plan charging the metric. `at` is the alias of lago_subscription, `e` of usage_event.
_OPEN = """
e.metric_code = %(metric_code)s AND e.field_name = %(field_name)s::text
AND at.plan_code = ANY(%(plans)s::text[])
AND at.status = 'active' AND at.external_id = e.external_subscription_id
AND (at.started_at IS NULL OR at.started_at <= e.timestamp) AND at.period_from <= e.timestamp
"""
# ... and Lago said so recently, and the period it spoke of has not ended since.
_FRESH = "at.read_at >= %(fresh)s AND (at.period_to IS NULL OR at.period_to > %(now)s)"
_DUE = """
e.source_id = %(source)s AND e.state = 'queued' AND e.next_attempt_at <= %(now)s
AND (e.lease_until IS NULL OR e.lease_until <= %(now)s)
"""
# An event that a refused batch did not name may just be sent again: Lago says so if it has it.
_RETURNING = """
e.id, e.attempts, e.payload, e.field_name, e.first_attempt_at,
e.answer IS NULL OR e.answer ->> 'outcome' <> 'not named'
"""

_CLAIM = f"""
UPDATE usage_event e SET lease = %(lease)s, lease_until = %(until)s, attempts = attempts + 1,
    first_attempt_at = coalesce(first_attempt_at, %(now)s)
WHERE e.id IN (
    SELECT e.id FROM usage_event e JOIN lago_subscription at ON at.lago_id = e.lago_subscription_id
    WHERE {_DUE} AND {_OPEN} AND {_FRESH}
    ORDER BY e.id LIMIT %(limit)s FOR UPDATE OF e SKIP LOCKED
)
RETURNING {_RETURNING}
"""

_CUSTOMERS_TO_ASK = f"""
SELECT DISTINCT e.external_customer_id FROM usage_event e
LEFT JOIN lago_subscription at ON at.lago_id = e.lago_subscription_id
LEFT JOIN lago_customer_read c ON c.external_id = e.external_customer_id
WHERE {_DUE} AND (
    c.read_at IS NULL OR c.read_at < %(fresh)s OR (at.status = 'active' AND at.period_to <= %(now)s)
)
"""

_PLANS_OF_DUE = f"""
SELECT DISTINCT at.plan_code FROM usage_event e
JOIN lago_subscription at ON at.lago_id = e.lago_subscription_id WHERE {_DUE}
"""

_NOT_OPEN = (
    f"NOT EXISTS (SELECT 1 FROM lago_subscription at WHERE at.lago_id = e.lago_subscription_id AND {_OPEN})"
)
_CUSTOMER_FRESH = """
EXISTS (SELECT 1 FROM lago_customer_read c
    WHERE c.external_id = e.external_customer_id AND c.read_at >= %(fresh)s)
"""

# The session asks for a new decision, which finds the event still unattempted, voids it and holds the
# session as late, or builds the event anew for the row that is open.
_REDECIDE_UNBILLED = f"""
UPDATE charging_session s SET needs_decision = true, asked = asked + 1
WHERE s.id IN (
    SELECT e.session_id FROM usage_event e
    WHERE {_DUE} AND e.attempts = 0 AND e.kind <> 'move' AND {_NOT_OPEN} AND {_CUSTOMER_FRESH}
)
"""

# A move was ordered by a person and is not decided anew: what cannot be sent of it any more is held.
_HOLD_UNBILLED_MOVES = f"""
UPDATE usage_event e SET state = 'held',
    reason = CASE WHEN e.energy_wh < 0 THEN 'refund_by_credit_note' ELSE 'late_period' END
WHERE {_DUE} AND e.attempts = 0 AND e.kind = 'move' AND {_NOT_OPEN} AND {_CUSTOMER_FRESH}
RETURNING e.session_id
"""

_CLAIM_UNBILLED = f"""
UPDATE usage_event e SET lease = %(lease)s, lease_until = %(until)s
WHERE e.id IN (
    SELECT e.id FROM usage_event e
    WHERE {_DUE} AND e.attempts > 0 AND {_NOT_OPEN} AND {_CUSTOMER_FRESH}
    ORDER BY e.id LIMIT %(limit)s FOR UPDATE OF e SKIP LOCKED
)
RETURNING {_RETURNING}
"""

_CREATE_RESULTS = """
CREATE TEMPORARY TABLE IF NOT EXISTS result (
    event_id bigint, state text, reason text, lago_event_id text, answer text, next_attempt_at timestamptz
) ON COMMIT DELETE ROWS
"""

_RECORD = """
UPDATE usage_event e SET
    state = r.state, reason = r.reason, answer = r.answer::jsonb, lease = NULL, lease_until = NULL,
    lago_event_id = coalesce(r.lago_event_id, e.lago_event_id),
    accepted_at = CASE WHEN r.state = 'accepted' THEN %(now)s END,
    next_attempt_at = r.next_attempt_at
FROM result r
WHERE e.id = r.event_id AND e.lease = %(lease)s AND e.state = 'queued'
RETURNING e.session_id
"""

_RESTATE = f"""
UPDATE charging_session s SET state = part.state, reason = part.reason
FROM (
    SELECT DISTINCT ON (session_id) session_id, state, reason FROM (
        SELECT id AS session_id, rest_state AS state, rest_reason AS reason
        FROM charging_session WHERE id = ANY(%(session_ids)s) AND rest_state IS NOT NULL
        UNION ALL
        SELECT session_id, state, reason
        FROM usage_event WHERE session_id = ANY(%(session_ids)s) AND state <> 'void'
    ) each_part ORDER BY session_id, {STATE_RANK_SQL.format(column="state")}
) part
WHERE part.session_id = s.id
  AND (s.state IS DISTINCT FROM part.state OR s.reason IS DISTINCT FROM part.reason)
"""

_HOLD_DIFFERENCE = """
UPDATE charging_session s SET needs_decision = true, asked = asked + 1,
    rest_state = 'held', rest_reason = 'undecided',
    rest_wh = greatest(s.energy_wh, 0) - coalesce((
        SELECT sum(e.energy_wh) FROM usage_event e WHERE e.session_id = s.id AND e.state <> 'void'
    ), 0)
WHERE s.id = %(session_id)s AND s.energy_wh IS NOT NULL
"""
