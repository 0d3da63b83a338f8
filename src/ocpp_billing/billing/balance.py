"""Every watt-hour accounted for: what was read against what the states hold.

Two independent sums. *Read* comes from the registers of the sessions as StEvE gave them. *States* come
from the parts: ``rest_wh`` of a session (what no usage event carries) and the energy of its usage events.
They are written by different statements, so a lost, doubled or half-written part shows as a difference.

Adding up a million sessions takes seconds. So counters are kept beside them, by triggers in the very
transactions that write (``migrations/0002_balance_counters.py``): :func:`counted_balance` reads those,
:func:`read_balance` recounts, :func:`prove_balance` compares the two and keeps the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from django.conf import settings
from django.db import connection

from ocpp_billing import clock
from ocpp_billing.billing.models import BalanceProof, CounterKind
from ocpp_billing.charging.models import SessionState
from ocpp_billing.database import Fence, fenced_transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from zoneinfo import ZoneInfo

# The least advanced part names the session: the order of the enum is the order of the ledger.
STATE_RANK_SQL = (
    "array_position(ARRAY['open','stuck','held','rejected','queued','accepted','confirmed','excluded'], "
    "{column}::text)"
)

# So many rows are added up in a few milliseconds.
FOLD_ABOVE_ROWS = 1_000
PROVE_EVERY = timedelta(hours=24)


@dataclass(slots=True)
class Amount:
    """A number of sessions and their energy."""

    sessions: int = 0
    energy_wh: int = 0

    def to_json(self) -> dict[str, int]:
        """As in ``ocpp-billing balance --json``."""
        return {"sessions": self.sessions, "energy_wh": self.energy_wh}

    def add(self, sessions: int, energy_wh: int) -> None:
        """Count more in."""
        self.sessions += sessions
        self.energy_wh += energy_wh

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.sessions or self.energy_wh)


@dataclass(slots=True)
class Balance:
    """The balance of one source.

    ``states`` always has all eight states, in the ledger's order; ``negative`` are sessions whose stop
    register lies below the start register: they count 0 Wh in every sum, their own (negative) sum is here.
    ``parts`` are the same sums as ``states`` and ``reasons``, by both at once; a kept one has none.
    """

    read: Amount
    states: dict[str, Amount]
    reasons: dict[str, Amount]
    negative: Amount
    malformed: int
    unexplained: Amount = field(default_factory=Amount)
    parts: dict[tuple[str, str | None], Amount] = field(default_factory=dict, compare=False)

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

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Balance:
        """The balance that :meth:`to_json` wrote, its states in the ledger's order again."""
        return cls(
            read=Amount(**given["read"]),
            states={state.value: Amount(**given["states"][state.value]) for state in SessionState},
            reasons={reason: Amount(**amount) for reason, amount in sorted(given["reasons"].items())},
            negative=Amount(**given["negative"]),
            malformed=given["malformed"],
            unexplained=Amount(**given["unexplained"]),
        )


# -- counting ------------------------------------------------------------------------------------------

# (kind, state, reason) -> what is counted under it.
Counters = dict[tuple[str, "str | None", "str | None"], Amount]

# Sessions whose stored state is not what their parts say, or that have no part at all. There is no counter
# of these: only a recount can put each session beside its parts.
MISSTATED = "misstated"

