"""The outbox: claiming usage events, and writing down what became of them. SQL only, no HTTP.

An event is claimed by a committed lease, so no row lock is held while HTTP runs. ``attempts`` is raised
in the same transaction: from then on Lago may know the event, whatever happens to this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from django.db import connection

from ocpp_billing import clock
from ocpp_billing.billing.balance import STATE_RANK_SQL
from ocpp_billing.billing.failures import Failures
from ocpp_billing.billing.models import DeliveryControl
from ocpp_billing.charging.asking import ask_again
from ocpp_billing.database import Fence, fenced_transaction
from ocpp_billing.lago.delivery import SHOWN_WITHIN
from ocpp_billing.lago.directory import FRESH_FOR
from ocpp_billing.lago.wire import UsageEvent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

# Long enough for a batch with its time-outs; a dead worker's leases are broken by the next leader.
LEASE = timedelta(minutes=10)
FIRST_BACKOFF = timedelta(seconds=2)
LONGEST_BACKOFF = timedelta(minutes=30)
# Nothing is put off for longer than this, and no two clocks that are kept are further apart.
LATEST_ATTEMPT, CLOCKS_DIFFER = timedelta(hours=12), timedelta(minutes=5)
_AT_ANY_TIME = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    """An event that this worker may send now.

    Attributes:
        attempts: how often it was claimed to be sent, this time included.
        may_be_known: Lago may hold it already: read it back before it is sent again.
        first_attempt_at: when it was claimed for the first time.
        customer: Lago's external customer id.
        timestamp: the time Lago sees.
        missing_since: since when Lago, with a final invoice of the period, was seen not to hold it.
        is_held: it was claimed only to see how it stands.
        lease_until: it must not be sent later than that: another worker may do it then.
        sent_at: when Lago may last have got it, where that is open; of one that is claimed to be sent, when
            the lease ends.
        alone: it must not be sent with others.
        answer: what became of the attempt before; None = there was none, or it broke off.
    """

    event_id: int
    attempts: int
    event: UsageEvent
    may_be_known: bool
    first_attempt_at: datetime
    customer: str
    timestamp: datetime
    missing_since: datetime | None
    is_held: bool
    lease_until: datetime
    sent_at: datetime | None
    alone: bool
    answer: Mapping[str, Any] | None

    @property
    def failures(self) -> Failures:
        """What it has met so far."""
        return Failures.of(self.answer)


@dataclass(frozen=True, slots=True)
class EventResult:
    """What became of one claimed event.

    Attributes:
        state: ``accepted``, ``rejected``, ``held``, or ``queued`` for another attempt.
        answer: Lago's last words, or ours about what happened.
        reason: of ``held`` and ``rejected``.
        lago_event_id: Lago's id of it; None on the ClickHouse store.
        wait: until the next attempt, when queued, or the next look, when held.
        missing_since: since when Lago, with a final invoice of the period, was seen not to hold it.
        sent_at: when Lago may last have got it; None = it surely has it, or surely has not.
        is_news: False where it stood so before.
    """

    event_id: int
    state: str
    answer: Mapping[str, Any]
    reason: str | None = None
    lago_event_id: str | None = None
    wait: timedelta = timedelta()
    missing_since: datetime | None = None
    sent_at: datetime | None = None
    is_news: bool = True


def break_leases(source: str, fence: Fence | None) -> int:
    """Free what a dead worker had claimed; only the leader does this, at the start of a run.

    What was written while the machine's clock was ahead would wait until that time comes: it is due now.
    """
    with fenced_transaction("break leases", fence) as cursor:
        broken = free_claimed(cursor, source)
        now = clock.now()
        bound = {"source": source, "now": now, "latest": now + LATEST_ATTEMPT, "soon": now + CLOCKS_DIFFER}
        for statement in _OF_A_CLOCK_AHEAD:
            cursor.execute(statement, bound)
        return broken


def free_claimed(cursor: Any, source: str) -> int:
    """End all leases of a source, whose worker is dead; returns how many there were.

    What it had claimed counts as sent until the lease would have ended: it may only sleep.
    """
    freed = 0
    for state in ("queued", "held"):  # each has an index of its own, which a list of both would not use
        cursor.execute(
            "UPDATE usage_event SET lease = NULL, lease_until = NULL"
            f" WHERE source_id = %s AND state = '{state}' AND lease IS NOT NULL",
            [source],
        )
        freed += int(cursor.rowcount)
    return freed


@dataclass(frozen=True, slots=True)
class Contract:
    """What Lago bills at all, as it says now.

    Attributes:
        metric_code: the billable metric.
        field_name: the property it sums; None = it is missing or does not sum, so nothing is billed.
        plans: codes of the plans that charge it.
        alone: codes of those whose events must not be sent with others.
        bills_repeats: Lago may bill an event twice that it gets twice: nothing is sent again before it is
            certain that Lago does not have it.
    """

    metric_code: str
    field_name: str | None
    plans: frozenset[str]
    alone: frozenset[str] = frozenset()
    bills_repeats: bool = False


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
                "sent_before": _sent_before(now, contract),
                **_bound(contract),
            },
        )
        return [_claimed(row) for row in cursor.fetchall()]


def claim_in_doubt(
    source: str, lease: UUID, limit: int, now: datetime, contract: Contract, fence: Fence | None
) -> list[ClaimedEvent]:
    """Claim due events that must not be sent again yet, only to read them back."""
    if not contract.bills_repeats:
        return []
    bound = {
        "source": source,
        "lease": lease,
        "limit": limit,
        "now": now,
        "until": now + LEASE,
        "sent_before": _sent_before(now, contract),
        **_bound(contract),
    }
    with fenced_transaction("claim in doubt", fence) as cursor:
        cursor.execute(_CLAIM_IN_DOUBT, bound)
        return [_claimed(row) for row in cursor.fetchall()]


def _sent_before(now: datetime, contract: Contract) -> datetime:
    """What was sent until then may be sent again."""
    return now - SHOWN_WITHIN if contract.bills_repeats else _AT_ANY_TIME


def _bound(contract: Contract) -> dict[str, Any]:
    return {
        "metric_code": contract.metric_code,
        "field_name": contract.field_name,
        "plans": sorted(contract.plans),
        "alone": sorted(contract.alone),
        "bills_repeats": contract.bills_repeats,
    }


def _claimed(row: tuple[Any, ...]) -> ClaimedEvent:
    event_id, attempts, payload, field_name, unsettled, *others, answer = row
    event = UsageEvent.from_payload(payload, field_name)
    # Django has cursors give JSON as text.
    others.append(None if answer is None else msgspec.json.decode(answer))
    return ClaimedEvent(event_id, attempts, event, attempts > 1 and unsettled, *others)


def customers_to_ask(source: str, now: datetime) -> set[str]:
    """Customers of due events whose subscription was read too long ago, or whose period has ended since."""
    with connection.cursor() as cursor:
        cursor.execute(_CUSTOMERS_TO_ASK, {"source": source, "now": now, "fresh": now - FRESH_FOR})
        return {customer for (customer,) in cursor.fetchall()}


def set_aside_unbilled(source: str, now: datetime, contract: Contract, fence: Fence | None) -> int:
    """Take out of the queue what Lago would not bill (any more), by a fresh answer of Lago.

    What was never attempted is voided and its session decided anew: late, not charged, or by another
    subscription row. What Lago may know already is read back, and only then held; what was held so and
    would be billed again is queued again.
    """
    bound = {"source": source, "now": now, "fresh": now - FRESH_FOR, **_bound(contract)}
    with fenced_transaction("set aside unbilled", fence) as cursor:
        for statement in (_HOLD_UNBILLED_MOVES, _QUEUE_AGAIN):
            cursor.execute(statement, bound)
            restate_sessions(cursor, [session_id for (session_id,) in cursor.fetchall()])
        return ask_again(cursor, _UNBILLED, bound)


def claim_attempted_unbilled(
    source: str, lease: UUID, limit: int, now: datetime, contract: Contract, fence: Fence | None
) -> list[ClaimedEvent]:
    """Claim events of unknown outcome that Lago would not bill any more, only to read them back.

    Those that were held then are looked at again and again, until it is certain what has become of them.
    """
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


def last_taken_at(source: str) -> datetime | None:
    """When Lago last took an event that was sent to it, as far as that was noted."""
    return DeliveryControl.objects.filter(source_id=source).values_list("event_taken_at", flat=True).first()


def note_taken(source: str, taken_at: datetime, fence: Fence | None) -> None:
    """Note when Lago last took an event that was sent to it."""
    with fenced_transaction("note taken", fence) as cursor:
        cursor.execute(
            "UPDATE delivery_control SET event_taken_at = %s WHERE source_id = %s", [taken_at, source]
        )


def record_results(
    results: Sequence[EventResult],
    lease: UUID,
    now: datetime,
    fence: Fence | None,
    *,
    lock_sessions: bool = False,
) -> int:
    """Write down what became of claimed events; only those still under this lease.

    Args:
        results: of events.
        lease: under which they were claimed.
        now: when.
        fence: the run.
        lock_sessions: before the events, as a person does who orders something about held ones.

    Returns:
        How many were written.
    """
    if not results:
        return 0
    with fenced_transaction("deliver", fence) as cursor:
        if lock_sessions:
            cursor.execute(_LOCK_SESSIONS_OF, {"ids": [result.event_id for result in results]})
        cursor.execute(
            _RECORD,
            {
                "lease": lease,
                "now": now,
                "ids": [result.event_id for result in results],
                "states": [result.state for result in results],
                "reasons": [result.reason for result in results],
                "lago_ids": [result.lago_event_id for result in results],
                "answers": [msgspec.json.encode(result.answer).decode() for result in results],
                "next_attempts": [now + result.wait for result in results],
                "missing_since": [result.missing_since for result in results],
                "sent_at": [result.sent_at for result in results],
            },
        )
        sessions = [session_id for (session_id,) in cursor.fetchall()]
        restate_sessions(cursor, sessions)
        return len(sessions)


def put_off_looks(
    tried: Sequence[int], untried: Sequence[int], lease: UUID, again_at: datetime, fence: Fence | None
) -> None:
    """Give back events that were claimed to be looked for, and that Lago said nothing about.

    Args:
        tried: of these it was asked in vain: they come after the others, and not before ``again_at``.
        untried: it was not asked about these.
        lease: under which they were claimed.
        again_at: when.
        fence: the run.
    """
    if not tried and not untried:
        return
    with fenced_transaction("put off looks", fence) as cursor:
        cursor.execute(
            "UPDATE usage_event SET lease = NULL, lease_until = NULL,"
            " next_attempt_at = CASE WHEN id = ANY(%(tried)s::bigint[]) THEN %(again_at)s"
            " ELSE next_attempt_at END"
            " WHERE id = ANY(%(ids)s::bigint[]) AND lease = %(lease)s",
            {"tried": list(tried), "ids": [*tried, *untried], "lease": lease, "again_at": again_at},
        )


def give_up_events(
    event_ids: Sequence[int],
    *,
    states: Sequence[str],
    answer: Mapping[str, Any],
    now: datetime,
    fence: Fence | None,
    lease: UUID | None = None,
    in_lago: bool = False,
) -> int:
    """Void events that Lago does not bill and could not bill any more (:mod:`billing.late`).

    What they carried is held, and the sessions are decided anew. A move was ordered by a person and is not
    decided anew: it stays held, and can be excluded.

    Args:
        event_ids: which.
        states: only those still in one of them, and under this lease.
        answer: what is known about them.
        now: when they are given up.
        fence: the run.
        lease: None = they are not claimed.
        in_lago: Lago has them, and its final invoice does not count them.

    Returns:
        How many were given up.
    """
    bound = {
        "ids": list(event_ids),
        "states": list(states),
        "lease": lease,
        "answer": msgspec.json.encode(answer).decode(),
        "now": now,
        "in_lago": in_lago,
    }
    with fenced_transaction("give up", fence) as cursor:
        cursor.execute(_LOCK_SESSIONS_OF, bound)
        cursor.execute(_GIVE_UP, bound)
        given_up = cursor.fetchall()
        hold_differences(cursor, [session_id for session_id, voided in given_up if voided])
        restate_sessions(cursor, [session_id for session_id, _ in given_up])
        return len(given_up)


def restate_sessions(cursor: Any, session_ids: Sequence[int]) -> None:
    """Set the state of sessions to that of their least advanced part, after their events changed."""
    if session_ids:
        cursor.execute(_RESTATE, {"session_ids": list(session_ids)})


def hold_differences(cursor: Any, session_ids: Sequence[int]) -> None:
    """The events of sessions changed: hold what they do not carry at once, and ask for decisions.

    The caller holds the locks of the sessions.
    """
    if session_ids:
        cursor.execute(_HOLD_DIFFERENCES, {"session_ids": list(session_ids)})
        restate_sessions(cursor, session_ids)


def unfinished(source: str) -> int:
    """How many usage events wait to be sent, or to be seen in Lago."""
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


# Times that this machine's clock can only have written when it was ahead.
_OF_A_CLOCK_AHEAD = (
    """
    UPDATE usage_event SET next_attempt_at = %(now)s, first_attempt_at = least(first_attempt_at, %(now)s),
        sent_at = least(sent_at, %(now)s)
    WHERE source_id = %(source)s AND state = 'queued' AND next_attempt_at > %(latest)s
    """,
    """
    UPDATE usage_event SET next_attempt_at = %(now)s, first_attempt_at = least(first_attempt_at, %(now)s),
        sent_at = least(sent_at, %(now)s)
    WHERE source_id = %(source)s AND state = 'held' AND next_attempt_at > %(latest)s
    """,
    """
    UPDATE usage_event SET accepted_at = %(now)s
    WHERE source_id = %(source)s AND state = 'accepted' AND accepted_at > %(soon)s
    """,
    # What Lago said of a subscription is asked again; a row that it does not name any more goes then.
    "UPDATE lago_subscription SET read_at = 'epoch' WHERE read_at > %(soon)s",
    "DELETE FROM lago_customer_read WHERE read_at > %(soon)s",
)

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
# What Lago does not have, or may get again.
_SENDABLE = "(e.sent_at IS NULL OR e.sent_at <= %(sent_before)s)"
# What Lago may know and was seen not to hold: in the queue, or held until it is certain.
_UNSETTLED = """
e.source_id = %(source)s AND e.next_attempt_at <= %(now)s AND e.attempts > 0
AND (e.lease_until IS NULL OR e.lease_until <= %(now)s)
AND (e.state = 'queued' OR (e.state = 'held' AND e.answer ->> 'outcome' = 'not found'))
"""
# An event that a refused batch did not name may just be sent again, where Lago says so if it has it.
_RETURNING = """
e.id, e.attempts, e.payload, e.field_name,
%(bills_repeats)s OR e.answer IS NULL OR e.answer ->> 'outcome' <> 'not named',
e.first_attempt_at, e.external_customer_id, e.timestamp, e.missing_since, e.state = 'held', e.lease_until,
e.sent_at,
EXISTS (
    SELECT 1 FROM lago_subscription at
    WHERE at.lago_id = e.lago_subscription_id AND at.plan_code = ANY(%(alone)s::text[])
),
e.answer
"""

# In the order of the index of the queue, and the subscription asked for event by event: so each batch reads
# its own events, however long the queue is. Of a join PostgreSQL expects so few rows that it reads and sorts
# the whole queue for each batch.
# ARRAY(...) is found once. In a join PostgreSQL may find the next portion anew for each event, if it takes
# the table for nearly empty, and claim more than one batch may hold.
#
# What was ordered since the decision is asked anew here, because a run goes on while people act: nothing is
# claimed while delivery is paused, and an event that Lago never saw waits while its session asks for another
# decision (it was excluded, mapped otherwise, or stopped before the instant of going live).
_CLAIM = f"""
UPDATE usage_event e SET lease = %(lease)s, lease_until = %(until)s, attempts = attempts + 1,
    first_attempt_at = coalesce(first_attempt_at, %(now)s), sent_at = %(until)s, missing_since = NULL
