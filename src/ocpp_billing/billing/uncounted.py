"""Usage events that Lago took and does not count: what nobody would be billed for, and nobody would miss.

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
    """Usage events of one subscription that Lago took and does not count.

    Attributes:
        customer: Lago's external id.
        name: what the customer is called; the id where that is not known.
        subscription: Lago's external id.
        accepted_at: when Lago took the first of them.
        says: why the first of them is not confirmed, with what Lago counts.
    """

    customer: str
    name: str
    subscription: str
    events: int
    sessions: int
    energy_wh: int
    accepted_at: datetime
    says: str


@dataclass(frozen=True, slots=True)
class UncountedInAll:
    """All of them; ``subscriptions`` are the :data:`NAMED` with the most energy."""

    events: int
    sessions: int
    energy_wh: int
    subscriptions: list[Uncounted]


def read_uncounted(source: str) -> UncountedInAll:
    """What Lago took and does not count, most energy first. Cheap where there is nothing."""
    rows = read_rows(_UNCOUNTED, {"source": source, "named": NAMED})
    events, sessions, energy_wh = map(int, rows[0][:3]) if rows else (0, 0, 0)
    return UncountedInAll(events, sessions, energy_wh, [Uncounted(*row[3:]) for row in rows])


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

# A session has one payer, but for one that was moved.
_UNCOUNTED = f"""
WITH uncounted AS (
    SELECT e.* FROM usage_event e WHERE e.source_id = %(source)s AND {IS_UNCOUNTED_SQL}
), subscription AS (
    SELECT external_customer_id, external_subscription_id, count(*) AS events,
        count(DISTINCT session_id) AS sessions, sum(energy_wh)::bigint AS energy_wh,
        min(accepted_at) AS accepted_at,
        (array_agg(uncounted_says ORDER BY accepted_at, id))[1] AS says
    FROM uncounted GROUP BY 1, 2
)
SELECT (SELECT count(*) FROM uncounted), (SELECT count(DISTINCT session_id) FROM uncounted),
    (SELECT sum(energy_wh)::bigint FROM uncounted),
    s.external_customer_id, coalesce(c.name, s.external_customer_id), s.external_subscription_id, s.events,
    s.sessions, s.energy_wh, s.accepted_at, s.says
FROM subscription s LEFT JOIN lago_customer c ON c.external_id = s.external_customer_id
ORDER BY abs(s.energy_wh) DESC, s.external_subscription_id LIMIT %(named)s
"""
