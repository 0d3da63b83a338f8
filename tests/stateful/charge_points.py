"""What really happens at the charge points, and what they say of it: the truth that oracles judge by.

A charge point has meters that only count up, a clock that may be wrong, and a connection that may be down.
Cars charge at it, whatever is said about them. What it says is said in OCPP's messages to a simulated
StEvE, some of them late, twice, wrong or never. Nothing in here knows what the bridge reads or does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

from ocpp_billing.simulators.steve import CallError, Sample
from ocpp_billing.simulators.steve_store import MANUAL, OPEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocpp_billing.simulators.steve import SteveSimulator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Where a clock that was reset begins: StEvE cannot store the very first second.
RESET_CLOCK = datetime(1970, 1, 2, tzinfo=UTC)
Fault = Literal["", "register_back", "before_start", "day_ahead", "other_case"]


class Stop(NamedTuple):
    """A stop as StEvE shows it.

    Attributes:
        at: its time, by the clock of whoever said it.
        register_wh: its register.
        by_hand: an operator closed the session; nobody asked the charge point.
    """

    at: datetime
    register_wh: int
    by_hand: bool = False


class Reading(NamedTuple):
    """A meter value that StEvE kept: the total energy register."""

    at: datetime
    register_wh: int


@dataclass(eq=False)
class Charge:
    """A car that charges, from plug to unplug.

    Attributes:
        box: name of the charge point.
        connector: number of the connector.
        id_tag: the tag as the charge point spells it.
        began_at: when it really began.
        start_wh: register at the beginning.
        said_start_at: the same by the charge point's clock.
        delivered_wh: what the car got so far.
        ended_at: when it really ended; None while it goes on.
        steve_id: StEvE's transaction id; None while StEvE knows nothing of it.
        readings: meter values that StEvE kept, in the order of their arrival.
        shown: what StEvE showed as its end over time, the present one last; empty = as open.
        refused: why StEvE set messages aside.
        visible: whether StEvE still shows it at all.
    """

    box: str
    connector: int
    id_tag: str
    began_at: datetime
    start_wh: int
    said_start_at: datetime
    delivered_wh: int = 0
    ended_at: datetime | None = None
    said_end: Stop | None = None
    told_end: bool = False
    steve_id: int | None = None
    readings: list[Reading] = field(default_factory=list)
    shown: list[Stop] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    visible: bool = False

    @property
    def register_wh(self) -> int:
        """What the meter showed at the end, or shows now."""
        return self.start_wh + self.delivered_wh

    @property
    def stop(self) -> Stop | None:
        """The stop that StEvE shows now; None = open."""
        return self.shown[-1] if self.shown else None

    def __str__(self) -> str:
        return f"transaction {self.steve_id} ({self.id_tag} at {self.box}/{self.connector})"


@dataclass(eq=False)
class ChargePoint:
    """A charge point: its clock, its connection, its meters.

    Attributes:
        clock_error: what its clock is ahead of the right time.
        online: whether StEvE hears it; else its messages wait, in order.
        unanswered: a charge whose start StEvE has not committed yet, and its id; what follows waits.
    """

    name: str
    clock_error: timedelta = timedelta()
    online: bool = True
    unanswered: tuple[Charge, int] | None = None
    registers_wh: dict[int, int] = field(default_factory=dict)
    running: dict[int, Charge] = field(default_factory=dict)
    waiting: list[Callable[[], None]] = field(default_factory=list)


class ChargePoints:
    """All charge points of one StEvE, and every charge there ever was.

    Args:
        steve: whom they talk to.
        now: the right time.
    """

    def __init__(self, steve: SteveSimulator, now: Callable[[], datetime]) -> None:
        self._steve = steve
        self._now = now
        self.boxes: dict[str, ChargePoint] = {}
        self.charges: list[Charge] = []

    def box(self, name: str) -> ChargePoint:
        """A charge point, built when it is new."""
        return self.boxes.setdefault(name, ChargePoint(name))

    def clock_of(self, box: ChargePoint) -> datetime:
        """What time a charge point thinks it is; charge points know whole seconds."""
        return (self._now() + box.clock_error).replace(microsecond=0)

    # -- cars ------------------------------------------------------------------------------------------

    def begin(self, box_name: str, connector: int, id_tag: str, *, slowly: bool = False) -> Charge:
        """A car is plugged in. One that was still there has left, and nobody was told.

        ``slowly``: StEvE gives an id to the start, but commits it only with :meth:`commit`.
        """
        box = self.box(box_name)
        if connector in box.running:
            self.end(box.running[connector], told=False)
        charge = Charge(
            box=box_name,
            connector=connector,
            id_tag=id_tag,
            began_at=self._now(),
            start_wh=box.registers_wh.setdefault(connector, 1_000),
            said_start_at=self.clock_of(box),
        )
        box.running[connector] = charge
        self.charges.append(charge)
        self._say(box, lambda: self._tell_start(charge, slowly=slowly))
        return charge

    def deliver(self, charge: Charge, energy_wh: int) -> None:
        """A car that is plugged in gets some energy."""
        assert charge.ended_at is None
        charge.delivered_wh += energy_wh
        self.box(charge.box).registers_wh[charge.connector] = charge.register_wh

    def measure(self, charge: Charge, *, in_kwh: bool = False) -> None:
        """The charge point sends what its meter shows now."""
        box, register_wh = self.box(charge.box), charge.register_wh
        reading = Reading(self.clock_of(box), register_wh)
        text = f"{register_wh // 1000}.{register_wh % 1000:03d}" if in_kwh else str(register_wh)
        sample = Sample(reading.at, text, "kWh" if in_kwh else "Wh")
        self._say(box, lambda: self._tell_reading(charge, reading, sample))

    def end(self, charge: Charge, *, told: bool = True, fault: Fault = "") -> None:
        """A car is unplugged.

        Args:
            charge: the car.
            told: whether the charge point says so now; if not, :meth:`tell_end` may, later.
            fault: what is wrong with what it says.
        """
        box = self.box(charge.box)
        assert charge.ended_at is None
        charge.ended_at = self._now()
        del box.running[charge.connector]
        at, register_wh = self.clock_of(box), charge.register_wh
        if fault == "before_start":
            at = charge.said_start_at - timedelta(hours=1)
        elif fault == "day_ahead":
            at += timedelta(days=1)
        elif fault == "register_back":
            register_wh = max(charge.start_wh - 500, 0)
        charge.said_end = Stop(at, register_wh)
        if told:
            self.tell_end(charge, id_tag=charge.id_tag.swapcase() if fault == "other_case" else None)

    def tell_end(self, charge: Charge, *, id_tag: str | None = None) -> None:
        """The charge point says how a charge ended, at once or late."""
        assert charge.said_end is not None
        assert not charge.told_end
        charge.told_end = True
        stop = charge.said_end
        self._say(self.box(charge.box), lambda: self._tell_stop(charge, charge.box, stop, id_tag))

    def tell_end_again(self, charge: Charge, *, more_wh: int, box_name: str | None = None) -> None:
        """The end is said once more with another register, by the charge point itself or by another one."""
        assert charge.said_end is not None
        register_wh = max(charge.said_end.register_wh + more_wh, 0)
        stop = Stop(charge.said_end.at + timedelta(seconds=5), register_wh)
        name = box_name or charge.box
        self._say(self.box(name), lambda: self._tell_stop(charge, name, stop, None))

    # -- charge points ---------------------------------------------------------------------------------

    def go_offline(self, box_name: str) -> None:
        """StEvE hears nothing of it; cars charge all the same."""
        self.box(box_name).online = False

    def come_online(self, box_name: str) -> None:
        """What waited is said, in order."""
        box = self.box(box_name)
        box.online = True
        self._say_on(box)

    def set_clock(self, box_name: str, error: timedelta | Literal["reset"]) -> None:
        """Its clock goes wrong, or right again (no error); ``reset``: it begins in 1970."""
        box = self.box(box_name)
        box.clock_error = RESET_CLOCK - self._now() if error == "reset" else error

    def start_again(self, charge: Charge) -> None:
        """The same StartTransaction once more: StEvE gives the same number."""
        if charge.visible and charge.steve_id is not None:
            again = self._steve.start_transaction(
                charge.box, charge.connector, charge.id_tag, charge.said_start_at, charge.start_wh
            )
            assert again == charge.steve_id

    # -- StEvE's operator ------------------------------------------------------------------------------

    def close_by_hand(self, charge: Charge) -> None:
        """An operator closes a session in StEvE's books; StEvE finds an end for it."""
        assert charge.steve_id is not None
        self._steve.manual_stop(charge.steve_id)
        self._look(charge)

    def delete_tag(self, id_tag: str) -> None:
        """An operator deletes a tag: StEvE forgets every transaction of it."""
        for box in self.unanswered():  # StEvE's database lets the deletion wait for what it would delete
            if box.unanswered is not None and box.unanswered[0].id_tag.casefold() == id_tag.casefold():
                self.commit(box)
        self._steve.delete_tag(id_tag)
        for charge in self.charges:
            if charge.id_tag.casefold() == id_tag.casefold():
                charge.visible = False

    # -- what StEvE was told ---------------------------------------------------------------------------

    def known_to_steve(self) -> Iterator[Charge]:
        """Charges that StEvE has, or had, in the order of their numbers."""
        known = [charge for charge in self.charges if charge.steve_id is not None]
        return iter(sorted(known, key=lambda charge: charge.steve_id or 0))

    def unanswered(self) -> list[ChargePoint]:
        """Charge points that wait for an answer to a start."""
        return [box for box in self.boxes.values() if box.unanswered is not None]

    def commit(self, box: ChargePoint) -> None:
        """StEvE commits a start and answers; the charge point goes on."""
        assert box.unanswered is not None
        charge, number = box.unanswered
        box.unanswered = None
        self._steve.commit(number)
        self._answer_start(charge, number)
        self._say_on(box)

    def _say(self, box: ChargePoint, message: Callable[[], None]) -> None:
        box.waiting.append(message)
        self._say_on(box)

    def _say_on(self, box: ChargePoint) -> None:
        """Charge points say one thing at a time."""
        while box.waiting and box.online and box.unanswered is None:
            box.waiting.pop(0)()

    def _tell_start(self, charge: Charge, *, slowly: bool) -> None:
        try:
            number = self._steve.start_transaction(
                charge.box,
                charge.connector,
                charge.id_tag,
                charge.said_start_at,
                charge.start_wh,
                committed=not slowly,
            )
        except CallError as error:
            charge.refused.append(str(error))
            return
        if self._steve.store.row_of(number) is None:
            self.box(charge.box).unanswered = charge, number
        else:
            self._answer_start(charge, number)

    def _answer_start(self, charge: Charge, number: int) -> None:
        charge.steve_id = number
        charge.visible = True
        self._note(charge)

    def _tell_reading(self, charge: Charge, reading: Reading, sample: Sample) -> None:
        if charge.steve_id is None:
            return
        if self._steve.meter_values(charge.box, charge.connector, [sample], charge.steve_id):
            charge.readings.append(reading)
        else:
            charge.refused.append("meter value dropped")

    def _tell_stop(self, charge: Charge, box_name: str, stop: Stop, id_tag: str | None) -> None:
        if charge.steve_id is None:
            return
        error = self._steve.stop_transaction(
            charge.steve_id, box_name, stop.at, stop.register_wh, id_tag=id_tag
        )
        if error is not None:
            charge.refused.append(error)
            return
        self._look(charge)
        assert charge.stop == stop, f"{charge}: StEvE took {stop} and shows {charge.stop}"
        self._note(charge)

    def _look(self, charge: Charge) -> None:
        """What StEvE's database now holds as the end of a charge."""
        store = self._steve.store
        row = None if charge.steve_id is None else store.row_of(charge.steve_id)
        if row is None or store.actor[row] == OPEN:
            return
        at = EPOCH + timedelta(milliseconds=store.stop_ms[row])
        stop = Stop(at, store.stop_wh[row], by_hand=store.actor[row] == MANUAL)
        if stop != charge.stop:
            charge.shown.append(stop)

    def _note(self, charge: Charge) -> None:
        """The simulator's own ledger is to know the truth, too."""
        if charge.visible and charge.steve_id is not None:
            self._steve.note_delivered(
                charge.steve_id, charge.delivered_wh, ended=charge.ended_at is not None
            )
