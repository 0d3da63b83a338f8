"""StEvE, ledger and Lago side by side, per subscription; what differs is named with what to do.

Read only: no side is changed, and nothing is written into the ledger. The window is read piece by piece, so
that a year of a big site fits into memory: what stays is a line per subscription and what differs.
"""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from ocpp_billing import clock
from ocpp_billing.billing.confirm import CLOCK_GRAIN, LOST_AFTER, quantity_of
from ocpp_billing.charging.mask import mask_id_tag
from ocpp_billing.energy import say_kwh
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.wire import events_equal
from ocpp_billing.reconcile.differences import Difference, Lines, Reconciliation
from ocpp_billing.reconcile.ledger import TAKEN, LedgerWindow, look_up
from ocpp_billing.reconcile.pieces import Piece, cut
from ocpp_billing.reconcile.steve import SteveReader
from ocpp_billing.reconcile.usage import compare_what_is_counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.wire import Event
    from ocpp_billing.reconcile.ledger import KnownEvent, LedgerEvent, LedgerSession
    from ocpp_billing.reconcile.steve import SteveSide, Stop
    from ocpp_billing.steve.capabilities import Capabilities
    from ocpp_billing.steve.client import SteveClient

# What Lago does not show where it should be is looked for by its id; were all of it gone, that is enough.
MOST_LOOKED_FOR: Final = 200
HOUR: Final = timedelta(hours=1)
# StEvE's report says some times in whole seconds (3.12).
REPORT_GRAIN: Final = timedelta(seconds=1)
SYNCHRONIZE: Final = (
    "Run: ocpp-billing sync, then look again. What stopped days ago is read again in the coming night, what "
    "stopped more than a month ago within a month."
)


def reconcile(
    source: str,
    steve: SteveClient,
    capabilities: Capabilities,
    lago: LagoClient,
    metric_code: str,
    from_: datetime,
    to: datetime,
    say: Callable[[str], None],
) -> Reconciliation:
    """Compare what StEvE holds, what the ledger has and what Lago has of a window, and name what differs.

    Args:
        source: name of the StEvE.
        steve: asked for the sessions that stopped in the window.
        capabilities: what its release can do.
        lago: asked for our usage events, and for what it counts.
        metric_code: the billable metric that is set; what was sent for others is compared, too.
        from_: begin of the window, inclusive: sessions by their stop, usage events by their own time.
        to: its end, exclusive.
        say: told how it gets on.

    Raises:
        SteveError: when StEvE cannot be asked.
        LagoError: when Lago cannot be asked at all; what concerns one subscription is a difference.
    """
    reader = SteveReader(steve, capabilities, from_, to)
    ledger = LedgerWindow(source, from_, to, reader.basis)
    lines = Lines()
    differences = [*_steve_and_ledger(lines, reader, ledger, say)]
    codes = ledger.metric_codes() | {metric_code}
    differences += _LedgerAndLago(lines, ledger, lago, sorted(codes)).compare(say)
    directories = {code: LagoDirectory(lago, code) for code in codes}
    for line in lines.ordered():
        if line.subscription is not None:
            differences += compare_what_is_counted(line, ledger, lago, directories)
    return Reconciliation(from_, to, lines.ordered(), differences)


# -- StEvE and the ledger ------------------------------------------------------------------------------


def _steve_and_ledger(
    lines: Lines, reader: SteveReader, ledger: LedgerWindow, say: Callable[[str], None]
) -> Iterable[Difference]:
    compared = 0
    for piece in cut(reader.first, ledger.to, ledger.sessions_by_hour(reader.first)):
        side = reader.read(piece)
        sessions = ledger.sessions(
            piece, side.stops, is_first=piece.begin == reader.first, is_last=piece.end == ledger.to
        )
        unseen = [s.steve_id for s in sessions if s.stopped_at is not None and s.steve_id not in side.stops]
        reader.ask_for(side, unseen)
        yield from _compare_sessions(lines, reader, piece, side, sessions)
        compared += len(sessions)
        say(f"StEvE read up to {piece.end:%Y-%m-%d %H:%M}, {compared:,} sessions compared with the ledger")
    if reader.unreadable:
        yield Difference(
            "StEvE and ledger",
            "unreadable",
            None,
            f"{reader.unreadable} rows",
            "StEvE shows rows that cannot be read.",
            "See them as malformed in the portal, and correct them in StEvE.",
        )
    if reader.not_asked:
        yield Difference(
            "StEvE and ledger",
            "not_compared",
            None,
            f"{reader.not_asked} sessions",
            "This StEvE can only be asked for them one by one, which would take too long.",
            "Choose a smaller window.",
        )