# From the registers alone: read, negative. From the parts, without looking at the registers: rest, event.
# One statement is one snapshot, so a running worker does not show as a difference.
_RECOUNT = f"""
SELECT 'read' AS kind, NULL AS state, NULL AS reason,
    count(*) AS sessions, coalesce(sum(greatest(energy_wh, 0)), 0)::bigint AS energy_wh
FROM charging_session WHERE source_id = %(source)s
UNION ALL
SELECT 'negative', NULL, NULL, count(*), coalesce(sum(energy_wh), 0)::bigint
FROM charging_session WHERE source_id = %(source)s AND energy_wh < 0
UNION ALL
SELECT 'stated', state, reason, count(*), 0
FROM charging_session WHERE source_id = %(source)s GROUP BY state, reason
UNION ALL
SELECT 'rest', rest_state, rest_reason, 0, sum(rest_wh)::bigint
FROM charging_session WHERE source_id = %(source)s AND rest_state IS NOT NULL
GROUP BY rest_state, rest_reason
UNION ALL
SELECT 'event', state, reason, 0, sum(energy_wh)::bigint
FROM usage_event WHERE source_id = %(source)s AND state <> 'void' GROUP BY state, reason
UNION ALL
SELECT 'malformed', NULL, NULL, count(*), 0
FROM malformed_row WHERE source_id = %(source)s AND resolved_at IS NULL
UNION ALL
SELECT '{MISSTATED}', NULL, NULL, count(*), 0
FROM charging_session s
LEFT JOIN (
    SELECT session_id, min({STATE_RANK_SQL.format(column="state")}) AS rank
    FROM usage_event WHERE source_id = %(source)s AND state <> 'void' GROUP BY session_id
) event ON event.session_id = s.id
WHERE s.source_id = %(source)s
  AND {STATE_RANK_SQL.format(column="s.state")}
      IS DISTINCT FROM least({STATE_RANK_SQL.format(column="s.rest_state")}, event.rank)
"""

_COUNTERS = """
SELECT kind, state, reason, sum(sessions)::bigint AS sessions, sum(energy_wh)::bigint AS energy_wh
FROM balance_delta WHERE source_id = %(source)s GROUP BY kind, state, reason
"""

_MISSTATED_WHEN_PROVED = f"""
SELECT '{MISSTATED}', NULL, NULL, sessions, 0 FROM (
    SELECT (balance #>> '{{unexplained,sessions}}')::bigint AS sessions
    FROM balance_proof WHERE source_id = %(source)s ORDER BY id DESC LIMIT 1
) last_proof
"""


def read_balance(source: str) -> Balance:
    """Add up the ledger of one source, in full and from one snapshot."""
    with connection.cursor() as cursor:
        cursor.execute(_RECOUNT, {"source": source})
        return _balance(_by_key(cursor.fetchall()))


def counted_balance(source: str) -> Balance:
    """The balance of one source by its counters: as fast at a million sessions as at ten.

    It says what :func:`read_balance` says, but for ``unexplained.sessions``: whether the state of each
    session is what its parts say was last checked by the last proof (:func:`last_proof`).
    """
    with connection.cursor() as cursor:
        cursor.execute(f"{_COUNTERS} UNION ALL {_MISSTATED_WHEN_PROVED}", {"source": source})
        return _balance(_by_key(cursor.fetchall()))


def _by_key(rows: Iterable[tuple[Any, ...]]) -> Counters:
    """Counters that count something."""
    counters = {(kind, state, reason): Amount(*amount) for kind, state, reason, *amount in rows}
    return {key: amount for key, amount in counters.items() if amount}


def _balance(counters: Counters) -> Balance:
    """Put counters together; the only place where what was read meets what the states hold."""
    totals = {kind: Amount() for kind in (*CounterKind.values, MISSTATED)}
    states = {state.value: Amount() for state in SessionState}
    reasons: dict[str, Amount] = {}
    parts: dict[tuple[str, str | None], Amount] = {}
    for (kind, state, reason), amount in counters.items():
        totals[kind].add(amount.sessions, amount.energy_wh)
        if state is not None:
            states[state].add(amount.sessions, amount.energy_wh)
            parts.setdefault((state, reason), Amount()).add(amount.sessions, amount.energy_wh)
        if reason:
            reasons.setdefault(reason, Amount()).add(amount.sessions, amount.energy_wh)
    read = totals[CounterKind.READ]
    return Balance(
        read=read,
        states=states,
        reasons={reason: amount for reason, amount in sorted(reasons.items()) if amount},
        negative=totals[CounterKind.NEGATIVE],
        malformed=totals[CounterKind.MALFORMED].sessions,
        unexplained=Amount(
            totals[MISSTATED].sessions + read.sessions - sum(amount.sessions for amount in states.values()),
            read.energy_wh - sum(amount.energy_wh for amount in states.values()),
        ),
        parts=parts,
    )


