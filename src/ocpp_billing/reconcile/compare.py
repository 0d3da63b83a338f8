"""StEvE, ledger and Lago side by side, per subscription; what differs is named with what to do.

Read only: no side is changed, and nothing is written into the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal

from ocpp_billing import clock
from ocpp_billing.billing.balance import Amount
from ocpp_billing.billing.confirm import CLOCK_GRAIN, LOST_AFTER, compare_usage, quantity_of
from ocpp_billing.charging.models import SessionState
from ocpp_billing.energy import say_kwh
from ocpp_billing.lago.errors import AnswerError, Forbidden, NoActiveSubscription, Unauthorised
from ocpp_billing.lago.wire import events_equal
from ocpp_billing.reconcile.ledger import LedgerEvent, read_ledger, states_of
from ocpp_billing.reconcile.steve import ask_for, read_stops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.directory import LagoDirectory
    from ocpp_billing.lago.wire import Event, Usage
    from ocpp_billing.reconcile.ledger import LedgerSession, LedgerSide
    from ocpp_billing.reconcile.steve import SteveSide
    from ocpp_billing.steve.capabilities import Capabilities
    from ocpp_billing.steve.client import SteveClient

Between = Literal["StEvE and ledger", "ledger and Lago"]
TAKEN: Final = ("accepted", "confirmed")


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sides that do not say the same.

    Attributes:
        between: which two.
        code: what it is, for scripts.
        subscription: Lago's external subscription id; None where nobody's.
        what: StEvE's transaction id, our usage event's id, or a billing period.
        says: what differs.
        do: what to do about it.
    """

    between: Between
    code: str
    subscription: str | None
    what: str
    says: str
    do: str

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing reconcile --json``."""
        return {
            "between": self.between,
            "code": self.code,
            "subscription_id": self.subscription,
            "what": self.what,
            "says": self.says,
            "do": self.do,
        }


@dataclass(frozen=True, slots=True)
class Period:
    """What Lago counts in a billing period that overlaps the window, against what it was sent for it."""

    from_: datetime
    to: datetime
    invoiced: bool
    counted_kwh: str
    ours_wh: int
    others_kwh: str | None
    agrees: bool

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing reconcile --json``."""
        return {
            "from": self.from_.isoformat(),
            "to": self.to.isoformat(),
            "invoiced": self.invoiced,
            "counted_kwh": self.counted_kwh,
            "ours_wh": self.ours_wh,
            "others_kwh": self.others_kwh,
            "agrees": self.agrees,
        }


@dataclass(slots=True)
class Line:
    """One subscription, or what belongs to none.

    Attributes:
        subscription: Lago's external id; None = nobody pays (yet).
        customer: Lago's external id.
        steve: sessions that StEvE holds as stopped in the window.
        ledger: by state, sessions counted once under the state that names them, energy by its parts.
        lago: usage events of ours that Lago holds, counted as sessions.
        periods: what Lago counts.
    """

    subscription: str | None
    customer: str | None = None
    steve: Amount = field(default_factory=Amount)
    ledger: dict[str, Amount] = field(default_factory=dict)
    lago: Amount = field(default_factory=Amount)
    periods: list[Period] = field(default_factory=list)

    def add(self, state: str, sessions: int, energy_wh: int) -> None:
        """Count a part of a session in."""
        self.ledger.setdefault(state, Amount()).add(sessions, energy_wh)

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing reconcile --json``."""
        return {
            "subscription_id": self.subscription,
            "customer_id": self.customer,
            "steve": self.steve.to_json(),
            "ledger": {state: amount.to_json() for state, amount in self.ledger.items()},
            "lago": {"events": self.lago.sessions, "energy_wh": self.lago.energy_wh},
            "periods": [period.to_json() for period in self.periods],
        }


@dataclass(slots=True)
class Reconciliation:
    """All three sides of a window.

    Attributes:
        from_: begin, inclusive.
        to: end, exclusive.
        lines: by subscription; what belongs to nobody comes last.
        differences: what does not agree.
    """

    from_: datetime
    to: datetime
    lines: list[Line]
    differences: list[Difference]

    @property
    def agrees(self) -> bool:
        """Whether all three sides say the same."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing reconcile --json``."""
        return {
            "from": self.from_.isoformat(),
            "to": self.to.isoformat(),
            "agrees": self.agrees,
            "subscriptions": [line.to_json() for line in self.lines],
            "differences": [difference.to_json() for difference in self.differences],
        }