def _compare_sessions(
    lines: Lines, reader: SteveReader, piece: Piece, side: SteveSide, sessions: list[LedgerSession]
) -> Iterable[Difference]:
    """Each session once: where StEvE shows it, else where the ledger has it."""
    known = {session.steve_id: session for session in sessions}
    for steve_id, stop in sorted(side.stops.items()):
        if reader.is_in_another_piece(stop, piece):
            continue
        session = known.get(steve_id)
        line = lines.of(None, None) if session is None else lines.of(*session.payer)
        if reader.stopped_in_window(stop):
            line.steve.add(1, max(stop.energy_wh or 0, 0))
        if session is None:
            says = f"StEvE says {_kwh(stop.energy_wh)}, the ledger does not have it."
            yield Difference("StEvE and ledger", "not_read", None, str(steve_id), says, SYNCHRONIZE)
        else:
            yield from _one_session(session, stop)
    for session in sessions:
        if not session.is_of_piece:
            continue
        lines.count(session)
        if session.steve_id in side.gone and not session.is_gone:
            yield Difference(
                "StEvE and ledger",
                "gone",
                session.payer[0],
                str(session.steve_id),
                "StEvE does not hold it any more, the ledger does.",
                "Was its tag or charge box deleted in StEvE? It stays in the ledger and stays billed.",
            )


def _one_session(session: LedgerSession, stop: Stop) -> Iterable[Difference]:
    """Who, when and how much: a number that StEvE gave out twice may well name as many kWh as before."""
    other: list[str] = []
    if session.id_tag is not None and not _is_same_text(session.id_tag, stop.id_tag):
        tags = mask_id_tag(stop.id_tag), mask_id_tag(session.id_tag)
        other.append("another id tag ({}, the ledger {})".format(*tags))
    if not _is_same_time(session.started_at, stop.started_at):
        other.append(f"{_at('a start', stop.started_at)}, the ledger {_at('one', session.started_at)}")
    if session.start_wh != stop.start_wh:
        other.append(f"a start at {say_kwh(stop.start_wh)} kWh, the ledger {say_kwh(session.start_wh)} kWh")
    changed: list[str] = []
    if session.steve_wh != stop.energy_wh:
        changed.append(f"StEvE says {_kwh(stop.energy_wh)}, the ledger {_kwh(session.steve_wh)}.")
    if not _is_same_time(session.stopped_at, stop.stopped_at):
        stops = _at("a stop", stop.stopped_at), _at("one", session.stopped_at)
        changed.append("StEvE says {}, the ledger {}.".format(*stops))
    if other:
        yield Difference(
            "StEvE and ledger",
            "other_session",
            session.payer[0],
            str(session.steve_id),
            " ".join([f"StEvE shows another session by this number: {'; '.join(other)}.", *changed]),
            "Was StEvE restored from a backup, or set up anew? Run: ocpp-billing sync. What it says then "
            "names what to do, and nothing is billed twice by it.",
        )
    elif changed:
        yield Difference(
            "StEvE and ledger",
            "changed",
            session.payer[0],
            str(session.steve_id),
            " ".join(changed),
            SYNCHRONIZE,
        )


def _is_same_text(ledger: str, steve: str) -> bool:
    """Whether a tag is the same; the report cannot write every character (ISO 8859-1)."""
    return steve in {ledger, ledger.encode("latin-1", "replace").decode("latin-1")}


def _is_same_time(ledger: datetime | None, steve: datetime | None) -> bool:
    if ledger is None or steve is None:
        return ledger is steve
    return abs(ledger - steve) < REPORT_GRAIN


def _at(what: str, instant: datetime | None) -> str:
    return f"{what} without a time" if instant is None else f"{what} at {_utc(instant)}"


