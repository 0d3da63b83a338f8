"""What must become of every session: judged by the charge points' truth and by Lago's own books.

The rules are DESIGN's, told a second time in the slowest way, over what charge points said and people
ordered; no line of them is the engine's. Of the ledger only two things are asked: which stop it knows of a
session (when did it learn that?), and what it shows as the session's state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from ocpp_billing.charging.models import ChargingSession, IdTag
from tests.crash.oracle import assert_whole, under_way
from tests.stateful.charge_points import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stateful.charge_points import Charge, ChargePoints, Reading
    from tests.world import World

FIVE_MINUTES = timedelta(minutes=5)
LARGEST_CORRECTION_WH = 50_000
# Holds that rest on more than the session itself and the thresholds.
MAY_COME_UP_LATER = {"identity_conflict", "register_overlap", "manual_stop_without_evidence"}
# Releases whose meter values anybody can read (facts, section 0: details since 3.12).
SHOWS_METER_VALUES = {"3.12", "3.13", "3.14"}


class Verdict(NamedTuple):
    """What should become of a stopped session of which Lago knows nothing: a payer, or why not."""

    outcome: str
    reason: str | None = None
    payer: str | None = None


@dataclass
class Interval:
    """A time in which a person has said who pays for a tag; inactive: that nobody does for now."""

    tag: str
    customer: str
    since: datetime
    until: datetime | None = None
    active: bool = True
    mapping_id: int = 0

    def meets(self, at: datetime) -> bool:
        return self.since <= at and (self.until is None or at < self.until)


@dataclass
class Orders:
    """What people have ordered.

    Attributes:
        mappings: who pays, when.
        subscriptions: the one subscription of each customer; None = there is none.
        limits: thresholds, by the name of their setting.
    """

    mappings: list[Interval] = field(default_factory=list)
    subscriptions: dict[str, str | None] = field(default_factory=dict)
    limits: dict[str, int] = field(
        default_factory=lambda: {
            "MAX_SESSION_KWH": 500,
            "MAX_POWER_KW": 400,
            "MAX_SESSION_HOURS": 72,
            "MIN_SESSION_KWH": 0,
        }
    )


def one_tag(text: str) -> str:
    """However it is spelled."""
    return text.rstrip().lower()


class Oracle:
    """Watches what becomes of the sessions of some charge points; knows nothing of other sessions."""

    def __init__(self, world: World, points: ChargePoints, orders: Orders) -> None:
        self.world, self.points, self.orders = world, points, orders
        self.shows_meter_values = str(world.steve.release).rpartition(".")[0] in SHOWS_METER_VALUES
        self.long_ago = world.clock.now() - timedelta(days=60)
        self.first_seen: dict[int, datetime] = {}
        self.stops: dict[int, tuple[Stop, datetime]] = {}
        self.parents: dict[str, list[tuple[datetime, str | None]]] = {}
        self.numbers: dict[str, int] = {}
        self.doubtful: set[str] = set()
        self.billed: dict[int, tuple[str, int]] = {}
        self._requests = 0

    # -- after every run -------------------------------------------------------------------------------

    def observe(self, at: datetime) -> None:
        """A run that began at this instant is over: what it sent to Lago must have been right.

        ``at`` is also when it learned what it learned.
        """
        for number, stopped_at, stop_wh, actor in ChargingSession.objects.filter(
            superseded_at=None
        ).values_list("steve_id", "stopped_at", "stop_wh", "stop_actor"):
            if number not in self.first_seen:
                self.first_seen[number] = at
            if stopped_at is not None:
                stop = Stop(stopped_at, stop_wh, actor == "manual")
                known = self.stops.get(number)
                learned_at = known[1] if known is not None and known[0].at == stopped_at else at
                self.stops[number] = stop, learned_at
        self._observe_tags(at)
        assert_whole(self.world)
        self._check_what_was_billed()

    def _observe_tags(self, at: datetime) -> None:
        """Which tags the bridge could know by now, and under which number and parent."""
        requests = self.world.steve.requests
        listed = any("/ocppTags" in request["path"] for request in requests[self._requests :])
        self._requests = len(requests)
        tags = self.world.steve.store.tags
        shown = {one_tag(charge.id_tag) for charge in self._known_charges() if charge.visible}
        for number, tag in tags.items():
            name = one_tag(tag.id_tag)
            if not listed and name not in shown:
                continue
            if self.numbers.setdefault(name, number) != number:
                self.numbers[name] = number
                self.doubtful.add(name)
            if listed:
                parent = None if tag.parent_pk is None else one_tag(tags[tag.parent_pk].id_tag)
                self.parents.setdefault(name, []).append((at, parent))

    def _known_charges(self) -> Iterator[Charge]:
        return (charge for charge in self.points.known_to_steve() if charge.steve_id in self.first_seen)

    def _check_what_was_billed(self) -> None:
        billed: dict[int, tuple[str, int]] = {}
        for name, (subscription, energy_wh) in self.world.lago_events().items():
            number = int(name.split(":")[2].partition("-")[0])
            before = billed.get(number, (subscription, 0))
            assert before[0] == subscription, (
                f"transaction {number} is billed to {before[0]} and {subscription}"
            )
            billed[number] = subscription, before[1] + energy_wh
        for charge in self._known_charges():
            number = charge.steve_id
            now, before = billed.get(number), self.billed.get(number)
            if now == before:
                continue
            assert now is not None, f"{charge}: {before} has vanished from Lago"
            assert number in self.stops, f"{charge}: billed, and never stopped"
            stop, _ = self.stops[number]
            self._assert_was_said(charge, stop)
            assert now[1] == max(stop.register_wh - charge.start_wh, 0), f"{charge}: {now} billed for {stop}"
            if before is None:
                allowed = self.verdicts(charge, stop)
                payers = {self.orders.subscriptions[each.payer] for each in allowed if each.payer}
                assert now[0] in payers, f"{charge}: billed to {now[0]}, but {allowed} is right"
            else:
                assert now[0] == before[0], f"{charge}: moved from {before} to {now}"
                assert abs(now[1] - before[1]) <= LARGEST_CORRECTION_WH, f"{charge}: corrected by too much"
        self.billed = {number: found for number, found in billed.items() if number in self.first_seen}

    def _assert_was_said(self, charge: Charge, stop: Stop) -> None:
        assert stop in charge.shown, f"{charge}: StEvE never showed {stop}, only {charge.shown}"

    # -- at rest ---------------------------------------------------------------------------------------

    def assert_all_is_right(self) -> None:
        """At rest: every session that StEvE has or had is in exactly one right state."""
        assert under_way(self.world) == []
        rows = {row.steve_id: row for row in ChargingSession.objects.filter(superseded_at=None)}
        vanished_tags = {one_tag(tag.text) for tag in IdTag.objects.exclude(vanished_at=None)}
        for charge in self.points.known_to_steve():
            row = rows.get(charge.steve_id)
            if row is None:
                assert not charge.visible, f"{charge}: never discovered"
                continue
            assert (row.vanished_at is None) == charge.visible, f"{charge}: vanished {row.vanished_at}"
            if not charge.visible and self.world.steve.store.find_tag(charge.id_tag) is None:
                assert one_tag(charge.id_tag) in vanished_tags, (
                    f"{charge}: its tag is gone, and nobody says so"
                )
            known = self.stops.get(charge.steve_id)
            if charge.visible:
                shown = charge.stop
                assert (known and known[0]) == shown, f"{charge}: StEvE shows {shown}, the ledger {known}"
            if known is None:
                self._assert_unfinished(charge, row)
            else:
                self._assert_was_said(charge, known[0])
                self._assert_finished(charge, known[0], row)

    def _assert_unfinished(self, charge: Charge, row: ChargingSession) -> None:
        """A month later a session without an end is stuck, and shown with the evidence that there is."""
        assert (row.state, row.rest_wh) == ("stuck", 0), f"{charge}: has no end and is {row.state}"
        assert charge.steve_id not in self.billed, f"{charge}: has no end and is billed"
        evidence = row.evidence or {}
        found = (evidence.get("source"), evidence.get("stop_wh"))
        assert found in self.evidence(charge), f"{charge}: {found} is no evidence, {self.evidence(charge)} is"

    def _assert_finished(self, charge: Charge, stop: Stop, row: ChargingSession) -> None:
        energy_wh = max(stop.register_wh - charge.start_wh, 0)
        allowed = self.verdicts(charge, stop)
        is_in = (row.state, row.reason, row.rest_wh)
        if charge.steve_id not in self.billed:
            right = {
                (each.outcome, each.reason, energy_wh)
                for each in allowed
                if each.outcome in {"held", "excluded"}
            }
            assert is_in in right, f"{charge}, ended {stop}: is {is_in}, right is {allowed}"
            return
        difference_wh = energy_wh - self.billed[charge.steve_id][1]
        if difference_wh == 0:
            assert row.state == "confirmed", f"{charge}: billed in full and {is_in}"
            return
        # Lago has something else than StEvE says now: the difference is held, with its amount.
        reasons = {"changed_after_billing"} if difference_wh > 0 else {"refund_by_credit_note"}
        if abs(difference_wh) > LARGEST_CORRECTION_WH:
            reasons.add("changed_after_billing")
        else:
            nobody_would_bill = {each.outcome for each in allowed} & {"held", "excluded"}
            assert nobody_would_bill, f"{charge}: {difference_wh} Wh were not corrected: {is_in}, {allowed}"
        assert is_in in {("held", reason, difference_wh) for reason in reasons}, f"{charge}: {is_in}"

    def outcomes(self) -> Iterator[str]:
        """State and reason of every session, to count how much has happened."""
        mine = {charge.steve_id for charge in self._known_charges()}
        for number, state, reason in ChargingSession.objects.values_list("steve_id", "state", "reason"):
            if number in mine:
                yield state if reason is None else f"{state} {reason}"

    # -- the rules, once more --------------------------------------------------------------------------

    def verdicts(self, charge: Charge, stop: Stop) -> list[Verdict]:
        """What may become of a stopped session of which Lago knows nothing; the first is what should.

        An exclusion is not looked at again every night, so a hold that came up later may not show.
        """
        holds = list(self._holds(charge, stop))
        plain = self._exclusion(charge, stop) or self._payer(charge)
        allowed: list[Verdict] = []
        for verdict, is_sure in holds:
            allowed.append(verdict)
            if is_sure:
                break
        else:
            allowed.append(plain)
        if plain.outcome == "excluded" and all(verdict.reason in MAY_COME_UP_LATER for verdict, _ in holds):
            allowed.append(plain)
        return allowed

    def _holds(self, charge: Charge, stop: Stop) -> Iterator[tuple[Verdict, bool]]:
        """Every rule that holds the session, in DESIGN's order, and whether that is beyond doubt."""
        number, limits = charge.steve_id, self.orders.limits
        began, ended = charge.said_start_at, stop.at
        if one_tag(charge.id_tag) in self.doubtful:
            yield Verdict("held", "identity_conflict"), True
        if (
            ended < began
            or began > self.first_seen[number] + FIVE_MINUTES
            or ended > self.stops[number][1] + FIVE_MINUTES
            or began < self.long_ago
        ):
            yield Verdict("held", "clock_skew"), True
        energy_wh = stop.register_wh - charge.start_wh
        if energy_wh < 0:
            yield Verdict("held", "negative_energy"), True
        seconds = Fraction((ended - began) // timedelta(microseconds=1), 1_000_000)
        kwh, hours = Fraction(energy_wh, 1000), seconds / 3600
        if (
            kwh > limits["MAX_SESSION_KWH"]
            or hours > limits["MAX_SESSION_HOURS"]
            or (kwh > limits["MAX_POWER_KW"] * hours if hours > 0 else kwh > 0)
        ):
            yield Verdict("held", "implausible"), True
        others = list(self._overlapping(charge, stop))
        if others:
            longest = timedelta(hours=limits["MAX_SESSION_HOURS"])
            yield Verdict("held", "register_overlap"), any(length <= longest for length in others)
        if stop.by_hand:
            fits = {
                energy_wh != 0 and register_wh is not None and abs(register_wh - stop.register_wh) <= 1
                for _, register_wh in self.evidence(charge)
            }
            if False in fits:
                yield Verdict("held", "manual_stop_without_evidence"), fits == {False}

    def _overlapping(self, charge: Charge, stop: Stop) -> Iterator[timedelta]:
        """Lengths of other sane sessions on the connector that were there at the same time and register."""
        for other in self._known_charges():
            if other is charge or (other.box, other.connector) != (charge.box, charge.connector):
                continue
            if other.steve_id not in self.stops:
                continue
            end, learned_at = self.stops[other.steve_id]
            is_sane = (
                other.said_start_at < end.at
                and other.start_wh < end.register_wh
                and other.said_start_at <= self.first_seen[other.steve_id] + FIVE_MINUTES
                and end.at <= learned_at + FIVE_MINUTES
            )
            same_time = max(other.said_start_at, charge.said_start_at) < min(end.at, stop.at)
            same_register = max(other.start_wh, charge.start_wh) < min(end.register_wh, stop.register_wh)
            if is_sane and same_time and same_register:
                yield end.at - other.said_start_at

    def _exclusion(self, charge: Charge, stop: Stop) -> Verdict | None:
        energy_wh = stop.register_wh - charge.start_wh
        if energy_wh == 0:
            return Verdict("excluded", "zero_energy")
        if energy_wh < self.orders.limits["MIN_SESSION_KWH"] * 1000:
            return Verdict("excluded", "below_minimum")
        return None

    def _payer(self, charge: Charge) -> Verdict:
        at, tag, seen = charge.said_start_at, one_tag(charge.id_tag), set()
        while tag is not None and tag not in seen:
            seen.add(tag)
            for interval in self.orders.mappings:
                if interval.tag == tag and interval.meets(at):
                    if not interval.active:
                        return Verdict("held", "mapping_inactive")
                    if self.orders.subscriptions[interval.customer] is None:
                        return Verdict("held", "no_subscription")
                    return Verdict("bill", payer=interval.customer)
            tag = self._parent(tag, at)
        return Verdict("held", "unmapped_tag")

    def _parent(self, tag: str, at: datetime) -> str | None:
        """The parent last read before, else the first one read after."""
        read = self.parents.get(tag, [])
        before = [parent for when, parent in read if when <= at]
        if before:
            return before[-1]
        return read[0][1] if read else None

    # -- evidence --------------------------------------------------------------------------------------

    def evidence(self, charge: Charge) -> set[tuple[str, int | None]]:
        """What shows how much was delivered when there is no stop of the station: (source, register).

        More than one only where StEvE has forgotten sessions: it depends on when it was asked last.
        """
        following = next(
            (
                other
                for other in self._known_charges()
                if other.steve_id > charge.steve_id
                and (other.box, other.connector) == (charge.box, charge.connector)
            ),
            None,
        )
        next_start: tuple[str, int | None] = ("none", None)
        before: datetime | None = None
        if following is not None:
            began, next_began = self._believed(charge), self._believed(following)
            came_later = began is None or next_began is None or next_began >= began
            before = next_began if came_later else None
            if came_later and following.start_wh >= max(charge.start_wh, 1):
                next_start = ("next_start", following.start_wh)
        if not self.shows_meter_values:
            return {next_start}
        kept = [charge.readings]
        if not charge.visible:  # StEvE was asked at some time before it forgot the session
            kept = [charge.readings[:count] for count in range(len(charge.readings) + 1)]
        kept += [[*charge.readings, *orphans] for orphans in self._orphans(charge)]
        found = set()
        for readings in kept:
            register_wh = self._last_register(charge, readings, before)
            found.add(next_start if register_wh is None else ("meter_value", register_wh))
        return found

    def _orphans(self, charge: Charge) -> Iterator[list[Reading]]:
        """Readings that StEvE may show as this session's: of sessions that it has forgotten since.

        With a tag go its sessions, and their meter values belong to nobody then; StEvE shows those with any
        session of the connector whose time they fall in, and no client can tell.
        """
        gone = [
            other.readings
            for other in self.points.known_to_steve()
            if not other.visible and other.readings and other is not charge
            if (other.box, other.connector) == (charge.box, charge.connector)
        ]
        yield from gone
        yield [reading for readings in gone for reading in readings]

    def _last_register(self, charge: Charge, kept: list[Reading], before: datetime | None) -> int | None:
        """Where the longest run of readings that never falls ends; None where two end differently."""
        began = self._believed(charge)
        readings = sorted(
            reading
            for reading in kept
            if (began is None or reading.at >= began)
            and (before is None or reading.at <= before)
            and reading.register_wh >= charge.start_wh
        )
        longest: list[int] = []
        for place, reading in enumerate(readings):
            runs = [
                longest[earlier]
                for earlier in range(place)
                if readings[earlier].register_wh <= reading.register_wh
            ]
            longest.append(1 + max(runs, default=0))
        ends = {
            reading.register_wh
            for reading, length in zip(readings, longest, strict=True)
            if length == max(longest)
        }
        return ends.pop() if len(ends) == 1 else None

    def _believed(self, charge: Charge) -> datetime | None:
        """When it began by a clock that was not plainly wrong."""
        wrong = charge.said_start_at > self.first_seen[charge.steve_id] + FIVE_MINUTES
        return None if wrong or charge.said_start_at < self.long_ago else charge.said_start_at
