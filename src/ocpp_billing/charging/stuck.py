"""Sessions without the station's own stop: which are stuck, and what shows how much was delivered.

StEvE >= 3.12 keeps a session active for ever when its stop was invalid, and chargers die. A session is
*stuck* when a newer one began on its connector, or when it has no stop and no new meter value for so many
hours. It leaves the frequent watch and is shown with *evidence*: the last total energy register among its
meter values (>= 3.12), else the register at which the next session on the connector began. Sessions that an
operator closed are judged by the same evidence; the stop that StEvE wrote for them is never part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
from django.db import connection

from ocpp_billing import clock
from ocpp_billing.charging.clocks import CLOCK_LAG, CLOCK_TOLERANCE
from ocpp_billing.database import Fence, fenced_transaction
from ocpp_billing.log import get_logger
from ocpp_billing.steve.client import MOST_IDS_PER_CALL
from ocpp_billing.steve.errors import BadRequest, NotFound, NotJson, ServerFault
from ocpp_billing.steve.evidence import Evidence, last_heard_at, last_register
from ocpp_billing.steve.idle import is_made_up_for
from ocpp_billing.steve.wire import TransactionsAnswer, fingerprint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from ocpp_billing.steve.capabilities import Capabilities
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.progress import ReadingProgress
    from ocpp_billing.steve.wire import MeterValue, Transaction

log = get_logger(__name__)

# Sessions whose meter values are read in one cycle, a call each; what is left waits for the next one.
DETAILS_PER_CYCLE: Final = 50
# Where a call carries one id only, so many sessions are read again before they count as stuck.
SINGLES_PER_CYCLE: Final = 10
# StEvE stores a stop before the meter values that came with it: what was read
# earlier than so long after a stop turned up is read once more.
VALUES_SETTLE_AFTER: Final = timedelta(seconds=10)
# A charger that was offline may still send meter values of a stuck session.
STUCK_VALUES_EVERY: Final = timedelta(hours=24)
# A session whose details StEvE cannot show does not hold back the others.
FAILED_AGAIN_AFTER: Final = timedelta(hours=1)
MOST_FAILURES: Final = 3
NEVER: Final = datetime.min.replace(tzinfo=UTC)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence as the ledger stores it (``charging_session.evidence``).

    Attributes:
        source: what it comes from; ``none``: nothing shows what was delivered.
        stop_wh: the register at the end.
        at: when it showed that, by the charger's clock.
        read_at: when StEvE was last asked for the meter values, or the ledger where StEvE has none.
        heard_at: time of the last meter value, whatever that is worth as evidence.
    """

    source: Literal["meter_value", "next_start", "none"]
    stop_wh: int | None
    at: datetime | None
    read_at: datetime
    heard_at: datetime | None = None

    @classmethod
    def from_json(cls, stored: object) -> Finding:
        """Back from the ledger, decoded already."""
        return msgspec.convert(stored, cls)

    def says_the_same_as(self, other: Finding | None) -> bool:
        """Whether a decision that rests on one may rest on the other."""
        return other is not None and (self.source, self.stop_wh) == (other.source, other.stop_wh)


@dataclass(frozen=True, slots=True)
class Heard:
    """What the meter values of a session say."""

    register: Evidence | None
    at: datetime | None


