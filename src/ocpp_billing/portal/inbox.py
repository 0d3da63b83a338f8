"""What needs a person, by cause: read for the page "Needs attention". Counts by SQL, rows by pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from django.db.models import Exists, OuterRef, Q

from ocpp_billing.billing.models import Decision, Ruling, UsageEvent
from ocpp_billing.billing.uncounted import IS_UNCOUNTED_SQL
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.charging.order import NEWEST_FIRST
from ocpp_billing.database import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from django.db.models import QuerySet

    from ocpp_billing.accounts.models import User

STATES = ("held", "stuck", "rejected")
# So many clusters of a cause are listed on the inbox; the group's own page has all its sessions.
CLUSTERS_SHOWN = 5
# So long the inbox offers to take an order back.
UNDO_FOR = timedelta(minutes=30)
ORDERS_SHOWN = 3

# By what a cause is mended: one tag is mapped, one customer gets a subscription, one charger is repaired.
BY_TAG = ("unmapped_tag", "mapping_inactive", "identity_conflict")
BY_CUSTOMER = (
    "no_subscription",
    "ambiguous_subscription",
    "metric_not_charged",
    "late_period",
    "changed_after_billing",
    "refund_by_credit_note",
    "conflict_in_lago",
    "charged_twice",
)


def dimension_of(state: str, reason: str | None) -> str:
    """What the sessions of a cause are told apart by: ``tag``, ``customer`` or ``charge_box``."""
    if reason in BY_TAG:
        return "tag"
    return "customer" if state == "rejected" or reason in BY_CUSTOMER else "charge_box"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Sessions of one cause that one act settles.

    Attributes:
        key: number of the tag, Lago's external id of the customer, or the charge box; None = not known.
        name: what it is called.
        evidence_wh: of stuck sessions, what their meters last said.
        says: what the latest decision, or Lago about its event, says about one of them.
        sample: the number of that one.
        period_to: when the billing period of the customer ends.
    """

    key: str | None
    name: str | None
    sessions: int
    energy_wh: int
    evidence_wh: int
    says: str
    sample: int
    period_to: datetime | None


@dataclass(slots=True)
class Cause:
    """All sessions that wait for one reason, in clusters with most energy first."""

    state: str
    reason: str | None
    sessions: int
    energy_wh: int
    evidence_wh: int
    since: datetime | None
    clusters_in_all: int
    period_to: datetime | None
    clusters: list[Cluster] = field(default_factory=list)

    @property
    def dimension(self) -> str:
        """What the clusters are."""
        return dimension_of(self.state, self.reason)

    @property
    def at_stake_wh(self) -> int:
        """What is not billed, or billed too much."""
        return abs(self.energy_wh) + self.evidence_wh

    def urgency(self, now: datetime) -> float:
        """What to rank by: what is lost per day that is left to act."""
        left_s = (self.period_to - now).total_seconds() if self.period_to else 30 * 86400
        return self.at_stake_wh / max(left_s / 86400, 1)


# Reasons whose energy may lie in an event and not in the rest; all others never were an event, and none is
# looked up for them: with a hundred thousand sessions that wait, looking up is what takes the time.
_IN_EVENTS = (
    "('refund_by_credit_note', 'late_period', 'conflict_in_lago', 'charged_twice', 'changed_after_billing')"
)

# Sessions about which a person has ordered something already, which the next run carries out.
_ORDERED = """
SELECT s.id FROM charging_session s JOIN ruling r ON r.session_id = s.id
WHERE s.source_id = %(source)s AND s.needs_decision AND r.revoked_at IS NULL AND r.at >= coalesce(
    (SELECT max(d.decided_at) FROM decision d WHERE d.session_id = s.id), '-infinity')
"""

