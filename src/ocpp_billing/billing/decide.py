"""Step 3, decide: every new or changed stopped session becomes bill, hold or exclude.

The decision itself is pure (:mod:`rules`, :mod:`mappings.resolve`, :mod:`lago.contract`,
:func:`events.settle`). This module reads what it needs in bulk, and writes the decision and the usage
event (the outbox row, with its payload frozen) in one transaction. A session that changed between the
reading and the writing keeps asking and is decided in the next round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from ocpp_billing.billing.balance import STATE_RANK_SQL
from ocpp_billing.billing.events import (
    EventFacts,
    EventForm,
    KnownEvent,
    Settlement,
    build_event,
    build_transaction_id,
    settle,
)
from ocpp_billing.billing.rules import SessionFacts, judge_session
from ocpp_billing.billing.taking_back import leaves_enough
from ocpp_billing.billing.twins import Twin, has_others, keep_apart, lock_twins, read_twins
from ocpp_billing.charging.clocks import CLOCK_TOLERANCE
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.clock import now as clock_now
from ocpp_billing.database import Fence, bulk_cursor, fenced_transaction, refresh_statistics
from ocpp_billing.energy import say_kwh
from ocpp_billing.lago.contract import Chosen, NotBilled, choose_subscription
from ocpp_billing.mappings.resolve import Inactive, Mapped, MappingInterval, Unmapped, resolve_mapping
from ocpp_billing.mappings.store import load_family

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from ocpp_billing.billing.rules import Limits
    from ocpp_billing.lago.contract import SubscriptionRow
    from ocpp_billing.lago.directory import LagoDirectory
    from ocpp_billing.lago.wire import UsageEvent
    from ocpp_billing.mappings.store import Family

CHUNK_SESSIONS = 2_000
# So many new rows make a table another one for PostgreSQL's planner; from then on every doubling does.
GROWN_MUCH = 1_000
# No reason to leave a session out that was billed: what it says now is a correction, down to 0.
TOO_LITTLE = frozenset({Reason.ZERO_ENERGY, Reason.BELOW_MINIMUM})
# A person's word that a session is billed here, whatever another source has of it.
TWINS_ACCEPTED = frozenset({Reason.KNOWN_BY_ANOTHER_SOURCE, Reason.BILLED_BY_ANOTHER_SOURCE})
# Beyond every register: an approved correction has no limit.
NO_LIMIT_WH = 2**63 - 1


@dataclass(frozen=True, slots=True)
class DecisionPolicy:
    """What decisions depend on besides the session: settings and the go-live instant.

    Attributes:
        go_live_at: sessions that stopped before are excluded; None = shadow mode, nothing is.
        go_live_is_given: ``BILLING_START`` says so, and not a person who may go live at any moment.
    """

    source: str
    metric_code: str
    limits: Limits
    late_policy: str
    max_auto_correction_wh: int
    send_id_tag: bool
    go_live_at: datetime | None
    go_live_is_given: bool = False


@dataclass(slots=True)
class DecideCounts:
    """How many sessions were decided, by outcome; ``queued`` counts new usage events."""

    decided: int = 0
    queued: int = 0
    held: int = 0
    excluded: int = 0


@dataclass(frozen=True, slots=True)
class Rulings:
    """What people ordered about a session, as far as it is in force for its present revision.

    Attributes:
        excluded: the note of an exclusion; None = not excluded.
        accepted: reasons that are overridden.
        payer: (customer, subscription or None) that a person chose; None = the mapping decides.
    """

    excluded: str | None = None
    accepted: frozenset[Reason] = frozenset()
    payer: tuple[str, str | None] | None = None


class Overlaps(NamedTuple):
    """StEvE ids of other stopped, sane sessions on the connector; the lowest of each kind.

    Attributes:
        in_both: its time and its register range both intersect the session's.
        in_time: only its time does (a stop that came late).
        in_register: only its register range does (a meter that was reset).
    """

    in_both: int | None = None
    in_time: int | None = None
    in_register: int | None = None

    def flags(self) -> list[dict[str, Any]]:
        """What is worth saying and holds nothing back: honest sessions overlap in one of the two."""
        kinds = (("time_overlap", self.in_time), ("register_overlap", self.in_register))
        return [{"kind": kind, "with": other} for kind, other in kinds if other is not None]


@dataclass(slots=True)
class _Session:
    """A session to decide, with what the ledger knows around it."""

    session_id: int
    revision: int
    asked: int
    steve_id: int
    fingerprint: bytes
    id_tag_id: int
    id_tag: str
    charge_box_id: str
    connector_id: int
    facts: SessionFacts
    next_n: int
    events: list[KnownEvent]
    sent_to: tuple[str, str] | None
    rulings: Rulings
    flags: list[dict[str, Any]]
    twin: Twin | None

    @property
    def started_at(self) -> datetime:
        """When it started; where StEvE lost that and a person accepted the session, when it stopped."""
        return self.facts.started_at or self.facts.stopped_at


@dataclass(slots=True)
class _Judged:
    """A decision about a session, ready to be written."""

    session: _Session
    outcome: str
    reason: Reason | None = None
    says: str = ""
    mapping: MappingInterval | None = None
    chosen: Chosen | None = None
    event_at: datetime | None = None
    settlement: Settlement = field(default_factory=Settlement)
    event: UsageEvent | None = None


def decide_sessions(
    read_policy: Callable[[], DecisionPolicy], directory: LagoDirectory, fence: Fence | None
) -> DecideCounts:
    """Decide every session of the source that asks for it.

    Args:
        read_policy: what decisions depend on; asked again when somebody went live in the meantime.
        directory: what Lago bills.
        fence: the run; None = nobody else decides.

    Raises:
        LagoError: when Lago has to be asked and cannot be; what was decided before stays decided.
        FenceError: when another worker has taken over.
    """
    counts = DecideCounts()
    policy = read_policy()
    after = -1
    grown = 0
    while sessions := _read_sessions(policy, after):
        judged = _judge_all(sessions, policy, directory)
        if not _write(judged, policy, counts, fence):
            policy = read_policy()
            continue
        after = sessions[-1].session_id
        if counts.decided >= 2 * grown + GROWN_MUCH:
            refresh_statistics("usage_event", "decision")
            grown = counts.decided
    return counts


# -- judging: pure but for what the directory asks Lago --------------------------------------------


def _judge_all(
    sessions: Sequence[_Session], policy: DecisionPolicy, directory: LagoDirectory
) -> list[_Judged]:
    """Judge a chunk: rules first, then who pays, then what Lago would do with the event."""
    family = load_family({session.id_tag_id for session in sessions})
    judged = [_judge_rules(session, policy, family) for session in sessions]
    customers = {_payer(item)[0] for item in judged if item.outcome == "bill"}
    rows = directory.rows_of(customers, clock_now()) if customers else {}
    charges = directory.charges(row for of_customer in rows.values() for row in of_customer)
    for item in judged:
        if item.outcome == "bill":
            _judge_subscription(item, policy, rows, charges)
        _settle(item, policy, directory)
    return judged


def _judge_rules(session: _Session, policy: DecisionPolicy, family: Family) -> _Judged:
    """A person's exclusion, the rules, then the mapping valid at the start of the session."""
    rulings = session.rulings
    if rulings.excluded is not None:
        return _Judged(session, "exclude", Reason.BY_OPERATOR, rulings.excluded)
    accepted = rulings.accepted | (TOO_LITTLE if session.sent_to is not None else frozenset())
    if Reason.BILLED_BY_ANOTHER_SOURCE in accepted:
        accepted |= {Reason.KNOWN_BY_ANOTHER_SOURCE}
    verdict = judge_session(session.facts, policy.limits, policy.go_live_at, accepted)
    if verdict is not None:
        return _Judged(session, verdict.outcome, verdict.reason, verdict.says)
    if session.sent_to is not None or rulings.payer is not None:
        return _Judged(session, "bill")
    started_at = session.started_at
    match resolve_mapping(session.id_tag_id, started_at, family.mappings, family.parents):
        case Mapped(mapping=mapping):
            return _Judged(session, "bill", mapping=mapping)
        case Inactive(mapping=mapping):
            says = f"the mapping to {mapping.customer} was switched off at {started_at:%F %T} UTC"
            return _Judged(session, "hold", Reason.MAPPING_INACTIVE, says, mapping)
        case Unmapped():
            says = f"no mapping of the tag or a parent was valid at {started_at:%F %T} UTC"
            return _Judged(session, "hold", Reason.UNMAPPED_TAG, says)


