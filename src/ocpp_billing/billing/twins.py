"""One StEvE transaction that two ``STEVE_SOURCE`` know: whichever bills it first, the other one holds it.

After a pilot under another name, or a renamed source, the same session (number, charge box, connector, tag,
start) stands in the ledger twice. It may reach Lago by one of the two only, unless a person says otherwise:

- what was known to another source first is held, and so is what another source has made an event of
  (:func:`read_twins`, before a decision);
- decisions about such sessions wait for one another, and look once more while nobody else decides
  (:func:`keep_apart`, in the transaction that writes the events). A session that a person accepted takes over
  what the other source has not sent yet.

See docs/decisions/008-one-session-two-sources.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ocpp_billing.billing.outbox import hold_differences
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.energy import say_kwh

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

# Among the advisory locks of this database; the number means nothing.
TWINS_LOCK = 1_413_961_033


@dataclass(frozen=True, slots=True)
class Twin:
    """The same session under another ``STEVE_SOURCE``, and what happened to it there.

    Attributes:
        source: the name.
        known_first: its session was in the ledger before ours.
        state: of its session.
        reason: of that state.
        is_live: billing has begun there.
        is_paused: it sends nothing for now.
        sent_wh: what Lago may know of it; None = nothing.
        waiting_wh: what is ready to be sent and never was; None = nothing.
    """

    source: str
    known_first: bool
    state: str
    reason: str | None
    is_live: bool
    is_paused: bool
    sent_wh: int | None
    waiting_wh: int | None

    @property
    def was_sent(self) -> bool:
        """Lago may know it: billed here, it would be billed twice."""
        return self.sent_wh is not None

    @property
    def holds(self) -> bool:
        """It stands against billing the session here."""
        return self.known_first or self.was_sent or self.waiting_wh is not None

    def says(self) -> str:
        """What happened there, in words."""
        known = (
            "The very same session (number, charge box, connector, tag and start) is known as one of "
            f"STEVE_SOURCE {self.source}, which {self._did()}."
        )
        if self.was_sent:
            return f"{known} Billed here, too, it would be billed twice."
        return f"{known} Bill it here if it is not to be billed there."

    def _did(self) -> str:
        if self.sent_wh is not None:
            return self._sent(f"{say_kwh(self.sent_wh)} kWh of it")
        if self.waiting_wh is not None:
            sends = "sends it in its next run"
            if not self.is_live:
                sends = "is not live, so it sends nothing yet"
            elif self.is_paused:
                sends = "is paused, so it sends nothing for now"
            return f"has {say_kwh(self.waiting_wh)} kWh of it ready to be sent and {sends}"
        return self._left()

    def _sent(self, energy: str) -> str:
        match self.state:
            case "accepted" | "confirmed":
                return f"billed {energy} in Lago ({self.state})"
            case "rejected":
                return f"sent {energy} to Lago, which refused it"
            case "queued":
                return f"sent {energy} to Lago and does not know yet what became of it"
        return f"sent {energy} to Lago and now has it as {self._standing()}"

    def _left(self) -> str:
        match self.reason:
            case Reason.BEFORE_GO_LIVE:
                return "does not bill it: it stopped before billing began there"
            case Reason.BY_OPERATOR:
                return "does not bill it: a person excluded it there"
        return f"has it as {self._standing()}: nothing of it is billed there"

    def _standing(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


def read_twins(cursor: Any, session_ids: Sequence[int]) -> dict[int, Twin]:
    """Of each of these sessions that another source knows, too, the twin that matters most."""
    cursor.execute(_SELECT_TWINS, {"ids": list(session_ids)})
    return {session_id: Twin(*twin) for session_id, *twin in cursor.fetchall()}


def has_others(cursor: Any, source: str) -> bool:
    """Whether the ledger knows another ``STEVE_SOURCE`` at all."""
    cursor.execute("SELECT EXISTS (SELECT FROM source WHERE name <> %s)", [source])
    return bool(cursor.fetchone()[0])


def keep_apart(cursor: Any, now: datetime) -> None:
    """Before decisions are written: leave out those that another source has come before.

    Works on the table ``judged`` of :mod:`billing.decide`, whose sessions are locked. Only what is to be
    billed by a new event counts. What is left out keeps asking, and is decided by what stands then. An
    accepted session takes over: the other source's events that were never attempted are void, its session is
    held, and an earlier acceptance there ends, or the two would take it from one another for ever.

    Whoever calls this has called :func:`lock_twins` before it locked any session.
    """
    bound = {"now": now, "known": str(Reason.KNOWN_BY_ANOTHER_SOURCE)}
    cursor.execute(_LOCK_TAKEN_OVER)
    cursor.execute(_VOID_TAKEN_OVER)
    taken_over = [session_id for (session_id,) in cursor.fetchall()]
    cursor.execute(_DROP_SECONDS)
    cursor.execute(_END_ACCEPTANCES, {**bound, "ids": taken_over})
    hold_differences(cursor, taken_over)


def lock_twins(cursor: Any) -> None:
    """Wait until nobody else writes decisions about sessions that two sources know; held to the end.

    Taken before the sessions are: so two sources never wait for one another's in a ring.
    """
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [TWINS_LOCK])


# What Lago may know; a move or a credit is only made of what it has.
_SENT = "(e.attempts > 0 OR e.kind IN ('move', 'credit'))"

# OFFSET 0: each session is looked up by the index of its number, whatever the statistics say. Where there is
# only one source nothing is looked up at all.
_SELECT_TWINS = f"""
SELECT DISTINCT ON (s.id) s.id, other.name, o.id < s.id, o.state, o.reason,
    c.live_from IS NOT NULL, c.paused_at IS NOT NULL, e.sent_wh, e.waiting_wh