# Read as sets that are joined, not row by row: with a hundred thousand sessions that wait, looking each up
# takes half as long again. OFFSET 0 hides from PostgreSQL what the keys are made of; it would take nearly
# every session for a group of its own, and sort them all.
_CAUSES = f"""
WITH ordered AS MATERIALIZED ({_ORDERED}), decided AS (
    SELECT DISTINCT ON (d.session_id) d.session_id, d.external_customer_id
    FROM charging_session s JOIN decision d ON d.session_id = s.id
    WHERE s.source_id = %(source)s AND s.state = ANY(%(states)s)
        AND (s.state = 'rejected' OR s.reason = ANY(%(by_customer)s))
    ORDER BY d.session_id, d.id DESC
), sent AS (
    SELECT e.session_id,
        coalesce(sum(e.energy_wh) FILTER (WHERE e.state IN ('held', 'rejected')), 0)::bigint AS energy_wh,
        (array_agg(e.external_customer_id ORDER BY e.n DESC) FILTER (WHERE e.state <> 'void'))[1]
            AS external_customer_id
    FROM charging_session s JOIN usage_event e ON e.session_id = s.id
    WHERE s.source_id = %(source)s AND s.state = ANY(%(states)s)
        AND (s.rest_state IS NULL OR s.reason IN {_IN_EVENTS})
    GROUP BY e.session_id
), cluster AS (
    SELECT state, reason, key, count(*) AS sessions, sum(energy_wh)::bigint AS energy_wh,
        sum(evidence_wh)::bigint AS evidence_wh, min(since) AS since, max(id) AS sample
    FROM (
        SELECT s.id, s.state, s.reason, coalesce(s.stop_seen_at, s.stuck_since, s.first_seen_at) AS since,
            CASE WHEN s.rest_state = 'held' THEN s.rest_wh ELSE 0 END + coalesce(e.energy_wh, 0) AS energy_wh,
            CASE WHEN s.state = 'stuck'
                THEN coalesce(greatest((s.evidence ->> 'stop_wh')::bigint - s.start_wh, 0), 0)
                ELSE 0 END AS evidence_wh,
            CASE WHEN s.reason = ANY(%(by_tag)s) THEN s.id_tag_id::text
                WHEN s.state = 'rejected' OR s.reason = ANY(%(by_customer)s)
                THEN coalesce(e.external_customer_id, d.external_customer_id)
                ELSE s.charge_box_id END COLLATE "C" AS key
        FROM charging_session s
        LEFT JOIN decided d ON d.session_id = s.id LEFT JOIN sent e ON e.session_id = s.id
        WHERE s.source_id = %(source)s AND s.state = ANY(%(states)s)
            AND s.id NOT IN (SELECT o.id FROM ordered o)
        OFFSET 0
    ) waiting
    GROUP BY state, reason, key
), placed AS (
    SELECT *, row_number() OVER (
            PARTITION BY state, reason ORDER BY abs(energy_wh) + evidence_wh DESC, sessions DESC, key
        ) AS place,
        count(*) OVER cause AS clusters, (sum(sessions) OVER cause)::bigint AS all_sessions,
        (sum(energy_wh) OVER cause)::bigint AS all_wh,
        (sum(evidence_wh) OVER cause)::bigint AS all_evidence_wh, min(since) OVER cause AS all_since
    FROM cluster WINDOW cause AS (PARTITION BY state, reason)
)
SELECT p.state, p.reason, p.all_sessions, p.all_wh, p.all_evidence_wh, p.all_since, p.clusters,
    p.key, coalesce(t.text, c.name, p.key), p.sessions, p.energy_wh, p.evidence_wh,
    coalesce(
        (SELECT e.answer ->> 'says' FROM usage_event e
         WHERE e.session_id = p.sample AND e.state = p.state AND p.state = 'held' AND e.reason = p.reason
         ORDER BY e.n DESC LIMIT 1),
        (SELECT d.says FROM decision d WHERE d.session_id = p.sample ORDER BY d.id DESC LIMIT 1), ''),
    p.sample,
    (SELECT min(l.period_to) FROM lago_subscription l
     WHERE l.external_customer_id = p.key AND l.status = 'active' AND l.period_to > %(now)s)
FROM placed p
LEFT JOIN id_tag t ON p.reason = ANY(%(by_tag)s) AND t.id::text = p.key
LEFT JOIN lago_customer c ON (p.state = 'rejected' OR p.reason = ANY(%(by_customer)s))
    AND c.external_id = p.key
WHERE p.place <= %(shown)s
ORDER BY p.state, p.reason, p.place
"""