@dataclass(frozen=True, slots=True)
class NextSession:
    """The session that came next on the connector, in the order of arrival.

    Attributes:
        started_at: its start by the charger's clock; None where that clock is not believed.
        start_wh: its start register; None where it began before ours and was only delivered later.
    """

    started_at: datetime | None
    start_wh: int | None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A session without the station's own stop: open, or closed by hand.

    Attributes:
        started_at: None where the charger's clock is not believed.
        changed_at: when StEvE last showed something new about it.
        by_hand: an operator has closed it.
        is_gone: StEvE no longer shows it.
        is_shown_stuck: whether its state says what ``stuck_since`` says.
        following: the next session on its connector.
    """

    session_id: int
    steve_id: int
    revision: int
    fingerprint: bytes
    started_at: datetime | None
    start_wh: int
    first_seen_at: datetime
    changed_at: datetime
    by_hand: bool
    is_gone: bool
    is_stuck: bool
    is_shown_stuck: bool
    finding: Finding | None
    following: NextSession | None


class Recorder(Protocol):
    """Records what StEvE showed, what it no longer shows, and how far reading has come."""

    def __call__(self, answer: TransactionsAnswer, *, gone: Sequence[int], progress: ReadingProgress) -> Any:
        """Record it in one transaction."""


@dataclass(slots=True)
class StuckCounts:
    """How many sessions became stuck, and how many turned out to go on."""

    stuck: int = 0
    going_on: int = 0


@dataclass(slots=True)
class StuckSearch:
    """The part of a full cycle that looks after sessions without the station's own stop.

    Attributes:
        source: name of the StEvE.
        client: asks it.
        capabilities: what its release can do.
        stuck_after: no sign of life for so long makes a session stuck.
        record: writes an answer down.
        progress: when meter values were last read and how long that took; stored with every record.
        fence: the run on whose behalf this writes.
        calls_to_look_again: for how many sessions whose meter values were read before that may be done
            again; what has become questionable only now is not among them.
    """

    source: str
    client: SteveClient
    capabilities: Capabilities
    stuck_after: timedelta
    record: Recorder
    progress: ReadingProgress
    fence: Fence | None
    calls_to_look_again: int = DETAILS_PER_CYCLE
    _heard: dict[int, Heard] = field(default_factory=dict)
    _asked: set[int] = field(default_factory=set)

    def search(self, only: Collection[int] | None = None) -> StuckCounts:
        """Mark sessions as stuck or as going on, and store the evidence of all that need some.

        Before a session counts as stuck it is read once more: on older releases its stop may have come
        after the open sessions were read and before the next session on the connector was found.

        Args:
            only: StEvE's ids of the sessions to look after; None = all.

        Raises:
            SteveError: when StEvE cannot be reached.
            FenceError: when another worker has taken over.
        """
        sessions = _of(read_unfinished(self.source), only)
        self._ask(sessions)
        if self._asked:  # and recorded, which may have ended some of them
            sessions = _of(read_unfinished(self.source), only)
        return self._write(sessions)

    # -- asking StEvE ----------------------------------------------------------------------------------

    def _ask(self, sessions: Sequence[Unfinished]) -> None:
        """Read the sessions that are in question again, with their meter values where StEvE shows them."""
        in_question = [session for session in sessions if self._is_in_question(session)]
        if not in_question or not is_made_up_for(self.progress.get("evidence"), clock.now()):
            return
        in_question.sort(key=_urgency)
        busy_before_s = self.client.busy_s
        if self.capabilities.details:
            chosen = self._chosen(in_question)
            if not chosen:
                return
            rows, gone = self._ask_details(chosen)
        else:
            most = MOST_IDS_PER_CALL if self.capabilities.id_lists else SINGLES_PER_CYCLE
            rows, gone = self._ask_by_id(in_question[:most])
        took_s = round(self.client.busy_s - busy_before_s, 3)
        self.progress["evidence"] = {"at": clock.now().isoformat(), "took_s": took_s}
        self.record(rows, gone=gone, progress=self.progress)

    def _chosen(self, in_question: Sequence[Unfinished]) -> list[Unfinished]:
        """Whose meter values this cycle reads: of those who only wait for their next turn, a few."""
        again = [session for session in in_question if _is_routine(session)]
        left_out = {session.session_id for session in again[max(self.calls_to_look_again, 0) :]}
        chosen = [session for session in in_question if session.session_id not in left_out]
        return chosen[:DETAILS_PER_CYCLE]

    def _is_in_question(self, session: Unfinished) -> bool:
        """Whether StEvE has to be asked before anything can be said about a session."""
        finding = session.finding
        if session.is_gone or (not self.capabilities.details and (session.by_hand or session.is_stuck)):
            return False
        if session.by_hand:
            return finding is None or finding.read_at < session.changed_at + VALUES_SETTLE_AFTER
        if session.is_stuck and session.is_shown_stuck:
            return finding is None or abs(clock.now() - finding.read_at) >= STUCK_VALUES_EVERY
        return session.following is not None or self._is_quiet(session)

    def _ask_details(self, sessions: Iterable[Unfinished]) -> tuple[TransactionsAnswer, list[int]]:
        rows: list[Transaction] = []
        gone: list[int] = []
        failed = self._recently_failed()
        for session in sessions:
            if str(session.steve_id) in failed:
                continue
            self._asked.add(session.session_id)
            try:
                details = self.client.transaction_details(session.steve_id)
            except NotFound:
                gone.append(session.steve_id)
                continue
            except (NotJson, BadRequest, ServerFault) as error:
                log.warning("no details", action="stuck.details", steve_id=session.steve_id, error=str(error))
                failed[str(session.steve_id)] = clock.now().isoformat()
                if len(failed) >= MOST_FAILURES:
                    break
                continue
            rows.append(details.transaction)
            if fingerprint(details.transaction) == session.fingerprint:
                self._heard[session.session_id] = hear(session, details.values)
            else:  # another session under its number: the recorder says so, and nothing is judged by it
                self._asked.discard(session.session_id)
        self.progress["details_failed"] = failed
        return TransactionsAnswer(rows, []), gone

    def _recently_failed(self) -> dict[str, str]:
        now = clock.now()
        failed: dict[str, str] = self.progress.get("details_failed", {})
        return {
            number: at
            for number, at in failed.items()
            if now - FAILED_AGAIN_AFTER < datetime.fromisoformat(at) <= now
        }

    def _ask_by_id(self, sessions: Sequence[Unfinished]) -> tuple[TransactionsAnswer, list[int]]:
        ids = [session.steve_id for session in sessions]
        answer = self.client.transactions_by_id(ids, id_lists=self.capabilities.id_lists)
        shown = {row.steve_id for row in answer.rows} | {row.steve_id for row in answer.malformed}
        mark = {row.steve_id: fingerprint(row) for row in answer.rows}
        self._asked |= {
            session.session_id
            for session in sessions
            if mark.get(session.steve_id, session.fingerprint) == session.fingerprint
        }
        return answer, [number for number in ids if number not in shown]

    # -- judging ---------------------------------------------------------------------------------------

    def _is_stuck(self, session: Unfinished) -> bool:
        return session.is_gone or session.following is not None or self._is_quiet(session)

    def _is_quiet(self, session: Unfinished) -> bool:
        """Whether there was no sign of life for so long, by the charger's clock where that is believed."""
        signs = [session.started_at or session.first_seen_at]
        heard = self._heard.get(session.session_id)
        finding = session.finding
        if not self.capabilities.details or session.is_gone:
            signs.append(session.first_seen_at)
        elif heard is not None and heard.at is not None:
            signs.append(min(heard.at, clock.now()))
        elif heard is None and finding is not None and finding.heard_at is not None:
            signs.append(min(finding.heard_at, finding.read_at))
        return clock.now() - max(signs) >= self.stuck_after

    def _find(self, session: Unfinished) -> Finding | None:
        """The evidence as it is to be stored; None = StEvE has yet to be asked for meter values."""
        heard, known = self._heard.get(session.session_id), session.finding
        if heard is None and known is None and self.capabilities.details and not session.is_gone:
            return None
        return weigh(heard, known, evidence_of_next_start(session.start_wh, session.following))

    # -- writing ---------------------------------------------------------------------------------------

    def _write(self, sessions: Iterable[Unfinished]) -> StuckCounts:
        """Store what has changed, in one transaction; a session that changed meanwhile waits."""
        counts = StuckCounts()
        changes: list[dict[str, Any]] = []
        for session in sessions:
            is_stuck = not session.by_hand and self._is_stuck_now(session)
            finding = session.finding
            if session.by_hand or is_stuck or session.session_id in self._heard:
                finding = self._find(session)
            if finding == session.finding and is_stuck == session.is_stuck == session.is_shown_stuck:
                continue
            is_news = finding is not None and not finding.says_the_same_as(session.finding)
            changes.append(
                {
                    "id": session.session_id,
                    "revision": session.revision,
                    "is_stuck": is_stuck,
                    "state": "stuck" if is_stuck else "open",
                    "finding": finding,
                    "ask": session.by_hand and is_news,
                }
            )
            counts.stuck += is_stuck and not session.is_stuck
            counts.going_on += session.is_stuck and not is_stuck
        if changes:
            bound: dict[str, Any] = {"changes": msgspec.json.encode(changes).decode(), "now": clock.now()}
            with fenced_transaction("stuck", self.fence) as cursor:
                cursor.execute(_WRITE, bound)
        return counts

    def _is_stuck_now(self, session: Unfinished) -> bool:
        """Whether an open session is stuck; only what was just read, or is gone, can change."""
        if session.session_id in self._asked or session.is_gone:
            return self._is_stuck(session)
        return session.is_stuck