def _payer(item: _Judged) -> tuple[str, str | None]:
    """Customer and subscription that pay. What Lago may know already stays where it was sent."""
    if item.session.sent_to is not None:
        return item.session.sent_to
    if item.session.rulings.payer is not None:
        return item.session.rulings.payer
    assert item.mapping is not None  # noqa: S101 - billed without having been sent = by a mapping
    return item.mapping.customer, item.mapping.subscription


def _judge_subscription(
    item: _Judged,
    policy: DecisionPolicy,
    rows: Mapping[str, Sequence[SubscriptionRow]],
    charges: Mapping[str, Any],
) -> None:
    """Find the subscription row that bills the event, at the stop or, by policy or as a correction, now."""
    customer, subscription = _payer(item)
    stopped_at = item.session.facts.stopped_at
    may_be_dated_now = (
        policy.late_policy == "current_period"
        or item.session.sent_to is not None
        or Reason.LATE_PERIOD in item.session.rulings.accepted
    )
    for event_at in (stopped_at, clock_now()) if may_be_dated_now else (stopped_at,):
        found = choose_subscription(
            rows[customer],
            charges,
            event_at,
            customer=customer,
            subscription=subscription,
            metric_code=policy.metric_code,
        )
        match found:
            case Chosen():
                item.chosen, item.event_at = found, event_at
                item.outcome, item.reason, item.says = "bill", None, ""
                return
            case NotBilled(reason=reason, says=says):
                item.outcome, item.reason, item.says = "hold", reason, says
                if reason is not Reason.LATE_PERIOD:
                    return