def read_causes(source: str, now: datetime) -> list[Cause]:
    """What needs a person, most urgent first."""
    next_end = next_period_end(now)
    causes: dict[tuple[str, str | None], Cause] = {}
    bound = {
        "source": source,
        "states": list(STATES),
        "by_tag": list(BY_TAG),
        "by_customer": list(BY_CUSTOMER),
        "shown": CLUSTERS_SHOWN,
        "now": now,
    }
    for state, reason, sessions, energy_wh, evidence_wh, since, in_all, *cluster in read_rows(_CAUSES, bound):
        cause = causes.setdefault(
            (state, reason),
            Cause(state, reason, sessions, energy_wh, evidence_wh, since, in_all, period_to=None),
        )
        cause.clusters.append(Cluster(*cluster))
    for cause in causes.values():
        if cause.reason != "late_period":
            known = [cluster.period_to for cluster in cause.clusters if cluster.period_to]
            cause.period_to = min(known) if known else next_end
    return sorted(
        causes.values(), key=lambda cause: (-cause.urgency(now), -cause.sessions, cause.reason or "")
    )


def next_period_end(now: datetime) -> datetime | None:
    """When the first of all running billing periods ends, as far as Lago was asked."""
    ((period_to,),) = read_rows(
        "SELECT min(period_to) FROM lago_subscription WHERE status = 'active' AND period_to > %(now)s",
        {"now": now},
    )
    return cast("datetime | None", period_to)


def count_ordered(source: str) -> int:
    """Sessions about which an order was given that the next run carries out."""
    ((number,),) = read_rows(
        f"SELECT count(DISTINCT id) FROM ({_ORDERED}) ordered",
        {"source": source},
    )
    return int(number)


def count_waiting(source: str) -> int:
    """Sessions that wait for a person, by the counters of the balance: as cheap at a million as at ten."""
    ((number,),) = read_rows(
        "SELECT coalesce(sum(sessions), 0) FROM balance_delta WHERE source_id = %(source)s"
        " AND kind = 'stated' AND state = ANY(%(states)s) AND reason IS DISTINCT FROM 'undecided'",
        {"source": source, "states": list(STATES)},
    )
    return int(number) + count_uncounted(source)


def count_uncounted(source: str) -> int:
    """Sessions that wait for nothing but that Lago counts what it took of them."""
    ((number,),) = read_rows(
        "SELECT count(DISTINCT s.id) FROM usage_event e JOIN charging_session s ON s.id = e.session_id"
        f" WHERE e.source_id = %(source)s AND {IS_UNCOUNTED_SQL} AND s.state <> ALL(%(states)s)",
        {"source": source, "states": list(STATES)},
    )
    return int(number)


# -- the sessions of a cause --------------------------------------------------------------------------------


def waiting_sessions(
    source: str,
    state: str,
    reason: str | None,
    *,
    tag: int | None,
    customer: str | None,
    charge_box: str | None,
) -> QuerySet[ChargingSession]:
    """The sessions of a cause, or of one cluster of it, newest first."""
    sessions = ChargingSession.objects.filter(source_id=source, state=state, reason=reason)
    sessions = sessions.order_by(*NEWEST_FIRST)
    if tag is not None:
        sessions = sessions.filter(id_tag_id=tag)
    if charge_box is not None:
        sessions = sessions.filter(charge_box_id=charge_box)
    if customer is not None:
        last_event = UsageEvent.objects.filter(session=OuterRef("pk")).exclude(state="void").order_by("-n")
        last_decision = Decision.objects.filter(session=OuterRef("pk")).order_by("-pk")
        sessions = sessions.alias(
            event_customer=last_event.values("external_customer_id")[:1],
            decided_customer=last_decision.values("external_customer_id")[:1],
        ).filter(
            Q(event_customer=customer) | Q(event_customer__isnull=True, decided_customer=customer or None)
        )
    return sessions.exclude(
        Q(needs_decision=True)
        & Exists(
            Ruling.objects.filter(session=OuterRef("pk"), revoked_at=None).exclude(
                Exists(Decision.objects.filter(session=OuterRef("session_id"), decided_at__gt=OuterRef("at")))
            )
        )
    )