def _of(sessions: list[Unfinished], only: Collection[int] | None) -> list[Unfinished]:
    return sessions if only is None else [session for session in sessions if session.steve_id in only]


def _is_routine(session: Unfinished) -> bool:
    """Whether nothing has happened about a session: its meter values were read before, and it waits on."""
    if session.by_hand or session.finding is None:
        return False
    return session.following is None or (session.is_stuck and session.is_shown_stuck)


def _urgency(session: Unfinished) -> tuple[int, datetime, int]:
    """What waits for a decision first, then what may be stuck, then what is known to be; newest first."""
    rank = 0 if session.by_hand else 2 if session.is_stuck else 1
    return rank, session.finding.read_at if session.finding else NEVER, -session.steve_id


def hear(session: Unfinished, values: Sequence[MeterValue]) -> Heard:
    """What the meter values of a session say about its end, and when the last one came."""
    before = session.following.started_at if session.following else None
    register = last_register(values, session.start_wh, session.started_at, before)
    return Heard(register, last_heard_at(values))


def evidence_of_next_start(start_wh: int, following: NextSession | None) -> Evidence | None:
    """What the next session's start register says about the end of this one.

    Nothing where the register went back, and nothing where both began at 0: such a charger counts anew
    for every session.
    """
    if following is None or following.start_wh is None or following.start_wh < max(start_wh, 1):
        return None
    return Evidence("next_start", following.start_wh, following.started_at)


