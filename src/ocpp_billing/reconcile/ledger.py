"""The ledger's side: what it knows of the sessions and usage events of a window, a piece of it at a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from django.db import connection

from ocpp_billing.lago.wire import UsageEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocpp_billing.reconcile.pieces import Piece

TAKEN: Final = ("accepted", "confirmed")
_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)
_AFTER_ALL = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a session's energy that one usage event carries, void ones left out."""

    state: str
    customer: str
    subscription: str
    energy_wh: int


@dataclass(frozen=True, slots=True)
class LedgerSession:
    """A session as the ledger has it.

    Attributes:
        session_id: our number.
        steve_id: StEvE's.
        id_tag: as StEvE showed it; None where a pseudonym has taken its place.
        started_at: StEvE's start as last read.
        start_wh: register at the start.
        stopped_at: StEvE's stop as last read; None where there was none (then a reading may stand for it).
        stop_wh: register at that stop.
        state: of the session.
        rest_state: of the energy that no usage event carries; None where there is none.
        rest_wh: that energy.
        is_gone: StEvE did not show it when it was last asked for.
        customer: by the latest decision.
        subscription: by the latest decision.
        is_of_piece: it is counted with the piece in which it was read, and with no other.
        parts: what its usage events carry, the newest last.
    """

    session_id: int
    steve_id: int
    id_tag: str | None
    started_at: datetime | None
    start_wh: int
    stopped_at: datetime | None
    stop_wh: int | None
    state: str
    rest_state: str | None
    rest_wh: int
    is_gone: bool
    customer: str | None
    subscription: str | None
    is_of_piece: bool
    parts: tuple[Part, ...]

    @property
    def payer(self) -> tuple[str | None, str | None]:
        """(subscription, customer): what its newest usage event says, else its latest decision."""
        if self.parts:
            return self.parts[-1].subscription, self.parts[-1].customer
        return self.subscription, self.customer

    @property
    def steve_wh(self) -> int | None:
        """StEvE's energy as last read; None while it was open."""
        return None if self.stop_wh is None or self.stopped_at is None else self.stop_wh - self.start_wh


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """A usage event as the ledger has it; void ones are left out."""

    transaction_id: str
    state: str
    customer: str
    subscription: str
    metric_code: str
    timestamp: datetime
    accepted_at: datetime | None
    payload: str
    field_name: str

    def as_sent(self) -> UsageEvent:
        """The event as it was built for Lago."""
        return UsageEvent.from_payload(self.payload, self.field_name)


@dataclass(frozen=True, slots=True)
class TakenEvent:
    """A usage event that Lago took.

    ``plan_code`` is the plan that was to charge it; None where that is forgotten. ``is_credited``: a person
    has said that what Lago charged too much for it was credited.
    """

    transaction_id: str
    state: str
    energy_wh: int
    timestamp: datetime
    accepted_at: datetime | None
    plan_code: str | None
    is_credited: bool


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """A usage event that Lago showed, as the ledger has it.

    ``state`` is ``given_up`` or ``came_too_late`` for void ones that were sent: the second are known to be in
    Lago, where a final invoice does not count them.
    """

    subscription: str
    metric_code: str
    timestamp: datetime
    state: str