def reconcile(
    source: str,
    steve: SteveClient,
    capabilities: Capabilities,
    lago: LagoClient,
    directory: LagoDirectory,
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
        directory: knows the metric.
        from_: begin of the window, inclusive: sessions by their stop, usage events by their own time.
        to: its end, exclusive.
        say: told how it gets on.

    Raises:
        SteveError: when StEvE cannot be asked.
        LagoError: when Lago cannot be asked at all; what concerns one subscription is a difference.
    """
    side = read_stops(steve, capabilities, from_, to, say)
    ledger = read_ledger(source, from_, to, side.stops)
    unseen = [
        s.steve_id for s in ledger.sessions if s.stopped_at is not None and s.steve_id not in side.stops
    ]
    ask_for(side, steve, capabilities, unseen)
    lines = _Lines(ledger)
    differences = [*_steve_and_ledger(lines, side, ledger, from_, to)]
    say(f"{len(ledger.sessions):,} sessions compared with the ledger")
    differences += _ledger_and_lago(source, lines, ledger, lago, directory, from_, to)
    say("usage events compared with Lago")
    for line in lines.of_subscriptions():
        differences += _usage(source, line, ledger, lago, directory, from_, to)
    return Reconciliation(from_, to, lines.ordered(), differences)


class _Lines:
    """The lines while they are filled.

    Who pays for a session is what its newest usage event says, else its latest decision.
    """

    def __init__(self, ledger: LedgerSide) -> None:
        self._lines: dict[str | None, Line] = {}
        self._events: dict[int, list[LedgerEvent]] = {}
        for event in ledger.events:
            self._events.setdefault(event.session_id, []).append(event)

    def of(self, subscription: str | None, customer: str | None) -> Line:
        line = self._lines.setdefault(subscription, Line(subscription))
        if subscription is not None:
            line.customer = line.customer or customer
        return line

    def of_session(self, session: LedgerSession) -> Line:
        events = self._events.get(session.session_id)
        if events:
            return self.of(events[-1].subscription, events[-1].customer)
        return self.of(session.subscription, session.customer)

    def count(self, session: LedgerSession) -> None:
        """Count a session's parts where they stand."""
        self.of_session(session).add(session.state, 1, 0)
        if session.rest_state is not None:
            self.of(session.subscription, session.customer).add(session.rest_state, 0, session.rest_wh)
        for event in self._events.get(session.session_id, ()):
            self.of(event.subscription, event.customer).add(event.state, 0, event.energy_wh)

    def of_subscriptions(self) -> list[Line]:
        return [line for line in self.ordered() if line.subscription is not None]

    def ordered(self) -> list[Line]:
        order = [state.value for state in SessionState]
        for line in self._lines.values():
            line.ledger = {state: line.ledger[state] for state in order if line.ledger.get(state)}
        return sorted(
            self._lines.values(), key=lambda line: (line.subscription is None, line.subscription or "")
        )


# -- StEvE and the ledger ------------------------------------------------------------------------------


def _steve_and_ledger(
    lines: _Lines, side: SteveSide, ledger: LedgerSide, from_: datetime, to: datetime
) -> Iterable[Difference]:
    synchronize = "Run: ocpp-billing sync, then look again."
    known = {session.steve_id: session for session in ledger.sessions}
    for steve_id, stop in sorted(side.stops.items()):
        session = known.get(steve_id)
        line = lines.of(None, None) if session is None else lines.of_session(session)
        if stop.stopped_at is not None and from_ <= stop.stopped_at < to:
            line.steve.add(1, max(stop.energy_wh or 0, 0))
        if session is None:
            says = f"StEvE says {_kwh(stop.energy_wh)}, the ledger does not have it."
            yield Difference("StEvE and ledger", "not_read", None, str(steve_id), says, synchronize)
        elif session.steve_wh != stop.energy_wh:
            says = f"StEvE says {_kwh(stop.energy_wh)}, the ledger {_kwh(session.steve_wh)}."
            yield Difference(
                "StEvE and ledger", "changed", line.subscription, str(steve_id), says, synchronize
            )
    for session in ledger.sessions:
        lines.count(session)
        if session.steve_id in side.gone and not session.is_gone:
            yield Difference(
                "StEvE and ledger",
                "gone",
                lines.of_session(session).subscription,
                str(session.steve_id),
                "StEvE does not hold it any more, the ledger does.",
                "Was its tag or charge box deleted in StEvE? It stays in the ledger and stays billed.",
            )
    if side.unreadable:
        yield Difference(
            "StEvE and ledger",
            "unreadable",
            None,
            f"{side.unreadable} rows",
            "StEvE shows rows that cannot be read.",
            "See them as malformed in the portal, and correct them in StEvE.",
        )
    if side.not_asked:
        yield Difference(
            "StEvE and ledger",
            "not_compared",
            None,
            f"{len(side.not_asked)} sessions",
            "This StEvE can only be asked for them one by one, which would take too long.",
            "Choose a smaller window.",
        )


def _kwh(energy_wh: int | None) -> str:
    return "that it is open" if energy_wh is None else f"{say_kwh(energy_wh)} kWh"


# -- the ledger and Lago -------------------------------------------------------------------------------


def _ledger_and_lago(
    source: str,
    lines: _Lines,
    ledger: LedgerSide,
    lago: LagoClient,
    directory: LagoDirectory,
    from_: datetime,
    to: datetime,
) -> Iterable[Difference]:
    """Every usage event of ours, by its id: does Lago hold it, once, and as it was sent?"""
    held = _held_by_lago(source, ledger, lago, directory, from_, to)
    ours = {event.transaction_id: event for event in ledger.events}
    elsewhere = states_of([name for name in held if name not in ours])
    for name, rows in held.items():
        event = ours.get(name)
        if event is None:
            if elsewhere.get(name) not in {None, "void", "given_up"}:
                continue  # of another window, or known not to count
            subscription = rows[0].external_subscription_id
            if elsewhere.get(name) == "given_up":
                yield Difference(
                    "ledger and Lago",
                    "turned_up",
                    subscription,
                    name,
                    "It was given up, because Lago did not have it, and is in Lago after all.",
                    "See in Lago whether an invoice counts it; if one does, write a credit note over it.",
                )
                lines.of(subscription, None).lago.add(1, 0)
                continue
            yield Difference(
                "ledger and Lago",
                "unknown_to_ledger",
                subscription,
                name,
                "Lago holds it, the ledger does not know that it was sent.",
                "Was the database restored? Run: ocpp-billing adopt",
            )
            lines.of(subscription, None).lago.add(1, 0)
            continue
        counted_wh = sum(int(quantity_of(row, event.field_name) * 1000) for row in rows)
        lines.of(event.subscription, event.customer).lago.add(len(rows), counted_wh)
        yield from _one_event(event, rows)
    now = clock.now()
    for event in ledger.events:
        if event.transaction_id not in held and event.state in TAKEN:
            fresh = event.accepted_at is not None and now - event.accepted_at < LOST_AFTER
            if fresh and event.state == "accepted":
                continue  # Lago's ClickHouse store answers before it stores
            yield Difference(
                "ledger and Lago",
                "missing_in_lago",
                event.subscription,
                event.transaction_id,
                f"The ledger has it as {event.state}, Lago does not hold it.",
                "If it is accepted it is sent again by itself. If it was confirmed, find out who took it "
                "out of Lago.",
            )


def _held_by_lago(
    source: str,
    ledger: LedgerSide,
    lago: LagoClient,
    directory: LagoDirectory,
    from_: datetime,
    to: datetime,
) -> Mapping[str, list[Event]]:
    """Usage events of this source that Lago holds in the window, and around what belongs to it."""
    times = [event.timestamp for event in ledger.events]
    earliest = min([from_, *times]) - CLOCK_GRAIN
    latest = max([to, *times]) + CLOCK_GRAIN
    prefix = f"steve:{source}:"
    held: dict[str, list[Event]] = {}
    for code in sorted({directory.metric_code, *(event.metric_code for event in ledger.events)}):
        for event in lago.events(metric=code, timestamp_from=earliest, timestamp_to=latest):
            if event.transaction_id.startswith(prefix):
                held.setdefault(event.transaction_id, []).append(event)
    return held


def _one_event(event: LedgerEvent, rows: list[Event]) -> Iterable[Difference]:
    name, subscription = event.transaction_id, event.subscription
    if len(rows) > 1:
        says = (
            f"Lago holds it {len(rows)} times ({', '.join(str(r.external_subscription_id) for r in rows)})."
        )
        do = "Take the surplus back with a credit note, and report it."
        yield Difference("ledger and Lago", "twice_in_lago", subscription, name, says, do)
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


# -- what Lago counts ----------------------------------------------------------------------------------


def _usage(
    source: str,
    line: Line,
    ledger: LedgerSide,
    lago: LagoClient,
    directory: LagoDirectory,
    from_: datetime,
    to: datetime,
) -> Iterable[Difference]:
    """What Lago counts for a subscription in each billing period that overlaps the window."""
    assert line.subscription is not None  # noqa: S101 - only those are asked for
    events = [event for event in ledger.events if event.subscription == line.subscription]
    taken = [event for event in events if event.state in TAKEN]
    metric = directory.metric()
    if not taken or line.customer is None or metric is None:
        return
    plans = {event.plan_code for event in taken if event.plan_code is not None}
    if any(charge.pay_in_advance for charge in directory.charges_of_plans(plans).values()):
        yield from _fees(line.subscription, taken, lago, directory)
        return
    try:
        periods = list(_periods(line.customer, line.subscription, lago, directory, from_, to))
    except (Unauthorised, Forbidden):
        raise
    except AnswerError as error:
        yield Difference(
            "ledger and Lago",
            "not_counted",
            line.subscription,
            "usage",
            f"Lago does not say what it counts: {error}",
            "Put it right in Lago, then look again.",
        )
        return
    for usage, invoiced in periods:
        what = f"{usage.from_datetime:%Y-%m-%d} to {usage.to_datetime:%Y-%m-%d}"
        compared = compare_usage(source, line.subscription, usage, lago, directory, metric)
        if compared is None:
            yield Difference(
                "ledger and Lago",
                "not_charged",
                line.subscription,
                what,
                f"The plan does not charge {directory.metric_code} in this period.",
                "Add the charge in Lago: ocpp-billing doctor says where.",
            )
            continue
        others = compared.others_kwh
        line.periods.append(
            Period(
                usage.from_datetime,
                usage.to_datetime,
                invoiced,
                f"{compared.counted_kwh:f}",
                compared.ours_wh,
                None if others is None else f"{others:f}",
                compared.agrees,
            )
        )
        if not compared.agrees:
            yield Difference(
                "ledger and Lago",
                "count_differs",
                line.subscription,
                what,
                f"Lago counts {compared.counted_kwh:f} kWh; ours are {say_kwh(compared.ours_wh)} kWh, "
                f"those of others {others or Decimal(0):f} kWh.",
                "Usage may lag behind by minutes: look again. Else the invoice is not what was sent: see the "
                "events of this subscription in Lago, and the plan's filters.",
            )


def _periods(
    customer: str,
    subscription: str,
    lago: LagoClient,
    directory: LagoDirectory,
    from_: datetime,
    to: datetime,
) -> Iterable[tuple[Usage, bool]]:
    """Usage of each billing period that overlaps the window: (usage, whether it is invoiced already)."""
    begin = to
    try:
        current = lago.current_usage(customer, subscription, directory.metric_code)
    except NoActiveSubscription:
        pass
    else:
        begin = current.from_datetime
        if current.from_datetime < to and current.to_datetime >= from_:
            yield current, False
    if from_ < begin:
        for past in lago.past_usage(customer, subscription, directory.metric_code):
            if past.from_datetime < to and past.to_datetime >= from_ + timedelta(seconds=1):
                yield past, True


def _fees(
    subscription: str, taken: list[LedgerEvent], lago: LagoClient, directory: LagoDirectory
) -> Iterable[Difference]:
    """Where the plan charges in advance each event has a fee of its own."""
    charged = {
        fee.event_transaction_id
        for fee in lago.fees(external_subscription_id=subscription, metric=directory.metric_code)
    }
    for event in taken:
        if event.transaction_id not in charged:
            yield Difference(
                "ledger and Lago",
                "no_fee",
                subscription,
                event.transaction_id,
                "The plan charges in advance, and Lago made no fee of this event.",
                "Look at Lago's background jobs; a fee that was lost is not made again by itself.",
            )
