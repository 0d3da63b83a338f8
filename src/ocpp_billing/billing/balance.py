"""Every watt-hour accounted for: what was read against what the states hold.

Two independent sums. *Read* comes from the registers of the sessions as StEvE gave them. *States* come
from the parts: ``rest_wh`` of a session (what no usage event carries) and the energy of its usage events.
They are written by different statements, so a lost, doubled or half-written part shows as a difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from django.db import connection

from ocpp_billing.charging.models import SessionState

# The least advanced part names the session: the order of the enum is the order of the ledger.
STATE_RANK_SQL = (
    "array_position(ARRAY['open','stuck','held','rejected','queued','accepted','confirmed','excluded'], "
    "{column}::text)"
)


@dataclass(slots=True)
class Amount:
    """A number of sessions and their energy."""

    sessions: int = 0
    energy_wh: int = 0

    def to_json(self) -> dict[str, int]:
        """As in ``ocpp-billing balance --json``."""
        return {"sessions": self.sessions, "energy_wh": self.energy_wh}


@dataclass(slots=True)
class Balance:
    """The balance of one source.

    ``states`` always has all eight states, in the ledger's order; ``negative`` are sessions whose stop
    register lies below the start register: they count 0 Wh in every sum, their own (negative) sum is here.
    """

    read: Amount
    states: dict[str, Amount]
    reasons: dict[str, Amount]
    negative: Amount
    malformed: int
    unexplained: Amount = field(default_factory=Amount)

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing balance --json``."""
        return {
            "read": self.read.to_json(),
            "states": {state: amount.to_json() for state, amount in self.states.items()},
            "reasons": {reason: amount.to_json() for reason, amount in self.reasons.items()},
            "negative": self.negative.to_json(),
            "malformed": self.malformed,
            "unexplained": self.unexplained.to_json(),
        }


# What was read: from the registers alone.
_READ = """
SELECT count(*), coalesce(sum(greatest(energy_wh, 0)), 0),
       count(*) FILTER (WHERE energy_wh < 0), coalesce(sum(energy_wh) FILTER (WHERE energy_wh < 0), 0)
FROM charging_session WHERE source_id = %(source)s
"""

# What the parts hold: energy by state and reason, without looking at the registers.
_PARTS = """
SELECT state, reason, sum(energy_wh)::bigint FROM (
    SELECT rest_state AS state, rest_reason AS reason, rest_wh AS energy_wh
    FROM charging_session WHERE source_id = %(source)s AND rest_state IS NOT NULL
    UNION ALL
    SELECT state, reason, energy_wh FROM usage_event WHERE source_id = %(source)s AND state <> 'void'
) part GROUP BY state, reason
"""

# Sessions are counted once, under their least advanced part.
_SESSIONS = """
SELECT state, reason, count(*) FROM charging_session WHERE source_id = %(source)s GROUP BY state, reason
"""

# Sessions whose stored state is not what their parts say, or that have no part at all.
_MISSTATED = f"""
SELECT count(*) FROM charging_session s
LEFT JOIN (
    SELECT session_id, min({STATE_RANK_SQL.format(column="state")}) AS rank
    FROM usage_event WHERE source_id = %(source)s AND state <> 'void' GROUP BY session_id
) event ON event.session_id = s.id
WHERE s.source_id = %(source)s
  AND {STATE_RANK_SQL.format(column="s.state")}
      IS DISTINCT FROM least({STATE_RANK_SQL.format(column="s.rest_state")}, event.rank)
"""

_MALFORMED = "SELECT count(*) FROM malformed_row WHERE source_id = %(source)s AND resolved_at IS NULL"


def read_balance(source: str) -> Balance:
    """Add up the ledger of one source, in full.

    All sums are taken from one snapshot, so a running worker does not show as a difference.
    """
    bound = {"source": source}
    with connection.cursor() as cursor:
        alone = not connection.in_atomic_block
        if alone:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            cursor.execute(_READ, bound)
            sessions, energy_wh, negative, negative_wh = cursor.fetchone()
            cursor.execute(_PARTS, bound)
            parts = cursor.fetchall()
            cursor.execute(_SESSIONS, bound)
            counted = cursor.fetchall()
            cursor.execute(_MISSTATED, bound)
            (misstated,) = cursor.fetchone()
            cursor.execute(_MALFORMED, bound)
            (malformed,) = cursor.fetchone()
        finally:
            if alone:
                cursor.execute("ROLLBACK")
    states = {state.value: Amount() for state in SessionState}
    reasons: dict[str, Amount] = {}
    for state, reason, part_wh in parts:
        states[state].energy_wh += part_wh
        if reason:
            reasons.setdefault(reason, Amount()).energy_wh += part_wh
    for state, reason, number in counted:
        states[state].sessions += number
        if reason:
            reasons.setdefault(reason, Amount()).sessions += number
    return Balance(
        read=Amount(sessions, int(energy_wh)),
        states=states,
        reasons=dict(sorted(reasons.items())),
        negative=Amount(negative, int(negative_wh)),
        malformed=malformed,
        unexplained=Amount(misstated, int(energy_wh) - sum(amount.energy_wh for amount in states.values())),
    )