@dataclass(frozen=True, slots=True)
class LedgerWindow:
    """A window of the ledger.

    Attributes:
        source: name of the StEvE.
        from_: begin, inclusive: sessions by their stop, usage events by their own time.
        to: end, exclusive.
        basis: the time by which sessions are told into pieces.
    """

    source: str
    from_: datetime
    to: datetime
    basis: Literal["stop", "start"]

    def sessions_by_hour(self, first: datetime) -> dict[datetime, int]:
        """How many rows StEvE shows of each hour, by the basis; hours without any are missing.

        By the start it shows whatever began then, whether it stopped in the window or not.

        Args:
            first: where the first piece begins: before the window where the basis is the start.
        """
        if self.basis == "start":
            return dict(self._select(_STARTS_BY_HOUR, first=first))
        return self._by_hour(_STOPS_BY_HOUR)

    def events_by_hour(self) -> dict[datetime, int]:
        """How many usage events are dated in each hour; hours without any are missing."""
        return self._by_hour(_EVENTS_BY_HOUR.format(which=_IN_WINDOW))

    def sessions(
        self, piece: Piece, shown: Iterable[int], *, is_first: bool, is_last: bool
    ) -> list[LedgerSession]:
        """The sessions of a piece, and those that StEvE shows there.

        Args:
            piece: of the window.
            shown: ids that StEvE shows in it.
            is_first: it takes what began before all pieces.
            is_last: and what began after them.
        """
        rows = self._select(
            _SESSIONS.format(instant=_INSTANT[self.basis], window=_STOPPED),
            begin=_BEFORE_ALL if is_first else piece.begin,
            end=_AFTER_ALL if is_last else piece.end,
            shown=list(shown),
        )
        parts: dict[int, list[Part]] = {}
        for session_id, *part in self._select(_PARTS, sessions=[row[0] for row in rows]):
            parts.setdefault(session_id, []).append(Part(*part))
        return [LedgerSession(*[*row, tuple(parts.get(row[0], ()))]) for row in rows]

    def events(self, piece: Piece, *, elsewhere: bool = False) -> list[LedgerEvent]:
        """The usage events dated in a piece; ``elsewhere``: those of :meth:`events_elsewhere_by_hour`."""
        statement = _EVENTS.format(which=_ELSEWHERE if elsewhere else "true")
        return [LedgerEvent(*row) for row in self._select(statement, begin=piece.begin, end=piece.end)]

    def events_elsewhere_by_hour(self) -> dict[datetime, int]:
        """Usage events of the window's sessions that are dated outside of it, such as late corrections."""
        return self._by_hour(_EVENTS_BY_HOUR.format(which=_ELSEWHERE))

    def taken(self, subscription: str) -> dict[str, list[TakenEvent]]:
        """What Lago took of a subscription, dated in the window or of its sessions, by metric code."""
        found: dict[str, list[TakenEvent]] = {}
        for code, *row in self._select(_TAKEN, subscription=subscription, taken=list(TAKEN)):
            found.setdefault(code, []).append(TakenEvent(*row))
        return found

    def metric_codes(self) -> set[str]:
        """The metric codes that anything was ever sent for."""
        return {code for (code,) in self._select(_METRIC_CODES)}

    def _by_hour(self, statement: str) -> dict[datetime, int]:
        rows: list[Any] = self._select(statement)
        return dict(rows)

    def _select(self, statement: str, **bound: Any) -> list[Any]:
        window: dict[str, Any] = {"source": self.source, "from": self.from_, "to": self.to}
        with connection.cursor() as cursor:
            cursor.execute(statement, window | bound)
            return list(cursor.fetchall())


def look_up(transaction_ids: Sequence[str]) -> dict[str, KnownEvent]:
    """The usage events of these ids that the ledger knows, void ones included."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT transaction_id, external_subscription_id, metric_code, timestamp,"
            " CASE WHEN state <> 'void' OR given_up_at IS NULL THEN state"
            " WHEN turned_up_at = given_up_at THEN 'came_too_late' ELSE 'given_up' END"
            " FROM usage_event WHERE transaction_id = ANY(%s)",
            [list(transaction_ids)],
        )
        return {name: KnownEvent(*row) for name, *row in cursor.fetchall()}


# A reading of a person takes the place of StEvE's stop, as it does in the balance. Rows that a restored
# StEvE has given to other sessions have nothing to be compared with any more.
_STOPPED = """(
    s.reading_stopped_at IS NULL AND s.stopped_at >= %(from)s AND s.stopped_at < %(to)s
    OR s.reading_stopped_at >= %(from)s AND s.reading_stopped_at < %(to)s
)"""
_INSTANT = {
    "stop": "coalesce(s.reading_stopped_at, s.stopped_at)",
    "start": "coalesce(s.started_at, '-infinity')",
}

_STOPS_BY_HOUR = f"""
SELECT date_trunc('hour', {_INSTANT["stop"]}, 'UTC'), count(*) FROM charging_session s
WHERE s.source_id = %(source)s AND s.superseded_at IS NULL AND {_STOPPED} AND isfinite({_INSTANT["stop"]})
GROUP BY 1
"""

_STARTS_BY_HOUR = """
SELECT date_trunc('hour', s.started_at, 'UTC'), count(*) FROM charging_session s
WHERE s.source_id = %(source)s AND s.superseded_at IS NULL
  AND s.started_at >= %(first)s AND s.started_at < %(to)s