@dataclass(frozen=True, slots=True)
class Behind:
    """What is behind a session in a list: its latest decision, who pays, and Lago's last words.

    Attributes:
        says: the latest decision.
        customer: who pays.
        answer: Lago's last words, or ours about them.
        is_event_held: it waits for what Lago made of its event, not for what was decided.
    """

    says: str
    customer: str | None
    answer: dict[str, Any] | None
    is_event_held: bool = False

    @property
    def why(self) -> str:
        """Why it waits, in words: what the decision says, or what became of the event."""
        said = (self.answer or {}).get("says") if self.is_event_held else None
        return str(said or self.says)


def read_behind(sessions: Iterable[ChargingSession]) -> dict[int, Behind]:
    """Decision, payer and Lago's last words of sessions, by their number, in two queries."""
    standing = {session.pk: (session.state, session.reason) for session in sessions}
    ids = list(standing)
    decisions = {
        decision.session_id: decision
        for decision in Decision.objects.filter(session__in=ids)
        .order_by("session_id", "-pk")
        .distinct("session_id")
    }
    events = {
        event.session_id: event
        for event in UsageEvent.objects.filter(session__in=ids)
        .exclude(state="void")
        .order_by("session_id", "-n")
        .distinct("session_id")
    }
    behind = {}
    for session_id in ids:
        decision, event = decisions.get(session_id), events.get(session_id)
        payer = event or decision
        behind[session_id] = Behind(
            says=decision.says if decision else "",
            customer=payer.external_customer_id if payer else None,
            answer=event.answer if event else None,
            is_event_held=event is not None and (event.state, event.reason) == standing[session_id],
        )
    return behind


# -- what was just ordered ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ordered:
    """Orders that a person gave together a moment ago.

    Attributes:
        first: number of the first ruling.
        last: number of the last one.
        revocable: something of it can still be taken back.
    """

    kind: str
    note: str
    first: int
    last: int
    sessions: int
    energy_wh: int
    steve_id: int
    at: datetime
    revocable: bool


_RECENT = """
SELECT r.kind, r.note, min(r.id), max(r.id), count(*), sum(greatest(s.energy_wh, 0))::bigint, min(s.steve_id),
    max(r.at), bool_or(r.kind = 'credit' OR NOT EXISTS (
        SELECT FROM usage_event e WHERE e.session_id = s.id AND CASE WHEN r.kind = 'exclude'
            THEN e.given_up_at IS NOT NULL
            ELSE e.state <> 'void' AND e.attempts > 0 AND e.created_at >= r.at END
    ))
FROM ruling r JOIN charging_session s ON s.id = r.session_id
WHERE r.user_id = %(user)s AND r.revoked_at IS NULL AND r.at > %(since)s AND s.source_id = %(source)s
GROUP BY r.kind, r.note, date_trunc('minute', r.at)
ORDER BY max(r.at) DESC LIMIT %(shown)s
"""


def recently_ordered(source: str, user: User, now: datetime) -> list[Ordered]:
    """What this person ordered a moment ago, newest first."""
    bound = {"source": source, "user": user.pk, "since": now - UNDO_FOR, "shown": ORDERS_SHOWN}
    return [Ordered(*row) for row in read_rows(_RECENT, bound)]


def rulings_of(user: User, kind: str, note: str, first: int, last: int, now: datetime) -> Sequence[int]:
    """Numbers of the rulings that :class:`Ordered` stands for."""
    rulings = Ruling.objects.filter(
        user=user, kind=kind, note=note, pk__range=(first, last), revoked_at=None, at__gt=now - UNDO_FOR
    )
    return list(rulings.order_by("session_id").values_list("pk", flat=True))