WHERE e.id = ANY(ARRAY(
    SELECT e.id FROM usage_event e
    WHERE {_DUE} AND {_SENDABLE} AND (
        SELECT {_OPEN} AND {_FRESH} FROM lago_subscription at WHERE at.lago_id = e.lago_subscription_id
    )
    AND (e.attempts > 0 OR NOT (SELECT s.needs_decision FROM charging_session s WHERE s.id = e.session_id))
    AND NOT EXISTS (
        SELECT 1 FROM delivery_control c WHERE c.source_id = %(source)s AND c.paused_at IS NOT NULL
    )
    ORDER BY e.next_attempt_at, e.id LIMIT %(limit)s FOR UPDATE OF e SKIP LOCKED
))
RETURNING {_RETURNING}
"""

_CUSTOMERS_TO_ASK = f"""
SELECT DISTINCT e.external_customer_id FROM usage_event e
LEFT JOIN lago_subscription at ON at.lago_id = e.lago_subscription_id
LEFT JOIN lago_customer_read c ON c.external_id = e.external_customer_id
WHERE ({_DUE} OR {_UNSETTLED}) AND (
    c.read_at IS NULL OR c.read_at < %(fresh)s OR (at.status = 'active' AND at.period_to <= %(now)s)
)
"""

_PLANS_OF_DUE = f"""
SELECT DISTINCT at.plan_code FROM usage_event e
JOIN lago_subscription at ON at.lago_id = e.lago_subscription_id WHERE {_DUE} OR {_UNSETTLED}
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
_UNBILLED = f"""
s.id IN (
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

# The plan charges the metric again, for example.
_QUEUE_AGAIN = f"""
UPDATE usage_event e SET state = 'queued', reason = NULL, missing_since = NULL
WHERE e.id = ANY(ARRAY(
    SELECT e.id FROM usage_event e JOIN lago_subscription at ON at.lago_id = e.lago_subscription_id
    WHERE e.state = 'held' AND {_UNSETTLED} AND {_OPEN} AND {_FRESH}
    ORDER BY e.id FOR UPDATE OF e SKIP LOCKED
))
RETURNING e.session_id
"""

_CLAIM_IN_DOUBT = f"""
UPDATE usage_event e SET lease = %(lease)s, lease_until = %(until)s
WHERE e.id = ANY(ARRAY(
    SELECT e.id FROM usage_event e
    WHERE {_DUE} AND NOT {_SENDABLE}
    ORDER BY e.next_attempt_at, e.id LIMIT %(limit)s FOR UPDATE OF e SKIP LOCKED
))
RETURNING {_RETURNING}
"""

_CLAIM_UNBILLED = f"""
UPDATE usage_event e SET lease = %(lease)s, lease_until = %(until)s
WHERE e.id = ANY(ARRAY(
    SELECT e.id FROM usage_event e
    WHERE {_UNSETTLED} AND {_NOT_OPEN} AND {_CUSTOMER_FRESH}
    ORDER BY e.next_attempt_at, e.id LIMIT %(limit)s FOR UPDATE OF e SKIP LOCKED
))
RETURNING {_RETURNING}
"""

# A batch is small: lists cost less than a temporary table, which is emptied at every commit. And PostgreSQL
# sees how many there are: it looks each up by its id instead of reading the whole table for their lease.
_RECORD = """
UPDATE usage_event e SET
    state = r.state, reason = r.reason, answer = r.answer::jsonb, lease = NULL, lease_until = NULL,
    lago_event_id = coalesce(r.lago_event_id, e.lago_event_id),
    accepted_at = CASE WHEN r.state = 'accepted' THEN %(now)s END,
    next_attempt_at = r.next_attempt_at, missing_since = r.missing_since, sent_at = r.sent_at