def weigh(heard: Heard | None, known: Finding | None, next_start: Evidence | None) -> Finding:
    """The best evidence there is: meter values before the next start, and no guess where neither speaks.

    Args:
        heard: what the meter values say now; None = they were not read (again).
        known: what is stored.
        next_start: what the next session's start says.
    """
    if heard is None and known is not None and known.source == "meter_value":
        return known
    found = (heard.register if heard else None) or next_start
    read_at = clock.now() if heard is not None or known is None else known.read_at
    heard_at = heard.at if heard is not None else known.heard_at if known is not None else None
    if found is None:
        return Finding(source="none", stop_wh=None, at=None, read_at=read_at, heard_at=heard_at)
    return Finding(
        source=found.source, stop_wh=found.stop_wh, at=found.at, read_at=read_at, heard_at=heard_at
    )


def _believed(
    started_at: datetime | None, first_seen_at: datetime, latest_lower_start_at: datetime | None
) -> datetime | None:
    """A start time unless the charger's clock was plainly wrong, as the rule ``clock_skew`` says."""
    if started_at is None or started_at - first_seen_at > CLOCK_TOLERANCE:
        return None
    if latest_lower_start_at is not None and latest_lower_start_at - started_at > CLOCK_LAG:
        return None
    return started_at


# -- reading and writing the ledger --------------------------------------------------------------------


def read_unfinished(source: str, steve_id: int | None = None) -> list[Unfinished]:
    """Sessions without the station's own stop whose evidence may still change.

    Those are all that StEvE shows as open, and those closed by hand that are not billed yet and were not
    judged by settled meter values.

    Args:
        source: name of the StEvE.
        steve_id: only this session.
    """
    bound: dict[str, Any] = {"source": source, "settle": VALUES_SETTLE_AFTER, "steve_id": steve_id}
    with connection.cursor() as cursor:
        cursor.execute(_READ, bound)
        return [_unfinished(row) for row in cursor.fetchall()]