FROM charging_session s
JOIN source other ON other.name <> s.source_id
CROSS JOIN LATERAL (
    SELECT o.id, o.state, o.reason FROM charging_session o
    WHERE o.source_id = other.name AND o.steve_id = s.steve_id AND o.fingerprint = s.fingerprint OFFSET 0
) o
LEFT JOIN delivery_control c ON c.source_id = other.name
CROSS JOIN LATERAL (
    SELECT sum(e.energy_wh) FILTER (WHERE {_SENT})::bigint AS sent_wh,
        sum(e.energy_wh) FILTER (WHERE NOT {_SENT})::bigint AS waiting_wh
    FROM usage_event e WHERE e.session_id = o.id AND e.state <> 'void'
) e
WHERE s.id = ANY(%(ids)s::bigint[])
ORDER BY s.id, e.sent_wh IS NULL, e.waiting_wh IS NULL, o.id
"""

# The other sources' sessions that those which are accepted and to be billed take over from.
_TAKEN_OVER = """
ARRAY(
    SELECT o.id FROM judged j JOIN charging_session s ON s.id = j.session_id
    JOIN source other ON other.name <> s.source_id
    JOIN charging_session o
        ON o.source_id = other.name AND o.steve_id = s.steve_id AND o.fingerprint = s.fingerprint
    WHERE j.takes_over AND j.bill_wh IS NOT NULL
)
"""

# In the order in which decisions and people lock them, and before their events, as they do.
_LOCK_TAKEN_OVER = f"""
SELECT o.id FROM charging_session o WHERE o.id = ANY({_TAKEN_OVER}) ORDER BY o.id FOR UPDATE
"""

# Delivery that claims one of them just now is waited for; what it has claimed is not void.
_VOID_TAKEN_OVER = f"""
WITH voided AS (
    UPDATE usage_event e SET state = 'void', reason = NULL
    WHERE e.session_id = ANY({_TAKEN_OVER}) AND e.state <> 'void' AND NOT {_SENT}
    RETURNING e.session_id
)
SELECT DISTINCT session_id FROM voided ORDER BY session_id
"""

# Whom another source has come before since it was read. What a person accepted although it was sent stays.
_DROP_SECONDS = f"""
DELETE FROM judged j USING charging_session s
WHERE s.id = j.session_id AND j.bill_wh IS NOT NULL AND NOT j.bills_twice AND EXISTS (
    SELECT FROM source other JOIN charging_session o
        ON o.source_id = other.name AND o.steve_id = s.steve_id AND o.fingerprint = s.fingerprint
    JOIN usage_event e ON e.session_id = o.id AND e.state <> 'void'
    WHERE other.name <> s.source_id
) AND NOT EXISTS (
    SELECT FROM usage_event e WHERE e.session_id = s.id AND e.state <> 'void' AND {_SENT}
)
"""

_END_ACCEPTANCES = """
UPDATE ruling SET revoked_at = %(now)s
WHERE session_id = ANY(%(ids)s::bigint[]) AND kind = 'accept' AND reason = %(known)s AND revoked_at IS NULL
"""