def _settle(item: _Judged, policy: DecisionPolicy, directory: LagoDirectory) -> None:
    """Work out the parts, and build the usage event if there is one to send."""
    session = item.session
    item.settlement = settle(
        energy_wh=session.facts.energy_wh,
        outcome=item.outcome,
        reason=item.reason,
        form=_form(item, policy, directory),
        events=session.events,
        max_auto_correction_wh=(
            NO_LIMIT_WH
            if Reason.CHANGED_AFTER_BILLING in session.rulings.accepted
            else policy.max_auto_correction_wh
        ),
        negative_is_honoured=lambda energy_wh: _is_honoured(item, energy_wh, policy, directory),
    )
    if item.settlement.rest_state == "held" and item.reason != item.settlement.rest_reason:
        item.outcome, item.reason = "hold", item.settlement.rest_reason
        item.says = f"{say_kwh(item.settlement.rest_wh)} kWh differ from what was sent to Lago" + (
            f"; {item.says}" if item.says else ""
        )
    if item.settlement.bill_wh is None:
        return
    facts = session.facts
    assert item.chosen and item.event_at and directory.field_name  # noqa: S101, PT018
    item.event = build_event(
        EventFacts(
            transaction_id=build_transaction_id(
                policy.source, session.steve_id, session.fingerprint, session.next_n
            ),
            external_subscription_id=item.chosen.row.external_id,
            metric_code=policy.metric_code,
            field_name=directory.field_name,
            energy_wh=item.settlement.bill_wh,
            timestamp=item.event_at,
            charge_box_id=session.charge_box_id,
            connector_id=session.connector_id,
            started_at=session.started_at,
            stopped_at=facts.stopped_at,
            steve_transaction_id=session.steve_id,
            id_tag=session.id_tag,
            send_id_tag=policy.send_id_tag,
        )
    )


def _form(item: _Judged, policy: DecisionPolicy, directory: LagoDirectory) -> EventForm | None:
    if item.chosen is None or directory.field_name is None:
        return None
    row = item.chosen.row
    return EventForm(row.lago_id, policy.metric_code, directory.field_name, row.period_from)


def _is_honoured(item: _Judged, energy_wh: int, policy: DecisionPolicy, directory: LagoDirectory) -> bool:
    """Whether Lago would count a negative event in full.

    The period of the session must still be open, charged in arrears, and hold enough.
    """
    chosen = item.chosen
    if chosen is None or chosen.charge.pay_in_advance or item.event_at != item.session.facts.stopped_at:
        return False
    return leaves_enough(policy.source, chosen.row, energy_wh, directory)


# -- reading ----------------------------------------------------------------------------------------


def _read_sessions(policy: DecisionPolicy, after: int) -> list[_Session]:
    """The next chunk of sessions that ask for a decision, in the order of their discovery.

    Five plain queries by the ids of the chunk: each stays quick however large the tables and however old
    their statistics are.
    """
    return _read(_SELECT_SESSIONS, {"source": policy.source, "after": after, "limit": CHUNK_SESSIONS}, policy)