def _utc(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _kwh(energy_wh: int | None) -> str:
    return "that it is open" if energy_wh is None else f"{say_kwh(energy_wh)} kWh"


# -- the ledger and Lago -------------------------------------------------------------------------------


class _LedgerAndLago:
    """Every usage event of ours, by its id: does Lago hold it, once, and as it was sent?"""

    def __init__(self, lines: Lines, ledger: LedgerWindow, lago: LagoClient, codes: list[str]) -> None:
        self._lines = lines
        self._ledger = ledger
        self._lago = lago
        self._codes = codes
        self._looked_for = 0

    def compare(self, say: Callable[[str], None]) -> Iterable[Difference]:
        """Compare the events that are dated in the window, and those of its sessions that are not."""
        compared = 0
        for piece in cut(self._ledger.from_, self._ledger.to, self._ledger.events_by_hour()):
            events = self._ledger.events(piece)
            held = self._held(piece)
            yield from self._compare(events, held)
            yield from self._unknown(piece, {event.transaction_id for event in events}, held)
            compared += len(events)
            say(f"Lago read up to {piece.end:%Y-%m-%d %H:%M}, {compared:,} usage events compared")
        elsewhere = self._ledger.events_elsewhere_by_hour()
        if not elsewhere:
            return
        for piece in cut(min(elsewhere), max(elsewhere) + HOUR, elsewhere):
            events = self._ledger.events(piece, elsewhere=True)
            if events:
                times = [event.timestamp for event in events]
                held = self._held(Piece(min(times), max(times)))
                yield from self._compare(events, held)

    def _held(self, piece: Piece) -> dict[str, list[Event]]:
        """Usage events of this source that Lago holds in a piece, and as far around it as its clock errs."""
        prefix = f"steve:{self._ledger.source}:"
        held: dict[str, list[Event]] = {}
        for code in self._codes:
            for event in self._lago.events(
                metric=code,
                timestamp_from=piece.begin - CLOCK_GRAIN,
                timestamp_to=piece.end + CLOCK_GRAIN,
            ):
                if event.transaction_id.startswith(prefix):
                    held.setdefault(event.transaction_id, []).append(event)
        return held

    def _compare(self, events: list[LedgerEvent], held: Mapping[str, list[Event]]) -> Iterable[Difference]:
        for event in events:
            rows = held.get(event.transaction_id) or self._look_for(event)
            if rows:
                counted_wh = sum(int(quantity_of(row, event.field_name) * 1000) for row in rows)
                self._lines.of(event.subscription, event.customer).lago.add(len(rows), counted_wh)
                yield from _one_event(event, rows)
            elif event.state in TAKEN and not _may_yet_show(event):
                yield Difference(
                    "ledger and Lago",
                    "missing_in_lago",
                    event.subscription,
                    event.transaction_id,
                    f"The ledger has it as {event.state}, Lago does not hold it.",
                    "If it is accepted it is sent again by itself. If it was confirmed, find out who took it "
                    "out of Lago.",
                )

    def _look_for(self, event: LedgerEvent) -> list[Event]:
        """An event that Lago should hold, wherever it dated it."""
        if event.state not in TAKEN or self._looked_for >= MOST_LOOKED_FOR:
            return []
        self._looked_for += 1
        found = self._lago.event(event.transaction_id)
        return [] if found is None else [found]

    def _unknown(self, piece: Piece, ours: set[str], held: Mapping[str, list[Event]]) -> Iterable[Difference]:
        """What Lago holds in a piece and the ledger does not date there."""
        known = look_up([name for name in held if name not in ours])
        for name, rows in held.items():
            event = known.get(name)
            at = rows[0].at
            if name in ours or (at is not None and not piece.begin <= at < piece.end):
                continue  # what lies on the edge is looked at with the next piece
            if event is not None and event.state not in {"void", "given_up"}:
                yield from self._dated_otherwise(name, event, rows)
                continue
            subscription = rows[0].external_subscription_id
            self._lines.of(subscription, None).lago.add(len(rows), 0)
            if event is not None and event.state == "given_up":
                yield Difference(
                    "ledger and Lago",
                    "turned_up",
                    subscription,
                    name,
                    "It was given up, because Lago did not have it, and is in Lago after all.",
                    "See in Lago whether an invoice counts it; if one does, write a credit note over it.",
                )
                continue
            yield Difference(
                "ledger and Lago",
                "unknown_to_ledger",
                subscription,
                name,
                "Lago holds it, the ledger does not know that it was sent.",
                "Was the database restored? Run: ocpp-billing adopt",
            )

    def _dated_otherwise(self, name: str, event: KnownEvent, rows: list[Event]) -> Iterable[Difference]:
        """An id that the ledger dated otherwise: Lago's ClickHouse store takes that for another event."""
        at = rows[0].at
        if event.state == "came_too_late" or at is None or abs(at - event.timestamp) <= CLOCK_GRAIN:
            return
        as_sent = self._lago.events(
            external_subscription_id=event.subscription,
            metric=event.metric_code,
            timestamp_from=event.timestamp - CLOCK_GRAIN,
            timestamp_to=event.timestamp + CLOCK_GRAIN,
        )
        if any(row.transaction_id == name for row in as_sent):
            self._lines.of(event.subscription, None).lago.add(len(rows), 0)
            yield _twice(
                name,
                event.subscription,
                f"Lago holds it as it was sent, for {_utc(event.timestamp)}, and once more for {_utc(at)}.",
            )


def _may_yet_show(event: LedgerEvent) -> bool:
    """Lago's ClickHouse store answers before it stores."""
    is_new = event.accepted_at is not None and clock.now() - event.accepted_at < LOST_AFTER
    return is_new and event.state == "accepted"


def _one_event(event: LedgerEvent, rows: list[Event]) -> Iterable[Difference]:
    name, subscription = event.transaction_id, event.subscription
    if len(rows) > 1:
        of_whom = ", ".join(str(row.external_subscription_id) for row in rows)
        yield _twice(name, subscription, f"Lago holds it {len(rows)} times ({of_whom}).")
    if event.state not in TAKEN:
        says = f"Lago holds it, the ledger has it as {event.state}."
        do = "The next synchronization looks it up before anything is sent: ocpp-billing sync"
        if event.state in {"held", "rejected"}:
            do = "Look at the session in the portal: it says why."
        yield Difference("ledger and Lago", "ahead_of_ledger", subscription, name, says, do)
    differences = events_equal(event.as_sent(), rows[0])
    if differences:
        yield Difference(
            "ledger and Lago",
            "differs_in_lago",
            subscription,
            name,
            "; ".join(differences),
            "Another sender used our id, or Lago was changed by hand. The session is held when it is "
            "confirmed.",
        )


def _twice(name: str, subscription: str, says: str) -> Difference:
    do = "Take the surplus back with a credit note, and report it."
    return Difference("ledger and Lago", "twice_in_lago", subscription, name, says, do)