FROM unnest(
    %(ids)s::bigint[], %(states)s::text[], %(reasons)s::text[], %(lago_ids)s::text[], %(answers)s::text[],
    %(next_attempts)s::timestamptz[], %(missing_since)s::timestamptz[], %(sent_at)s::timestamptz[]
) r (event_id, state, reason, lago_event_id, answer, next_attempt_at, missing_since, sent_at)
WHERE e.id = r.event_id AND e.lease = %(lease)s AND e.state IN ('queued', 'held')
RETURNING e.session_id
"""

# In the order in which decisions lock them, so that neither waits for the other in a ring.
_LOCK_SESSIONS_OF = """
SELECT s.id FROM charging_session s
WHERE s.id IN (SELECT session_id FROM usage_event WHERE id = ANY(%(ids)s::bigint[])) ORDER BY s.id FOR UPDATE
"""

_GIVE_UP = """
UPDATE usage_event e SET
    state = CASE WHEN e.kind = 'move' THEN 'held' ELSE 'void' END,
    reason = CASE WHEN e.kind = 'move' THEN
        CASE WHEN e.energy_wh < 0 THEN 'refund_by_credit_note' ELSE 'late_period' END END,
    given_up_at = %(now)s, turned_up_at = CASE WHEN %(in_lago)s THEN %(now)s::timestamptz END,
    answer = %(answer)s::jsonb, accepted_at = NULL, lease = NULL, lease_until = NULL,
    next_attempt_at = %(now)s + interval '1 day'