GROUP BY 1
"""

# What StEvE shows in this piece and the ledger has in another one is counted there, and compared here.
_SESSIONS = """
SELECT s.id, s.steve_id, CASE WHEN t.steve_pk IS NOT NULL OR t.vanished_at IS NULL THEN s.id_tag_text END,
    s.started_at, s.start_wh, s.stopped_at, s.stop_wh, s.state, s.rest_state, s.rest_wh,
    s.vanished_at IS NOT NULL, d.external_customer_id, d.external_subscription_id,
    ({instant} >= %(begin)s AND {instant} < %(end)s OR {window} IS NOT true) IS true
FROM charging_session s JOIN id_tag t ON t.id = s.id_tag_id LEFT JOIN LATERAL (
    SELECT external_customer_id, external_subscription_id FROM decision
    WHERE session_id = s.id ORDER BY id DESC LIMIT 1
) d ON true
WHERE s.source_id = %(source)s AND s.superseded_at IS NULL AND (
    {window} AND {instant} >= %(begin)s AND {instant} < %(end)s
    OR s.steve_id = ANY(%(shown)s)
)
ORDER BY s.steve_id
"""

_PARTS = """
SELECT session_id, state, external_customer_id, external_subscription_id, energy_wh FROM usage_event
WHERE state <> 'void' AND session_id = ANY(%(sessions)s)
ORDER BY id
"""

_IN_WINDOW = "e.timestamp >= %(from)s AND e.timestamp < %(to)s"
_ELSEWHERE = f"""NOT ({_IN_WINDOW}) AND EXISTS (
    SELECT 1 FROM charging_session s WHERE s.id = e.session_id AND {_STOPPED}
)"""

_EVENTS_BY_HOUR = """
SELECT date_trunc('hour', e.timestamp, 'UTC'), count(*) FROM usage_event e
WHERE e.source_id = %(source)s AND e.state <> 'void' AND {which}
GROUP BY 1
"""

_EVENTS = """
SELECT e.transaction_id, e.state, e.external_customer_id, e.external_subscription_id, e.metric_code,
    e.timestamp, e.accepted_at, e.payload, e.field_name
FROM usage_event e
WHERE e.source_id = %(source)s AND e.state <> 'void'
    AND e.timestamp >= %(begin)s AND e.timestamp < %(end)s AND {which}
ORDER BY e.id
"""

_TAKEN = f"""
SELECT e.metric_code, e.transaction_id, e.state, e.energy_wh, e.timestamp, e.accepted_at, l.plan_code,
    coalesce(e.answer ->> 'outcome' = 'credited', false)
FROM usage_event e LEFT JOIN lago_subscription l ON l.lago_id = e.lago_subscription_id
WHERE e.source_id = %(source)s AND e.external_subscription_id = %(subscription)s
    AND e.state = ANY(%(taken)s) AND ({_IN_WINDOW} OR {_ELSEWHERE})
ORDER BY e.id
"""

# Few of them, and each is found by one look into an index.
_METRIC_CODES = """
SELECT DISTINCT metric_code FROM usage_event WHERE source_id = %(source)s AND attempts > 0
"""