def read_facts(session_id: int, policy: DecisionPolicy) -> tuple[SessionFacts, Rulings] | None:
    """What a decision about a session would judge by now, and what people ordered; None = no stop yet."""
    found = _read(_SELECT_SESSION, {"source": policy.source, "id": session_id}, policy)
    return (found[0].facts, found[0].rulings) if found else None


def _read(sql: str, chosen: dict[str, Any], policy: DecisionPolicy) -> list[_Session]:
    with bulk_cursor() as cursor:
        cursor.execute(sql, chosen)
        rows = cursor.fetchall()
        bound: dict[str, Any] = {
            "ids": [row[0] for row in rows],
            "longest": timedelta(hours=float(policy.limits.max_session_hours)),
            "tolerance": CLOCK_TOLERANCE,
        }
        cursor.execute(_SELECT_OVERLAPS, bound)
        overlaps = {session_id: Overlaps(*others) for session_id, *others in cursor.fetchall()}
        cursor.execute(_SELECT_EVENTS, bound)
        events = _by_session(cursor.fetchall())
        cursor.execute(_SELECT_RULINGS, bound)
        rulings = _by_session(cursor.fetchall())
        twins = read_twins(cursor, bound["ids"])
    return [
        _session(
            row,
            overlaps.get(row[0], Overlaps()),
            events.get(row[0], []),
            rulings.get(row[0], []),
            twins.get(row[0]),
        )
        for row in rows
    ]