WHERE e.id = ANY(%(ids)s::bigint[]) AND e.state = ANY(%(states)s) AND e.lease IS NOT DISTINCT FROM %(lease)s
RETURNING e.session_id, e.state = 'void'
"""

# `start_wh = s.start_wh` changes nothing. Of an UPDATE that touches no column of the generated `energy_wh`
# PostgreSQL (18, too) reads its expression anew for every row, only to find that it is not needed.
_RESTATE = f"""
UPDATE charging_session s SET start_wh = s.start_wh, state = part.state, reason = part.reason
FROM (
    SELECT DISTINCT ON (session_id) session_id, state, reason FROM (
        SELECT id AS session_id, rest_state AS state, rest_reason AS reason
        FROM charging_session WHERE id = ANY(%(session_ids)s::bigint[]) AND rest_state IS NOT NULL
        UNION ALL
        SELECT session_id, state, reason
        FROM usage_event WHERE session_id = ANY(%(session_ids)s::bigint[]) AND state <> 'void'
    ) each_part ORDER BY session_id, {STATE_RANK_SQL.format(column="state")}, reason
) part
WHERE part.session_id = s.id
  AND (s.state IS DISTINCT FROM part.state OR s.reason IS DISTINCT FROM part.reason)
"""

_HOLD_DIFFERENCES = """
UPDATE charging_session s SET needs_decision = true, asked = asked + 1,
    rest_state = 'held', rest_reason = 'undecided',
    rest_wh = greatest(s.energy_wh, 0) - coalesce((
        SELECT sum(e.energy_wh) FROM usage_event e WHERE e.session_id = s.id AND e.state <> 'void'
    ), 0)
WHERE s.id = ANY(%(session_ids)s::bigint[]) AND s.energy_wh IS NOT NULL
"""