# -- keeping the counters --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drift:
    """What a counter lacked (negative: had too much) against the recount."""

    kind: str
    state: str | None
    reason: str | None
    sessions: int
    energy_wh: int

    def __str__(self) -> str:
        name = " ".join(part for part in (self.kind, self.state, self.reason) if part)
        return f"{name} {self.sessions:+d} sessions {self.energy_wh:+d} Wh"


@dataclass(frozen=True, slots=True)
class Proof:
    """A full recount, and whether the counters had said the same.

    Attributes:
        proved_at: when it was made.
        balance: the recount, as it was then.
        drift: what the counters lacked; they were given it in the same transaction.
    """

    proved_at: datetime
    balance: Balance
    drift: tuple[Drift, ...]

    @property
    def unexplained(self) -> Amount:
        """What was read and no state holds, or the other way round; 0 unless something is wrong."""
        return self.balance.unexplained

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing balance --prove --json``, below ``proof``."""
        return {
            "proved_at": self.proved_at.isoformat(),
            "unexplained": self.unexplained.to_json(),
            "drift": [msgspec.to_builtins(each) for each in self.drift],
        }


def prove_balance(source: str, fence: Fence | None = None) -> Proof:
    """Recount the ledger, compare the counters with it, put them right, and keep the result.

    Recount and counters come from one snapshot. What is written meanwhile appends deltas of its own, so
    what was lacking then is lacking still, and is appended: nobody has to wait for the recount.

    Raises:
        FenceError: when the run was ended by somebody else; nothing is kept then.
    """
    with fenced_transaction("prove balance", fence) as cursor:
        # Two proofs at once would both append what is lacking. Writers and readers are not held up.
        cursor.execute("LOCK TABLE balance_proof IN SHARE UPDATE EXCLUSIVE MODE")
        now = clock.now()
        cursor.execute(
            f"SELECT true, recount.* FROM ({_RECOUNT}) recount"
            f" UNION ALL SELECT false, counters.* FROM ({_COUNTERS}) counters",
            {"source": source},
        )
        rows = cursor.fetchall()
        recounted = _by_key(row for from_recount, *row in rows if from_recount)
        counted = _by_key(row for from_recount, *row in rows if not from_recount)
        proof = Proof(now, _balance(recounted), _drift(recounted, counted))
        cursor.executemany(_APPEND, [(source, *_columns(each)) for each in proof.drift])
        cursor.execute(
            "INSERT INTO balance_proof (source_id, proved_at, balance, drift) VALUES (%s, %s, %s, %s)",
            [
                source,
                proof.proved_at,
                msgspec.json.encode(proof.balance.to_json()).decode(),
                msgspec.json.encode(proof.drift).decode(),
            ],
        )
    return proof


def _drift(recounted: Counters, counted: Counters) -> tuple[Drift, ...]:
    """What the counters lack, by key."""
    nothing = Amount()
    lacking = (
        Drift(
            *key,
            recounted.get(key, nothing).sessions - counted.get(key, nothing).sessions,
            recounted.get(key, nothing).energy_wh - counted.get(key, nothing).energy_wh,
        )
        for key in sorted(recounted.keys() | counted.keys(), key=str)
        if key[0] != MISSTATED
    )
    return tuple(each for each in lacking if each.sessions or each.energy_wh)


def _columns(drift: Drift) -> tuple[Any, ...]:
    return (drift.kind, drift.state, drift.reason, drift.sessions, drift.energy_wh)


def last_proof(source: str) -> Proof | None:
    """The newest proof, or None when the balance was never proved."""
    row = BalanceProof.objects.filter(source_id=source).order_by("-id").first()
    if row is None:
        return None
    drift = tuple(msgspec.convert(each, Drift) for each in row.drift)
    return Proof(row.proved_at, Balance.from_json(row.balance), drift)


def compact_counters(source: str, fence: Fence | None = None) -> int:
    """Fold the deltas of a source into one row for each key.

    Safe beside writers, whose new deltas it does not see and does not touch, and beside readers, who see
    either the rows or their sum.

    Returns:
        How many rows were folded.
    """
    with fenced_transaction("compact counters", fence) as cursor:
        cursor.execute("LOCK TABLE balance_delta IN SHARE UPDATE EXCLUSIVE MODE")  # one fold at a time
        cursor.execute(_FOLD, {"source": source})
        (folded,) = cursor.fetchone()
        return int(folded)


def keep_counters(source: str, fence: Fence | None = None) -> Proof | None:
    """What a run does at its end: fold the deltas when they are many, prove when the last proof is old.

    Returns:
        The proof, if one was due.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM balance_delta WHERE source_id = %s", [source])
        (rows,) = cursor.fetchone()
        cursor.execute(
            "SELECT proved_at FROM balance_proof WHERE source_id = %s ORDER BY id DESC LIMIT 1", [source]
        )
        proved = cursor.fetchone()
    if rows > FOLD_ABOVE_ROWS:
        compact_counters(source, fence)
    # A clock that was set back must not put off the next proof: hence the absolute distance.
    if proved is not None and abs(clock.now() - proved[0]) < PROVE_EVERY:
        return None
    return prove_balance(source, fence)


