"""Whatever happens at the charge points, in StEvE and in people's heads: at rest all is accounted for."""

from __future__ import annotations

import random
import sys
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import HealthCheck, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from ocpp_billing.billing import control, review
from ocpp_billing.charging.models import IdTag
from ocpp_billing.mappings import store
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.sync.models import WorkerHeartbeat
from tests.crash.saved import saved
from tests.stateful.charge_points import ChargePoints
from tests.stateful.oracle import Interval, Oracle, Orders, one_tag

if TYPE_CHECKING:
    from tests.crash.saved import SavedWorld
    from tests.world import World

FAMILIES = ("3.7", "3.9", "3.10", "3.11", "3.14")
EXAMPLES, STEPS = 4, 50
MANY_EXAMPLES, MANY_STEPS = 400, 80
SEED = 20260317

BOXES = ("CP-1", "CP-2")
TAGS = ("TAG-ALICE", "TAG-BOB", "TAG-CHILD", "TAG-DAVE")
DELETED = ("TAG-BOB", "TAG-CHILD")
MAPPED = {"TAG-ALICE": "alice", "TAG-BOB": "bob"}
CUSTOMERS = ("alice", "bob", "carol")
LIMITS = {
    "MAX_SESSION_KWH": (500, 30),
    "MAX_POWER_KW": (400, 11),
    "MAX_SESSION_HOURS": (72, 24),
    "MIN_SESSION_KWH": (0, 1),
}
boxes = st.sampled_from(BOXES)
tags = st.sampled_from(TAGS)
picks = st.integers(0, 1_000)
energies_wh = st.sampled_from([0, 1, 400, 3_000, 7_000, 16_101])
pauses = st.sampled_from(
    [timedelta(minutes=2), timedelta(minutes=40), timedelta(hours=2), timedelta(hours=9), timedelta(days=2)]
)

sessions = st.tuples(
    boxes, st.integers(1, 2), tags, energies_wh, pauses, st.booleans(), st.sampled_from([True, True, False])
)


def prepare(world: World) -> None:
    """StEvE has a small history of a fleet, and three customers wait in Lago, one without subscription."""
    world.plan("ev_yearly", interval="yearly")
    for name in ("fleet", "alice", "bob"):
        world.customer(name, plan="ev_yearly")
    world.lago.create_customer("carol", currency="EUR")
    for number in range(12):
        hours = timedelta(hours=60 - 3 * number)
        world.session("FLEET-1", "CP-0", start=hours, stop=hours - timedelta(hours=1), energy_wh=5_000)
    world.map("FLEET-1", "fleet")
    for tag, customer in MAPPED.items():
        world.map(tag, customer)
    world.go_live()


