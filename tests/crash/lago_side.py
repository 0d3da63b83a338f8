"""Everything that Lago may do to us, in any order: a state machine that hypothesis plays.

Lago refuses, asks to wait, loses answers, stores a batch in part, answers a page of HTML, closes periods,
changes plans and loses its metric; requests arrive late; clocks jump; our process dies anywhere. The judge
is what the charge points delivered and to whom, kept here, and Lago's own books.
"""

from __future__ import annotations

import random
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ocpp_billing import clock
from ocpp_billing.billing import control
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.billing.review import accept, retry_rejected
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.simulators.server import Fault
from tests.crash.mortal import Mortal
from tests.crash.oracle import assert_conserved, assert_whole, under_way, wh_of
from tests.crash.stories import show_stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocpp_billing.simulators.lago_catalogue import Charge, Metric
    from tests.crash.saved import SavedWorld
    from tests.world import World

# Tags and the customers whom they are mapped to; each has one subscription, sub-<customer>.
CUSTOMERS = {"TAG-ALICE": "alice", "TAG-BOB": "bob", "TAG-CAROL": "carol"}
PLANS = ("ev_payg", "ev_other", "ev_advance", "ev_flat")
CUSTOMER = st.sampled_from(sorted(CUSTOMERS.values()))
CHANGE = st.sampled_from(
    ["close", "end", *(f"{how} {plan}" for how in ("upgrade", "downgrade") for plan in PLANS)]
)
ENDED_AGO = (timedelta(), timedelta(minutes=10), timedelta(hours=9), timedelta(days=12))
# What a request may meet, and how it is told to the simulator.
FAULTS: dict[str, dict[str, Any]] = {
    "503": {"kind": "status", "status": 503},
    "500 although stored": {"kind": "status", "status": 500, "after": True},
    "520": {"kind": "status", "status": 520},
    "no request": {"kind": "drop_before"},
    "no answer": {"kind": "drop_after"},
    "half an answer": {"kind": "truncate"},
    "no JSON": {"kind": "garbage"},
    "a page": {"kind": "html", "status": 502},
    "a page although stored": {"kind": "html", "status": 504, "after": True},
    "a page and 200": {"kind": "html", "status": 200},
    "slow down": {"kind": "status", "status": 429, "headers": {"x-ratelimit-reset": "3"}},
    "slow down, much": {"kind": "status", "status": 429, "headers": {"retry-after": "120"}},
    "not found": {"kind": "status", "status": 404},
}
ROUTES = (
    "/events/batch",
    "/events",
    "/subscriptions",
    "_usage",
    "/plans|/billable_metrics",
    "/organizations",
    "",
)
# More boundaries than a run passes: some deaths never come.
BOUNDARIES = 150
# Until nothing is under way any more: retries come back, then invoices that Lago hides are final after a day.
HALF_AN_HOUR, A_DAY = timedelta(minutes=31), timedelta(hours=25)
UNTIL_REST = (HALF_AN_HOUR, HALF_AN_HOUR, HALF_AN_HOUR, A_DAY, HALF_AN_HOUR, A_DAY, HALF_AN_HOUR)


@dataclass
class Charged:
    """The truth of one session: who charges, and what the charge point delivered; None = it still runs."""

    customer: str
    box: str
    delivered_wh: int | None
    ever_changed: bool = False


def prepare(world: World) -> None:
    """Three customers: in arrears by anniversary, by calendar in another time zone, and in advance."""
    world.plan("ev_payg")
    world.plan("ev_other", amount="0.49")
    world.plan("ev_advance", pay_in_advance_charge=True)
    world.plan("ev_flat", metric_code=None)
    world.payer("TAG-ALICE", "alice")
    world.payer("TAG-BOB", "bob", billing_time="calendar", timezone="Asia/Kathmandu")
    world.payer("TAG-CAROL", "carol", plan="ev_advance")
    world.go_live()
    world.sync()


class Disturbed(Mortal):
    """A process of the engine during which something happens in the world, at one boundary."""

    def __init__(self, dies_at: int | None = None, happens: Callable[[], object] | None = None) -> None:
        super().__init__(dies_at)
        self.happens = happens

    def die(self) -> None:
        """Instead of dying, look away for a moment."""
        if self.happens is None:
            super().die()
            return
        self.dies_at = None
        happens, self.happens = self.happens, None
        happens()