_APPEND = """
INSERT INTO balance_delta (source_id, kind, state, reason, sessions, energy_wh)
VALUES (%s, %s, %s, %s, %s, %s)
"""

_FOLD = """
WITH folded AS (
    DELETE FROM balance_delta WHERE source_id = %(source)s
    RETURNING kind, state, reason, sessions, energy_wh
), kept AS (
    INSERT INTO balance_delta (source_id, kind, state, reason, sessions, energy_wh)
    SELECT %(source)s, kind, state, reason, sum(sessions), sum(energy_wh) FROM folded
    GROUP BY kind, state, reason HAVING sum(sessions) <> 0 OR sum(energy_wh) <> 0
)
SELECT count(*) FROM folded
"""


# -- breakdowns --------------------------------------------------------------------------------------------

Dimension = Literal["day", "reason", "tag", "customer", "subscription"]


@dataclass(slots=True)
class BreakdownRow:
    """One line of a breakdown.

    Attributes:
        key: the day (``2026-12-31``), reason code, tag, or Lago's external id of the customer or
            subscription; None for what has none.
        states: sessions and energy by state, of states that occur, in the ledger's order.
    """

    key: str | None
    states: dict[str, Amount]

    @property
    def total(self) -> Amount:
        """All states together."""
        return Amount(
            sum(amount.sessions for amount in self.states.values()),
            sum(amount.energy_wh for amount in self.states.values()),
        )

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing balance --by … --json``."""
        return {
            "key": self.key,
            **self.total.to_json(),
            "states": {state: amount.to_json() for state, amount in self.states.items()},
        }


@dataclass(frozen=True, slots=True)
class _Keys:
    """Where a session, its rest and its usage events stand in a dimension; SQL over ``s`` and ``e``."""

    session: str
    rest: str
    event: str
    # What the line without a key is called.
    nothing: str


def _same(key: str, nothing: str) -> _Keys:
    """A dimension in which all parts of a session stand at the same place."""
    return _Keys(key, key, key, nothing)


def _paid(column: str, nothing: str) -> _Keys:
    """A dimension of whoever pays: an event says so itself, for the rest the latest decision does.

    The session is counted where the part is that names it; of several such events, with the newest.
    """
    decided = f"(SELECT d.{column} FROM decision d WHERE d.session_id = s.id ORDER BY d.id DESC LIMIT 1)"
    naming = (
        f"(SELECT e.{column} FROM usage_event e WHERE e.session_id = s.id AND e.state = s.state"
        " ORDER BY e.n DESC LIMIT 1)"
    )
    return _Keys(
        f"CASE WHEN s.state = s.rest_state THEN {decided} ELSE {naming} END", decided, f"e.{column}", nothing
    )


# A reading of a person takes the place of StEvE's stop, as it does in `energy_wh`.
_STOPPED_AT = "coalesce(s.reading_stopped_at, s.stopped_at)"
_DIMENSIONS: dict[Dimension, _Keys] = {
    "day": _same(f"({_STOPPED_AT} AT TIME ZONE %(zone)s)::date::text", "(not stopped)"),
    "reason": _Keys("s.reason", "s.rest_reason", "e.reason", "(none)"),
    "tag": _same("(SELECT t.text FROM id_tag t WHERE t.id = s.id_tag_id)", "(none)"),
    "customer": _paid("external_customer_id", "(nobody)"),
    "subscription": _paid("external_subscription_id", "(none)"),
}
DIMENSIONS: tuple[Dimension, ...] = tuple(_DIMENSIONS)

# Sessions by the state that names them, energy by its parts, as in the balance; one statement, so one
# snapshot. The names in braces are filled in from _DIMENSIONS, never from outside.
_BY = """
SELECT key, state, sum(sessions)::bigint, sum(energy_wh)::bigint FROM (
    SELECT {session} AS key, s.state, 1 AS sessions, 0 AS energy_wh
    FROM charging_session s WHERE {chosen}
    UNION ALL
    SELECT {rest}, s.rest_state, 0, s.rest_wh
    FROM charging_session s WHERE {chosen} AND s.rest_state IS NOT NULL
    UNION ALL
    SELECT {event}, e.state, 0, e.energy_wh
    FROM usage_event e JOIN charging_session s ON s.id = e.session_id
    WHERE {chosen} AND e.state <> 'void'
) part
GROUP BY key, state
"""
# Two ranges instead of a coalesce: each has an index.
STOPPED_BETWEEN_SQL = """
(s.reading_stopped_at IS NULL AND s.stopped_at >= %(from)s AND s.stopped_at < %(to)s
 OR s.reading_stopped_at >= %(from)s AND s.reading_stopped_at < %(to)s)