class EveryWattHour(RuleBasedStateMachine):
    """One operator's days: cars, charge points, StEvE's and our operators, and the bridge now and then."""

    world: ClassVar[World]
    as_prepared: ClassVar[SavedWorld]
    outcomes: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.as_prepared.restore()
        self.points = ChargePoints(self.world.steve, self.world.clock.now)
        self.orders = Orders(subscriptions={"alice": "sub-alice", "bob": "sub-bob", "carol": None})
        for tag, customer in MAPPED.items():
            mapping = TagMapping.objects.get(id_tag__text=tag)
            self.orders.mappings.append(
                Interval(one_tag(tag), customer, mapping.valid_from, mapping_id=mapping.pk)
            )
        self.oracle = Oracle(self.world, self.points, self.orders)

    def pass_time(self, by: timedelta = timedelta(seconds=7)) -> None:
        self.world.clock.advance(by)

    def pick(self, charges, number):
        charges = list(charges)
        return charges[number % len(charges)]

    def running(self):
        return [charge for charge in self.points.charges if charge.ended_at is None]

    def in_steve(self):
        return [charge for charge in self.points.known_to_steve() if charge.visible]

    def late(self):
        return [charge for charge in self.points.charges if charge.said_end and not charge.told_end]

    def told(self):
        return [charge for charge in self.points.charges if charge.told_end]

    def mapped(self):
        """Mappings that hold until further notice."""
        return [interval for interval in self.orders.mappings if interval.until is None]

    # -- cars and charge points ------------------------------------------------------------------------

    @rule(
        box=boxes,
        connector=st.integers(1, 2),
        tag=tags,
        spelled=st.sampled_from(["upper", "lower", "title"]),
        slowly=st.sampled_from([False] * 5 + [True]),
    )
    def a_car_comes(self, box, connector, tag, spelled, slowly):
        self.pass_time()
        self.points.begin(box, connector, getattr(tag, spelled)(), slowly=slowly)

    @precondition(lambda self: self.points.unanswered())
    @rule(number=picks)
    def a_start_is_committed(self, number):
        self.points.commit(self.pick(self.points.unanswered(), number))

    @precondition(running)
    @rule(number=picks, energy_wh=energies_wh, pause=pauses, in_kwh=st.none() | st.booleans())
    def a_car_charges(self, number, energy_wh, pause, in_kwh):
        charge = self.pick(self.running(), number)
        self.pass_time(pause)
        self.points.deliver(charge, energy_wh)
        if in_kwh is not None:
            self.points.measure(charge, in_kwh=in_kwh)

    @precondition(running)
    @rule(number=picks, energy_wh=energies_wh, pause=pauses, told=st.sampled_from([True, True, True, False]))
    def a_car_leaves(self, number, energy_wh, pause, told):
        charge = self.pick(self.running(), number)
        self.pass_time(pause)
        self.points.deliver(charge, energy_wh)
        self.points.end(charge, told=told)

    @rule(sessions=st.lists(sessions, min_size=1, max_size=5))
    def a_few_cars_come_and_go(self, sessions):
        for box, connector, tag, energy_wh, pause, metered, told in sessions:
            self.pass_time()
            charge = self.points.begin(box, connector, tag)
            self.pass_time(pause)
            self.points.deliver(charge, energy_wh)
            if metered:
                self.points.measure(charge)
            self.points.end(charge, told=told)

    @precondition(running)
    @rule(number=picks, fault=st.sampled_from(["register_back", "before_start", "day_ahead", "other_case"]))
    def a_car_leaves_and_the_stop_is_odd(self, number, fault):
        self.pass_time()
        self.points.end(self.pick(self.running(), number), fault=fault)

    @precondition(late)
    @rule(number=picks)
    def a_stop_comes_late(self, number):
        self.pass_time()
        self.points.tell_end(self.pick(self.late(), number))

    @precondition(told)
    @rule(
        number=picks, more_wh=st.sampled_from([-70_000, -1_000, 0, 1, 2_500, 70_000]), box=st.none() | boxes
    )
    def a_stop_comes_again(self, number, more_wh, box):
        self.pass_time()
        self.points.tell_end_again(self.pick(self.told(), number), more_wh=more_wh, box_name=box)

    @precondition(in_steve)
    @rule(number=picks)
    def a_start_comes_again(self, number):
        self.pass_time()
        self.points.start_again(self.pick(self.in_steve(), number))

    @rule(box=boxes)
    def a_charge_point_goes_offline_or_comes_online(self, box):
        self.pass_time()
        if self.points.box(box).online:
            self.points.go_offline(box)
        else:
            self.points.come_online(box)

    @rule(
        box=boxes,
        error=st.sampled_from(
            ["reset", timedelta(), timedelta(minutes=2), timedelta(days=3), timedelta(days=-1)]
        ),
    )
    def a_clock_changes(self, box, error):
        self.points.set_clock(box, error)

    # -- StEvE -----------------------------------------------------------------------------------------

    @precondition(in_steve)
    @rule(number=picks)
    def a_session_is_closed_by_hand(self, number):
        self.pass_time()
        self.points.close_by_hand(self.pick(self.in_steve(), number))

    @rule(count=st.sampled_from([1, 3, 60, 27_678]))
    def ids_jump(self, count):
        self.world.steve.skip_ids(count)

    @precondition(in_steve)
    @rule(tag=tags, parent=st.none() | tags)
    def a_tag_gets_a_parent(self, tag, parent):
        find = self.world.steve.store.find_tag
        if find(tag) is not None and (parent is None or find(parent) is not None):
            self.world.steve.set_parent(tag, parent)

    @precondition(in_steve)
    @rule(tag=st.sampled_from(DELETED))
    def a_tag_is_deleted(self, tag):
        known = self.world.steve.store.find_tag(tag)
        children = [
            each for each in self.world.steve.store.tags.values() if known and each.parent_pk == known.pk
        ]
        if known is not None and not children:
            self.points.delete_tag(tag)

    # -- people ----------------------------------------------------------------------------------------

    @rule(tag=tags, customer=st.sampled_from(CUSTOMERS), since=st.sampled_from(["ever", "now"]))
    def a_tag_is_mapped(self, tag, customer, since):
        begins = self.world.begins_at if since == "ever" else self.world.clock.now()
        others = [each for each in self.orders.mappings if each.tag == one_tag(tag)]
        if any(each.until is None or each.until > begins for each in others):
            return
        mapping = self.world.map(tag.swapcase(), customer, begins)
        self.orders.mappings.append(Interval(one_tag(tag), customer, begins, mapping_id=mapping.pk))
        self.pass_time()

    @precondition(mapped)
    @rule(number=picks, bill_gap=st.booleans())
    def a_mapping_is_switched(self, number, bill_gap):
        interval, at = self.pick(self.mapped(), number), self.world.clock.now()
        active = not interval.active
        gap = bill_gap if active else None
        switched = store.switch_mapping(interval.mapping_id, active=active, at=at, bill_gap=gap, by="test")
        if gap or at <= interval.since:
            interval.active = active
        else:
            interval.until = at
            self.orders.mappings.append(
                Interval(interval.tag, interval.customer, at, active=active, mapping_id=switched.pk)
            )
        self.pass_time()

    @precondition(mapped)
    @rule(number=picks, customer=st.sampled_from(CUSTOMERS))
    def somebody_else_pays(self, number, customer):
        interval, at = self.pick(self.mapped(), number), self.world.clock.now()
        if interval.customer == customer or at <= interval.since:
            return
        changed = store.change_mapping(
            interval.mapping_id, at=at, customer=customer, subscription=None, by="test"
        )
        interval.until = at
        self.orders.mappings.append(
            Interval(interval.tag, customer, at, active=interval.active, mapping_id=changed.pk)
        )
        self.pass_time()

    @precondition(mapped)
    @rule(number=picks, how=st.sampled_from(["end", "delete"]))
    def a_mapping_goes(self, number, how):
        interval, at = self.pick(self.mapped(), number), self.world.clock.now()
        if at <= interval.since:
            return
        if how == "end":
            store.end_mapping(interval.mapping_id, at=at, by="test")
            interval.until = at
        else:
            try:
                store.delete_mapping(interval.mapping_id, by="test")
            except store.MappingConflictError:
                return
            self.orders.mappings.remove(interval)
        self.pass_time()

    @precondition(lambda self: self.oracle.doubtful)
    @rule()
    def a_new_tag_is_said_to_be_the_old_one(self):
        name = min(self.oracle.doubtful)
        tag = IdTag.objects.get(folded=name)
        review.acknowledge_identity(tag.pk, note="the same card", by="test")
        self.oracle.doubtful.discard(name)

    @rule(name=st.sampled_from(sorted(LIMITS)), which=st.integers(0, 1))
    def a_threshold_changes(self, name, which):
        self.orders.limits[name] = LIMITS[name][which]
        self.world.settings[name] = str(LIMITS[name][which])

    # -- the bridge ------------------------------------------------------------------------------------

    @rule(pause=st.just(timedelta()) | pauses)
    def a_run(self, pause):
        self.pass_time(pause)
        self.sync()

    @rule()
    def a_look(self):
        self.pass_time()
        self.watch()

    @rule(pause=pauses)
    def nobody_looks(self, pause):
        self.pass_time(pause)

    def sync(self):
        self.resume()
        at = self.world.clock.now()
        run = self.world.sync()
        assert run.status == "completed", run.errors
        note(f"run at {at}: {run.counts}")
        self.oracle.observe(at)

    def watch(self):
        """One tick of the watch lane, as the leader does it."""
        at = self.world.clock.now()
        self.world.watch()
        self.oracle.observe(at)

    def resume(self):
        """When the last few sessions have all gone with their tag, StEvE looks restored: a person looks."""
        if control.read_status(self.world.config()).mode == "paused":
            assert any(not charge.visible for charge in self.points.known_to_steve())
            self.world.resume()

    # -- at rest ---------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.come_to_rest()
            self.oracle.assert_all_is_right()
            self.outcomes.update(self.oracle.outcomes())

    def come_to_rest(self):
        """Everything that is still to be said is said, and a month passes in which nothing else happens."""
        for box in self.points.boxes:
            self.points.come_online(box)
        while unanswered := self.points.unanswered():
            self.points.commit(unanswered[0])
        self.sync()
        for days in (2, 31, 1):
            night = (self.world.clock.now() + timedelta(days=days)).replace(hour=3, minute=0)
            self.world.clock.set(night)
            self.sync()
        self.sync()


