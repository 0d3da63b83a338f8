"""Usage events that Lago took and that cannot be confirmed, because it counts less or more than was sent.

Confirmation is for all events of a period: one that Lago counts too little or too much leaves all of them
unconfirmed, so what is at stake is the difference, and their own energy only where Lago shows no count.

They stay accepted. Why they are not confirmed is written down by :mod:`billing.confirm`, a day after Lago
took them, and is over as soon as they are confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocpp_billing.database import read_rows

if TYPE_CHECKING:
    from datetime import datetime

    from ocpp_billing.billing.models import UsageEvent

# So many subscriptions are named.
NAMED = 20


@dataclass(frozen=True, slots=True)
class Uncounted:
    """Usage events of one subscription that Lago took and that cannot be confirmed.

    Attributes:
        customer: Lago's external id.
        name: what the customer is called; the id where that is not known.
        subscription: Lago's external id.
        energy_wh: of the events.
        missing_wh: what Lago counts too little of what it was sent.
        surplus_wh: what it counts too much.
        unknown_wh: energy of events of periods for which Lago shows no count.
        accepted_at: when Lago took the first of them.
        says: why they are not confirmed, with what Lago counts, as it was last told.
    """

    customer: str
    name: str
    subscription: str
    events: int
    sessions: int
    energy_wh: int
    missing_wh: int
    surplus_wh: int
    unknown_wh: int
    accepted_at: datetime
    says: str

    @property
    def at_stake_wh(self) -> int:
        """What may be billed wrongly."""
        return self.missing_wh + self.surplus_wh + self.unknown_wh


@dataclass(frozen=True, slots=True)
class UncountedInAll:
    """All of them; ``subscriptions`` are the :data:`NAMED` with the most at stake."""

    events: int
    sessions: int
    missing_wh: int
    surplus_wh: int
    unknown_wh: int
    subscriptions: list[Uncounted]

    @property
    def at_stake_wh(self) -> int:
        """What may be billed wrongly."""
        return self.missing_wh + self.surplus_wh + self.unknown_wh


def read_uncounted(source: str) -> UncountedInAll:
    """What Lago took and cannot be confirmed, most at stake first. Cheap where there is nothing."""
    rows = read_rows(_UNCOUNTED, {"source": source, "named": NAMED})
    events, sessions, missing_wh, surplus_wh, unknown_wh = map(int, rows[0][:5]) if rows else [0] * 5
    subscriptions = [Uncounted(*row[5:]) for row in rows]
    return UncountedInAll(events, sessions, missing_wh, surplus_wh, unknown_wh, subscriptions)


def is_uncounted(event: UsageEvent) -> bool:
    """Whether Lago took it and does not count it, as far as was found: :data:`IS_UNCOUNTED_SQL`."""
    return (
        event.state == "accepted"
        and event.uncounted_since is not None
        and event.accepted_at is not None
        and event.uncounted_since >= event.accepted_at
    )


# Of a usage event e. What was told of an earlier acceptance says nothing.
IS_UNCOUNTED_SQL = (
    "e.state = 'accepted' AND e.uncounted_since IS NOT NULL AND e.uncounted_since >= e.accepted_at"
)

# A session has one payer, but for one that was moved. The difference is of a whole period: it is taken once,
# as it was last told.
_UNCOUNTED = f"""
WITH uncounted AS (
    SELECT e.* FROM usage_event e WHERE e.source_id = %(source)s AND {IS_UNCOUNTED_SQL}
), period AS (
    SELECT external_customer_id, external_subscription_id, count(*) AS events,
        sum(energy_wh)::bigint AS energy_wh, min(accepted_at) AS accepted_at,
        (array_agg(uncounted_wh ORDER BY uncounted_told_at DESC NULLS LAST, uncounted_wh NULLS LAST))[1]
            AS missing_wh,
        (array_agg(uncounted_says ORDER BY uncounted_told_at DESC NULLS LAST, uncounted_wh NULLS LAST, id))[1]
            AS says
    FROM uncounted GROUP BY 1, 2, metric_code, lago_subscription_id, period_from
), subscription AS (
    SELECT p.external_customer_id, p.external_subscription_id, sum(p.events)::bigint AS events,
        (SELECT count(DISTINCT u.session_id) FROM uncounted u
            WHERE u.external_customer_id = p.external_customer_id
              AND u.external_subscription_id = p.external_subscription_id) AS sessions,
        sum(p.energy_wh)::bigint AS energy_wh,
        sum(greatest(coalesce(p.missing_wh, 0), 0))::bigint AS missing_wh,
        sum(greatest(-coalesce(p.missing_wh, 0), 0))::bigint AS surplus_wh,
        sum(CASE WHEN p.missing_wh IS NULL THEN abs(p.energy_wh) ELSE 0 END)::bigint AS unknown_wh,
        min(p.accepted_at) AS accepted_at,
        (array_agg(p.says ORDER BY p.accepted_at))[1] AS says
    FROM period p GROUP BY 1, 2
)
SELECT (SELECT count(*) FROM uncounted), (SELECT count(DISTINCT session_id) FROM uncounted),
    (SELECT sum(missing_wh)::bigint FROM subscription), (SELECT sum(surplus_wh)::bigint FROM subscription),
    (SELECT sum(unknown_wh)::bigint FROM subscription),
    s.external_customer_id, coalesce(c.name, s.external_customer_id), s.external_subscription_id, s.events,
    s.sessions, s.energy_wh, s.missing_wh, s.surplus_wh, s.unknown_wh, s.accepted_at, s.says
FROM subscription s LEFT JOIN lago_customer c ON c.external_id = s.external_customer_id
ORDER BY s.missing_wh + s.surplus_wh + s.unknown_wh DESC, s.external_subscription_id LIMIT %(named)s
"""