"""


def balance_by(
    source: str,
    dimension: Dimension,
    *,
    from_: datetime | None = None,
    to: datetime | None = None,
    zone: ZoneInfo | None = None,
) -> list[BreakdownRow]:
    """Break the balance of one source down; without a range, the lines add up to the balance's states.

    Args:
        source: name of the StEvE.
        dimension: day of the stop, reason, tag, customer or subscription.
        from_: only sessions that stopped at or after this instant.
        to: only sessions that stopped before this instant. A session that has not stopped is in no range.
        zone: in which a day begins and ends; None = the organisation's (``SYNC_TIMEZONE``).

    Returns:
        Days in their order, all others with most energy first; what has no key comes last.
    """
    keys = _DIMENSIONS[dimension]
    chosen = "s.source_id = %(source)s"
    if from_ is not None or to is not None:
        chosen += f" AND {STOPPED_BETWEEN_SQL}"
    bound = {
        "source": source,
        "zone": (zone or settings.CONFIG.timezone).key,
        "from": from_ or "-infinity",
        "to": to or "infinity",
    }
    with connection.cursor() as cursor:
        cursor.execute(
            _BY.format(session=keys.session, rest=keys.rest, event=keys.event, chosen=chosen), bound
        )
        found: dict[str | None, dict[str, Amount]] = {}
        for key, state, sessions, energy_wh in cursor.fetchall():
            found.setdefault(key, {})[state] = Amount(sessions, energy_wh)
    rows = [
        BreakdownRow(key, {state.value: states[state] for state in SessionState if state in states})
        for key, states in found.items()
    ]
    if dimension == "day":
        return sorted(rows, key=lambda row: (row.key is None, row.key or ""))
    return sorted(rows, key=lambda row: (row.key is None, -row.total.energy_wh, row.key or ""))


def name_of(row: BreakdownRow, dimension: Dimension) -> str:
    """What a line is called on a page or terminal; what has no key says so in brackets."""
    return _DIMENSIONS[dimension].nothing if row.key is None else row.key