def play(world, record_property, *, examples, steps, chosen_seed):
    """Play some operators' days, and write down with which seed and what they came to."""
    record_property("stateful_seed", chosen_seed)
    prepare(world)
    now = world.clock.now()
    WorkerHeartbeat.objects.create(
        worker="test", source_id="main", kind="worker", leader=True, seen_at=now, started_at=now
    )
    outcomes = Counter()
    with saved(world) as as_prepared:
        given = {"world": world, "as_prepared": as_prepared, "outcomes": outcomes}
        machine = type("OperatorsDays", (EveryWattHour,), given)
        run_state_machine_as_test(
            seed(chosen_seed)(machine),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    record_property("stateful_outcomes", dict(outcomes))


@pytest.mark.timeout(1800)  # of which nearly all is for finding the shortest story when one goes wrong
@pytest.mark.parametrize("release", FAMILIES)
def test_at_rest_every_session_is_in_its_one_right_state(world, record_property):
    play(world, record_property, examples=EXAMPLES, steps=STEPS, chosen_seed=SEED)


@pytest.mark.long
@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("release", FAMILIES)
def test_the_same_in_many_more_days(world, record_property):
    chosen_seed = random.randrange(2**32)
    play(world, record_property, examples=MANY_EXAMPLES, steps=MANY_STEPS, chosen_seed=chosen_seed)