def _by_session(rows: Sequence[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
    grouped: dict[int, list[tuple[Any, ...]]] = {}
    for session_id, *values in rows:
        grouped.setdefault(session_id, []).append(tuple(values))
    return grouped


def _session(
    row: tuple[Any, ...],
    overlaps: Overlaps,
    events: Sequence[tuple[Any, ...]],
    rulings: Sequence[tuple[Any, ...]],
    twin: Twin | None,
) -> _Session:
    (
        session_id, revision, asked, steve_id, fingerprint, id_tag_id, id_tag, charge_box_id, connector_id,
        started_at, start_wh, stopped_at, stop_wh, stop_actor, first_seen_at, stop_seen_at,
        latest_lower_start_at, identity_conflict, evidence_stop_wh,
    ) = row  # fmt: skip
    known = [
        KnownEvent(event_id, energy_wh, fixed, EventForm(*form))
        for _, state, event_id, energy_wh, fixed, _, _, *form in events
        if state != "void"
    ]
    sent_to = [
        (customer, subscription)
        for _, state, _, energy_wh, fixed, customer, subscription, *_ in events
        if state != "void" and fixed and energy_wh > 0
    ]
    # What Lago may know already goes on by this name: its corrections are no second bill.
    against = (
        twin if twin is not None and twin.holds and not any(event.attempted for event in known) else None
    )
    return _Session(
        session_id=session_id,
        revision=revision,
        asked=asked,
        steve_id=steve_id,
        fingerprint=bytes(fingerprint),
        id_tag_id=id_tag_id,
        id_tag=id_tag,
        charge_box_id=charge_box_id,
        connector_id=connector_id,
        facts=SessionFacts(
            started_at=started_at,
            start_wh=start_wh,
            stopped_at=stopped_at,
            stop_wh=stop_wh,
            manual_stop=stop_actor == "manual",
            first_seen_at=first_seen_at,
            stop_seen_at=stop_seen_at,
            latest_lower_start_at=latest_lower_start_at,
            overlaps=overlaps.in_both,
            identity_conflict=identity_conflict,
            evidence_stop_wh=evidence_stop_wh,
            known_elsewhere=against.says() if against is not None else None,
            was_sent_elsewhere=against is not None and against.was_sent,
        ),
        next_n=max((n for n, *_ in events), default=0) + 1,
        events=known,
        sent_to=sent_to[-1] if sent_to else None,
        rulings=_rulings(revision, rulings),
        flags=overlaps.flags(),
        twin=twin,
    )


def _rulings(revision: int, rows: Sequence[Sequence[Any]]) -> Rulings:
    """What is in force, from rows of (kind, revision, reason, customer, subscription, note), oldest first.

    The last word about a revision counts: an acceptance takes an earlier exclusion back, and the other way.
    """
    excluded: str | None = None
    accepted: set[Reason] = set()
    payer: tuple[str, str | None] | None = None
    for kind, about_revision, reason, customer, subscription, note in rows:
        if kind == "assign":
            payer = (customer, subscription)
        elif about_revision == revision and kind == "exclude":
            excluded = note
        elif about_revision == revision and kind == "accept":
            excluded = None
            accepted.add(Reason(reason))
    return Rulings(excluded, frozenset(accepted), payer)


# A person's reading stands for the stop that StEvE does not have.
_SESSION_COLUMNS = """
SELECT s.id, s.revision, s.asked, s.steve_id, s.fingerprint, s.id_tag_id, s.id_tag_text, s.charge_box_id,
    s.connector_id, s.started_at, s.start_wh,
    coalesce(s.reading_stopped_at, s.stopped_at), coalesce(s.reading_stop_wh, s.stop_wh),
    CASE WHEN s.reading_stopped_at IS NULL THEN s.stop_actor ELSE 'reading' END,
    s.first_seen_at, coalesce(s.stop_seen_at, s.reading_stopped_at, s.stopped_at), s.latest_lower_start_at,
    t.identity_conflict, (s.evidence ->> 'stop_wh')::bigint
FROM charging_session s
JOIN id_tag t ON t.id = s.id_tag_id
WHERE s.source_id = %(source)s AND (s.stopped_at IS NOT NULL OR s.reading_stopped_at IS NOT NULL)
"""
_SELECT_SESSIONS = f"""
{_SESSION_COLUMNS} AND s.needs_decision AND s.id > %(after)s ORDER BY s.id LIMIT %(limit)s
"""
_SELECT_SESSION = f"{_SESSION_COLUMNS} AND s.id = %(id)s"

# Overlap is looked for only among sane sessions that started less than the longest session before or
# after, so that the index on the connector answers it however long the history is. A charger that counts
# from 0 in every session is not worth a flag in each.
_SELECT_OVERLAPS = """
SELECT s.id, other.in_both, other.in_time, other.in_register
FROM charging_session s
CROSS JOIN LATERAL (
    SELECT coalesce(s.reading_stopped_at, s.stopped_at) AS at, coalesce(s.reading_stop_wh, s.stop_wh) AS wh
) stop
CROSS JOIN LATERAL (
    SELECT min(o.steve_id) FILTER (WHERE o.meets_in_time AND o.meets_in_register) AS in_both,
        min(o.steve_id) FILTER (WHERE o.meets_in_time AND NOT o.meets_in_register) AS in_time,
        min(o.steve_id) FILTER (
            WHERE o.meets_in_register AND NOT o.meets_in_time AND greatest(o.start_wh, s.start_wh) > 0
        ) AS in_register
    FROM (
        SELECT o.steve_id, o.start_wh,
            o.started_at < stop.at AND o.stopped_at > s.started_at AS meets_in_time,
            o.start_wh < stop.wh AND o.stop_wh > s.start_wh AS meets_in_register
        FROM charging_session o
        WHERE o.source_id = s.source_id AND o.charge_box_id = s.charge_box_id
          AND o.connector_id = s.connector_id AND o.id <> s.id AND o.superseded_at IS NULL
          AND o.started_at > s.started_at - %(longest)s AND o.started_at < stop.at + %(longest)s
          AND o.stopped_at > o.started_at AND o.stop_wh > o.start_wh
          AND o.started_at <= o.first_seen_at + %(tolerance)s
          AND o.stopped_at <= o.stop_seen_at + %(tolerance)s
    ) o
    WHERE o.meets_in_time OR o.meets_in_register
) other
WHERE s.id = ANY(%(ids)s::bigint[]) AND stop.wh > s.start_wh AND stop.at > s.started_at
  AND coalesce(other.in_both, other.in_time, other.in_register) IS NOT NULL
"""

# What Lago may know, and what a person ordered, is fixed: it is not taken back.
_SELECT_EVENTS = """
SELECT session_id, n, state, id, energy_wh, attempts > 0 OR kind IN ('move', 'credit'),
    external_customer_id, external_subscription_id, lago_subscription_id, metric_code, field_name,
    period_from
FROM usage_event WHERE session_id = ANY(%(ids)s::bigint[]) ORDER BY session_id, n
"""

_SELECT_RULINGS = """
SELECT session_id, kind, revision, reason, customer_external_id, subscription_external_id, note
FROM ruling WHERE session_id = ANY(%(ids)s::bigint[]) AND revoked_at IS NULL ORDER BY session_id, id
"""


# -- writing ----------------------------------------------------------------------------------------


def _write(
    judged: Sequence[_Judged], policy: DecisionPolicy, counts: DecideCounts, fence: Fence | None
) -> bool:
    """Write a chunk of decisions and their usage events, all or none.

    Returns:
        False, and nothing is written, when somebody went live since the policy was read. Whoever does that
        afterwards waits for this transaction, and finds its sessions to ask again.
    """
    with fenced_transaction("decide", fence) as cursor:
        if not policy.go_live_is_given and _locked_go_live(cursor, policy.source) != policy.go_live_at:
            return False
        # Whether a session has a twin was read before Lago was asked: one may have come since.
        may_be_known_twice = any(item.event is not None for item in judged) and has_others(
            cursor, policy.source
        )
        if may_be_known_twice:
            lock_twins(cursor)
        cursor.execute(_CREATE_JUDGED)
        with cursor.copy("COPY judged FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(_JUDGED_TYPES)
            for item in judged:
                copy.write_row(_record(item))
        now = clock_now()
        bound = {"source": policy.source, "metric_code": policy.metric_code, "now": now}
        cursor.execute(_DROP_OUTDATED)
        if may_be_known_twice:
            keep_apart(cursor, now)
        cursor.execute(_VOID_EVENTS)
        cursor.execute(_INSERT_DECISIONS, bound)
        cursor.execute(_INSERT_EVENTS, bound)
        counts.queued += cursor.rowcount
        cursor.execute(_UPDATE_SESSIONS)
        for outcome, number in cursor.fetchall():
            counts.decided += number
            counts.held += number if outcome == "hold" else 0
            counts.excluded += number if outcome == "exclude" else 0
    return True


def _locked_go_live(cursor: Any, source: str) -> datetime | None:
    """From when on sessions are billed; it stays so until the transaction ends."""
    live_from = "SELECT live_from FROM delivery_control WHERE source_id = %s FOR SHARE"
    cursor.execute(live_from, [source])
    if (found := cursor.fetchone()) is None:
        cursor.execute(
            "INSERT INTO delivery_control (source_id) VALUES (%s) ON CONFLICT DO NOTHING", [source]
        )
        cursor.execute(live_from, [source])
        found = cursor.fetchone()
    return cast("datetime | None", found[0])


def _record(item: _Judged) -> tuple[Any, ...]:
    session, settlement, chosen = item.session, item.settlement, item.chosen
    event = item.event
    return (
        session.session_id,
        session.revision,
        session.asked,
        item.outcome,
        None if item.reason is None else str(item.reason),
        item.says,
        session.facts.energy_wh,
        item.mapping.mapping_id if item.mapping else None,
        chosen.row.external_customer_id if chosen else (item.mapping.customer if item.mapping else None),
        chosen.row.external_id if chosen else None,
        list(settlement.void),
        settlement.rest_state,
        None if settlement.rest_reason is None else str(settlement.rest_reason),
        settlement.rest_wh,
        session.next_n if event else None,
        event.transaction_id if event else None,
        "correction" if settlement.correction else "original",
        chosen.row.lago_id if chosen else None,
        chosen.row.period_from if chosen else None,
        chosen.row.period_to if chosen else None,
        event.value_field if event else None,
        settlement.bill_wh,
        item.event_at,
        msgspec.json.encode(event.to_payload()).decode() if event else None,
        msgspec.json.encode(session.flags).decode(),
        not TWINS_ACCEPTED.isdisjoint(session.rulings.accepted),
        Reason.BILLED_BY_ANOTHER_SOURCE in session.rulings.accepted,
    )


_CREATE_JUDGED = """
CREATE TEMPORARY TABLE IF NOT EXISTS judged (
    session_id bigint, revision int, asked int, outcome text, reason text, says text, energy_wh bigint,
    mapping_id bigint, external_customer_id text, external_subscription_id text,
    void bigint[], rest_state text, rest_reason text, rest_wh bigint,
    n int, transaction_id text, kind text, lago_subscription_id text,
    period_from timestamptz, period_to timestamptz, field_name text, bill_wh bigint,
    event_at timestamptz, payload text, flags text, takes_over bool, bills_twice bool
) ON COMMIT DELETE ROWS
"""
_JUDGED_TYPES = [
    *("int8", "int4", "int4", "text", "text", "text", "int8"),
    *("int8", "text", "text", "int8[]", "text", "text", "int8"),
    *("int4", "text", "text", "text", "timestamptz", "timestamptz", "text", "int8", "timestamptz", "text"),
    *("text", "bool", "bool"),
]

# A session that changed, or whose mapping changed, since it was read is left for the next round. The
# row locks keep it as it is until this transaction ends. An event that delivery has claimed since then
# is no longer "never attempted": that session waits, too.
_DROP_OUTDATED = """
WITH current AS (
    SELECT s.id FROM charging_session s JOIN judged j ON j.session_id = s.id
    WHERE s.revision = j.revision AND s.asked = j.asked AND s.needs_decision
      AND NOT EXISTS (
          SELECT 1 FROM usage_event e WHERE e.id = ANY(j.void) AND (e.attempts > 0 OR e.state <> 'queued')
      )
    ORDER BY s.id FOR UPDATE OF s
)
DELETE FROM judged WHERE session_id NOT IN (SELECT id FROM current)
"""

_VOID_EVENTS = """
UPDATE usage_event SET state = 'void'
FROM (SELECT unnest(void) AS id FROM judged) voided WHERE usage_event.id = voided.id AND attempts = 0
"""

# The same decision again writes nothing: a held session that is looked at every night has one row.
_INSERT_DECISIONS = """
INSERT INTO decision (
    session_id, revision, outcome, reason, says, energy_wh, mapping_id,
    external_customer_id, external_subscription_id, decided_at
)
SELECT j.session_id, j.revision, j.outcome, j.reason, j.says, j.energy_wh, j.mapping_id,
    j.external_customer_id, j.external_subscription_id, %(now)s
FROM judged j
LEFT JOIN LATERAL (
    SELECT * FROM decision d WHERE d.session_id = j.session_id ORDER BY d.id DESC LIMIT 1
) d ON true
WHERE d.id IS NULL OR j.bill_wh IS NOT NULL
   OR (d.revision, d.outcome, d.says) <> (j.revision, j.outcome, j.says)
   OR d.reason IS DISTINCT FROM j.reason OR d.mapping_id IS DISTINCT FROM j.mapping_id
"""

_INSERT_EVENTS = """
INSERT INTO usage_event (
    source_id, session_id, decision_id, n, transaction_id, kind, external_customer_id,
    external_subscription_id, lago_subscription_id, period_from, period_to, metric_code, field_name,
    energy_wh, timestamp, payload, state, next_attempt_at, created_at
)
SELECT %(source)s, j.session_id, (
        SELECT max(id) FROM decision d WHERE d.session_id = j.session_id
    ), j.n, j.transaction_id, j.kind, j.external_customer_id,
    j.external_subscription_id, j.lago_subscription_id, j.period_from, j.period_to,
    %(metric_code)s, j.field_name, j.bill_wh, j.event_at, j.payload, 'queued', %(now)s, %(now)s
FROM judged j WHERE j.bill_wh IS NOT NULL
ORDER BY j.session_id
"""

# The least advanced part names the session: a held rest comes before events, an excluded one after them.
# `start_wh = s.start_wh` is for speed, as in outbox._RESTATE.
_UPDATE_SESSIONS = f"""
WITH updated AS (
    UPDATE charging_session s SET
        start_wh = s.start_wh, needs_decision = false, flags = j.flags::jsonb,
        rest_state = j.rest_state, rest_reason = j.rest_reason, rest_wh = j.rest_wh,
        state = part.state, reason = part.reason
    FROM judged j JOIN LATERAL (
        SELECT state, reason FROM (
            SELECT j.rest_state AS state, j.rest_reason AS reason WHERE j.rest_state IS NOT NULL
            UNION ALL
            SELECT e.state, e.reason FROM usage_event e
            WHERE e.session_id = j.session_id AND e.state <> 'void'
        ) each_part ORDER BY {STATE_RANK_SQL.format(column="state")}, reason LIMIT 1
    ) part ON true
    WHERE s.id = j.session_id
    RETURNING j.outcome
)
SELECT outcome, count(*) FROM updated GROUP BY outcome
"""