class LagoSide(RuleBasedStateMachine):
    """See the module.

    Args:
        start: the world of :func:`prepare`, to begin from.
    """

    def __init__(self, start: SavedWorld) -> None:
        super().__init__()
        start.restore()
        random.seed(1)
        self.world = start.world
        self.sessions: dict[int, Charged] = {}
        self.skew = timedelta()
        self.broken: list[Callable[[], object]] = []
        clock.install_clock(lambda: self.world.clock.now() + self.skew, self.world.clock.sleep)

    @initialize(late_policy=st.sampled_from(["hold", "current_period"]))
    def begin(self, late_policy: str) -> None:
        """Late sessions are held, or billed in the current period."""
        self.world.settings["LATE_POLICY"] = late_policy

    # -- charge points ---------------------------------------------------------------------------------

    @rule(
        ended=st.lists(
            st.tuples(st.sampled_from(sorted(CUSTOMERS)), st.integers(0, 30_000), st.sampled_from(ENDED_AGO)),
            min_size=1,
            max_size=3,
        ),
        we_run=st.booleans(),
    )
    def sessions_end(self, ended: list[tuple[str, int, timedelta]], we_run: bool) -> None:
        """Whole sessions, told at once or by chargers that were offline."""
        for tag, energy_wh, ago in ended:
            box = f"CP-{len(self.sessions) + 1}"
            begun_ago = ago + timedelta(minutes=30)
            steve_id = self.world.session(tag, box, start=begun_ago, stop=ago, energy_wh=energy_wh)
            self.sessions[steve_id] = Charged(CUSTOMERS[tag], box, energy_wh)
        self._run_if(we_run)

    @rule(tag=st.sampled_from(sorted(CUSTOMERS)))
    def a_session_begins(self, tag: str) -> None:
        """It will stop later, or never."""
        box = f"CP-{len(self.sessions) + 1}"
        steve_id = self.world.start(tag, box, at=timedelta())
        self.sessions[steve_id] = Charged(CUSTOMERS[tag], box, None)

    @precondition(lambda self: any(each.delivered_wh is None for each in self.sessions.values()))
    @rule(data=st.data(), energy_wh=st.integers(0, 30_000), we_run=st.booleans())
    def a_session_stops(self, data: st.DataObject, energy_wh: int, we_run: bool) -> None:
        """One that ran."""
        running = [number for number, each in self.sessions.items() if each.delivered_wh is None]
        number = data.draw(st.sampled_from(running))
        session = self.sessions[number]
        self.world.clock.advance(minutes=6)
        self.world.stop(number, session.box, at=timedelta(), meter_wh=1_000 + energy_wh)
        session.delivered_wh = energy_wh
        self._run_if(we_run)

    @precondition(lambda self: self._stopped())
    @rule(data=st.data(), energy_wh=st.integers(0, 70_000), we_run=st.booleans())
    def a_stop_changes(self, data: st.DataObject, energy_wh: int, we_run: bool) -> None:
        """What was delivered turns out to be more or less."""
        self._change_stop(data.draw(st.sampled_from(self._stopped())), energy_wh)
        self._run_if(we_run)

    def _stopped(self) -> list[int]:
        return [number for number, each in self.sessions.items() if each.delivered_wh is not None]

    def _change_stop(self, number: int, energy_wh: int) -> None:
        show_stop(self.world, number, energy_wh)
        self.sessions[number].delivered_wh = energy_wh
        self.sessions[number].ever_changed = True

    # -- Lago ------------------------------------------------------------------------------------------

    @rule(
        fault=st.sampled_from(sorted(FAULTS)),
        path=st.sampled_from(ROUTES),
        times=st.integers(1, 5),
        skip=st.integers(0, 2),
        we_run=st.booleans(),
    )
    def lago_misbehaves(self, fault: str, path: str, times: int, skip: int, we_run: bool) -> None:
        """The next requests fare badly."""
        self.world.lago.add_fault(Fault(**FAULTS[fault], path=path, times=times, skip=skip))
        self._run_if(we_run)

    @rule(
        what=st.sampled_from(["loses events", "shows late", "small batches", "denies writing", "well again"])
    )
    def lago_is_unwell(self, what: str) -> None:
        """Stores nothing of the next two events, shows and counts late, takes one at a time, refuses the key."""
        lago = self.world.lago
        if what == "loses events":
            lago.lose_events(2)
        elif what == "shows late":
            lago.delay_visibility(90)
            lago.delay_usage(90)
        elif what == "small batches":
            lago.set_batch_max(1)
        elif what == "denies writing":
            lago.deny("write", "event")
        else:
            self._heal_lago()

    @rule(customer=CUSTOMER, change=CHANGE, we_run=st.booleans())
    def a_subscription_changes(self, customer: str, change: str, we_run: bool) -> None:
        """Its period closes, its plan changes at once or when the period ends, it ends, or begins again."""
        self._change_subscription(customer, change)
        self._run_if(we_run)

    def _change_subscription(self, customer: str, change: str) -> None:
        lago, name = self.world.lago, f"sub-{customer}"
        self._mend_contract()
        if lago.books.active(name) is None:
            lago.subscribe(customer, "ev_payg", name)
            return
        what, _, plan = change.partition(" ")
        if what == "close":
            lago.close_period(name)
        elif what == "end":
            lago.terminate(name)
        elif what == "upgrade":
            lago.upgrade(name, plan)
        else:
            lago.downgrade(name, plan)

    @rule(how=st.sampled_from(["charge", "metric", "aggregation"]), plan=st.sampled_from(PLANS[:3]))
    def the_contract_breaks_or_is_mended(self, how: str, plan: str) -> None:
        """Somebody in Lago deletes the charge or the metric, or lets it count instead of sum.

        It is noticed at the latest before Lago invoices: what it does not count then, nobody can.
        """
        if self.broken:
            self._mend_contract()
            return
        catalogue = self.world.lago.books.catalogue
        metric: Metric = catalogue.metrics["ev_charging_kwh"]
        if how == "charge":
            charges: list[Charge] = catalogue.plans[plan].charges
            charge = charges.pop()
            self.broken.append(lambda: charges.append(charge))
        elif how == "metric":
            del catalogue.metrics[metric.code]
            self.broken.append(lambda: catalogue.metrics.update({metric.code: metric}))
        else:
            metric.aggregation_type = "count_agg"
            self.broken.append(lambda: setattr(metric, "aggregation_type", "sum_agg"))

    def _mend_contract(self) -> None:
        while self.broken:
            self.broken.pop()()

    @precondition(lambda self: self._attempted())
    @rule(data=st.data())
    def a_request_arrives_late(self, data: st.DataObject) -> None:
        """A request of ours was under way until now."""
        self._arrive(data.draw(st.sampled_from(self._attempted())))

    def _attempted(self) -> list[str]:
        """Payloads of events that Lago may not have yet, and that a request may still carry."""
        events = UsageEvent.objects.filter(state="queued", attempts__gt=0)
        return list(events.order_by("id").values_list("payload", flat=True))

    def _arrive(self, payload: str) -> None:
        lago = self.world.lago
        faults, lago.faults[:] = list(lago.faults), []
        headers = {"Authorization": f"Bearer {lago.api_key}", "Content-Type": "application/json"}
        body = b'{"event": %s}' % payload.encode()
        try:
            urllib.request.urlopen(
                urllib.request.Request(f"{lago.api_url}/api/v1/events", body, headers)
            ).close()
        except urllib.error.HTTPError as refused:
            refused.close()
        lago.faults[:] = faults

    # -- us ----------------------------------------------------------------------------------------------

    @rule()
    def we_synchronize(self) -> None:
        """One run."""
        self._run(Disturbed())

    def _run_if(self, we_run: bool) -> None:
        if we_run:
            self.we_synchronize()

    @rule(dies_at=st.integers(0, BOUNDARIES))
    def we_die(self, dies_at: int) -> None:
        """One run that is killed."""
        self._run(Disturbed(dies_at))

    @precondition(lambda self: self._stopped())
    @rule(data=st.data(), at=st.integers(0, BOUNDARIES), energy_wh=st.integers(0, 30_000))
    def a_stop_changes_meanwhile(self, data: st.DataObject, at: int, energy_wh: int) -> None:
        """In the middle of a run."""
        number = data.draw(st.sampled_from(self._stopped()))
        self._run(Disturbed(at, lambda: self._change_stop(number, energy_wh)))

    @rule(at=st.integers(0, BOUNDARIES))
    def a_request_arrives_late_meanwhile(self, at: int) -> None:
        """In the middle of a run: of the batch that is just being sent, Lago has one event then."""

        def arrive() -> None:
            for payload in self._attempted()[-1:]:
                self._arrive(payload)

        self._run(Disturbed(at, arrive))

    @rule(customer=CUSTOMER, change=CHANGE, at=st.integers(0, BOUNDARIES))
    def a_subscription_changes_meanwhile(self, customer: str, change: str, at: int) -> None:
        """In the middle of a run."""
        self._run(Disturbed(at, lambda: self._change_subscription(customer, change)))

    def _run(self, process: Disturbed) -> None:
        process.live(self.world.sync)
        self.world.clock.advance(seconds=20)

    @rule(pause=st.booleans())
    def we_pause_or_resume(self, pause: bool) -> None:
        """By hand."""
        (self.world.pause if pause else self.world.resume)()

    @precondition(lambda self: self._acceptable() or self._rejected())
    @rule(data=st.data(), we_run=st.booleans())
    def we_resolve(self, data: st.DataObject, we_run: bool) -> None:
        """A late session is billed now, a large correction is approved, a rejected event is sent again."""
        held, rejected = self._acceptable(), self._rejected()
        number = data.draw(st.integers(0, len(held) + len(rejected) - 1))
        if number < len(held):
            accept(held[number], note="agreed", by="test")
        else:
            retry_rejected(rejected[number - len(held)], by="test")
        self._run_if(we_run)

    def _acceptable(self) -> list[int]:
        held = ChargingSession.objects.filter(
            state="held", reason__in=["late_period", "changed_after_billing"]
        )
        return list(held.order_by("id").values_list("id", flat=True))

    def _rejected(self) -> list[int]:
        return list(UsageEvent.objects.filter(state="rejected").order_by("id").values_list("id", flat=True))

    @rule(
        by=st.sampled_from(
            [timedelta(minutes=3), timedelta(minutes=12), timedelta(hours=3), timedelta(days=3)]
        )
    )
    def time_passes(self, by: timedelta) -> None:
        """For everybody."""
        if by >= timedelta(hours=1):
            self._mend_contract()
        self.world.clock.advance(by)
        self.world.lago.run_billing()

    @rule(skew=st.sampled_from([timedelta(), timedelta(minutes=-4), timedelta(minutes=40)]))
    def our_clock_jumps(self, skew: timedelta) -> None:
        """Ours alone."""
        self.skew = skew

    # -- what must be true -----------------------------------------------------------------------------

    @invariant()
    def nothing_twice_nothing_to_the_wrong_one_nothing_wrong_in_amount(self) -> None:
        """At every moment, also while a process lies dead."""
        assert_whole(self.world, contract_holds=not self.broken)
        counted: dict[int, int] = defaultdict(int)
        for entry in self.world.lago.ledger():
            number = int(entry["transaction_id"].split(":")[2].partition("-")[0])
            session = self.sessions[number]
            assert entry["external_subscription_id"] == f"sub-{session.customer}", (
                f"somebody else pays: {entry}"
            )
            assert session.delivered_wh is not None, f"it still runs: {entry}"
            if entry["state"] != "never":
                counted[number] += wh_of(entry)
        for number, energy_wh in counted.items():
            session = self.sessions[number]
            if not session.ever_changed:
                assert energy_wh in {0, session.delivered_wh}, f"session {number}: {energy_wh} of {session}"

    def teardown(self) -> None:
        """All is well again, and time passes: nothing is left to do, and everything adds up."""
        try:
            self._heal()
            for pause in UNTIL_REST:
                self.world.clock.advance(pause)
                self.world.sync()
                if not under_way(self.world):
                    break
            self._judge_at_rest()
            for customer in CUSTOMERS.values():
                if self.world.lago.books.active(f"sub-{customer}") is not None:
                    self.world.lago.close_period(f"sub-{customer}")
            self.world.sync()
            self._judge_at_rest()
        finally:
            self.skew = timedelta()

    def _heal(self) -> None:
        self._heal_lago()
        self._mend_contract()
        self.skew = timedelta()
        if control.read_status(self.world.config()).mode == "paused":
            self.world.resume()

    def _heal_lago(self) -> None:
        lago = self.world.lago
        lago.clear_faults()
        lago.lose_events(0)
        lago.delay_visibility(0)
        lago.delay_usage(0)
        lago.set_batch_max(100)
        lago.api.denied.clear()

    def _judge_at_rest(self) -> None:
        left = under_way(self.world)
        assert not left, f"still under way: {left}"
        self.nothing_twice_nothing_to_the_wrong_one_nothing_wrong_in_amount()
        assert_conserved(self.world)