def store_evidence(cursor: Any, session_id: int, finding: Finding) -> None:
    """Write down the evidence about one session, and ask for a new decision if it has stopped."""
    cursor.execute(
        "UPDATE charging_session SET evidence = %s, needs_decision = stopped_at IS NOT NULL,"
        " asked = asked + 1 WHERE id = %s",
        [msgspec.json.encode(finding).decode(), session_id],
    )


def _unfinished(row: tuple[Any, ...]) -> Unfinished:
    (
        session_id, steve_id, revision, known_fingerprint, started_at, start_wh, first_seen_at, latest_lower,
        changed_at, stopped_at, state, stuck_since, vanished_at, finding,
        next_id, next_started_at, next_start_wh, next_first_seen_at, next_latest_lower,
    ) = row  # fmt: skip
    believed = _believed(started_at, first_seen_at, latest_lower)
    following = None
    if next_id is not None:
        next_believed = _believed(next_started_at, next_first_seen_at, next_latest_lower)
        if next_believed is not None and believed is not None and next_believed < believed:
            next_believed = next_start_wh = None
        following = NextSession(next_believed, next_start_wh)
    return Unfinished(
        session_id=session_id,
        steve_id=steve_id,
        revision=revision,
        fingerprint=bytes(known_fingerprint),
        started_at=believed,
        start_wh=start_wh,
        first_seen_at=first_seen_at,
        changed_at=changed_at,
        by_hand=stopped_at is not None,
        is_gone=vanished_at is not None,
        is_stuck=stuck_since is not None,
        is_shown_stuck=(stuck_since is not None) if state not in {"open", "stuck"} else state == "stuck",
        finding=None if finding is None else msgspec.json.decode(finding, type=Finding),
        following=following,
    )


# Two branches, so that each finds its few sessions by a partial index, however long the history is.
_READ = """
SELECT s.id, s.steve_id, s.revision, s.fingerprint, s.started_at, s.start_wh, s.first_seen_at,
    s.latest_lower_start_at, s.changed_at, s.stopped_at, s.state, s.stuck_since, s.vanished_at,
    s.evidence::text, n.steve_id, n.started_at, n.start_wh, n.first_seen_at, n.latest_lower_start_at
FROM (
    SELECT * FROM charging_session
    WHERE source_id = %(source)s AND stopped_at IS NULL AND superseded_at IS NULL
    UNION ALL
    SELECT * FROM charging_session
    WHERE source_id = %(source)s AND state IN ('open', 'stuck', 'held', 'rejected', 'queued')
      AND stopped_at IS NOT NULL AND stop_actor = 'manual' AND superseded_at IS NULL
      AND (evidence IS NULL OR evidence ->> 'source' <> 'meter_value'
          OR (evidence ->> 'read_at')::timestamptz < changed_at + %(settle)s)
) s
LEFT JOIN LATERAL (
    SELECT * FROM charging_session n
    WHERE n.source_id = s.source_id AND n.charge_box_id = s.charge_box_id
      AND n.connector_id = s.connector_id AND n.steve_id > s.steve_id AND n.superseded_at IS NULL
    ORDER BY n.steve_id LIMIT 1
) n ON true
WHERE %(steve_id)s::bigint IS NULL OR s.steve_id = %(steve_id)s
ORDER BY s.steve_id
"""

# An open session that a person has read the meter of is billed by that reading: only the frequent watch
# over it ends. New evidence about a manual stop asks for a new decision.
_WRITE = """
UPDATE charging_session s SET
    stuck_since = CASE WHEN c.is_stuck THEN coalesce(s.stuck_since, %(now)s) END,
    state = CASE WHEN s.state IN ('open', 'stuck') THEN c.state ELSE s.state END,
    rest_state = CASE WHEN s.rest_state IN ('open', 'stuck') THEN c.state ELSE s.rest_state END,
    evidence = c.finding,
    needs_decision = s.needs_decision OR c.ask,
    asked = s.asked + c.ask::int
FROM jsonb_to_recordset(%(changes)s::jsonb)
    AS c(id bigint, revision int, is_stuck bool, state text, finding jsonb, ask bool)
WHERE s.id = c.id AND s.revision = c.revision
"""
