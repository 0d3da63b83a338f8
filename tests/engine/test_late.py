"""Events that were tried in vain before their billing period closed: held, billed once, or found in Lago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.alerts.conditions import conditions
from ocpp_billing.billing import control, review
from ocpp_billing.billing.adopt import adopt_events
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.billing.move import carry_out_move, preview_move
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.wire import UsageEvent as EventToSend
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.models import SyncLog
from ocpp_billing.sync.policy import policy_of

LATE = ("held", "late_period")
NEXT_MONTH = datetime(2026, 4, 1, 9, tzinfo=UTC)
every_store = pytest.mark.parametrize("store", ["postgres", "clickhouse"])


@pytest.fixture
def in_vain(world):
    """What was delivered on 31 March was sent, and Lago did not take it; it is 1 April, and Lago is back."""
    return tried_in_vain(world)


def tried_in_vain(world, **plan):
    world.clock.set(datetime(2026, 3, 31, 22, tzinfo=UTC))
    world.begins_at = datetime(2026, 1, 1, tzinfo=UTC)
    world.plan(**plan)
    world.payer("TAG-ALICE", "alice", billing_time="calendar")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=5_000)
    world.lago.add_fault(Fault("status", path="/events/batch", times=-1, status=503))
    world.sync()
    assert world.state_of(session) == ("queued", None)
    world.lago.clear_faults()
    world.clock.set(NEXT_MONTH)
    world.lago.run_billing()
    return world


def the_session():
    return ChargingSession.objects.get(superseded_at=None)


def sync_for(world, *, minutes=45, **settings):
    """Runs a quarter of an hour apart."""
    for _ in range(minutes // 15):
        world.sync(**settings)
        world.clock.advance(minutes=15)


def arrive(world, event):
    """The request of a leader that slept, or that lay in a proxy, comes to Lago at last."""
    with open_clients(world.config()) as (_, lago):
        lago.post_batch([EventToSend.from_payload(event.payload, event.field_name)])


def said(action):
    return [line.message for line in SyncLog.objects.filter(action=action)]


# -- given up, and billed once ------------------------------------------------------------------------


@every_store
def test_a_person_may_accept_before_it_is_certain_and_it_is_billed_once_it_is(in_vain):
    in_vain.sync()
    assert in_vain.state_of(1) == LATE
    review.accept(the_session().pk, note="bill it in April", by="test")
    in_vain.sync()
    assert in_vain.state_of(1) == LATE
    assert in_vain.lago_wh_by_session() == {}
    in_vain.clock.advance(minutes=15)
    in_vain.sync()
    assert in_vain.state_of(1) == ("confirmed", None)
    assert in_vain.lago_wh_by_session() == {1: 5_000}
    first, second = UsageEvent.objects.order_by("n")
    assert (first.state, second.state) == ("void", "confirmed")
    assert second.transaction_id == first.transaction_id[:-1] + "2"
    in_vain.assert_conserved()


def test_a_person_may_exclude_it_at_any_time(in_vain):
    in_vain.sync()
    review.exclude(the_session().pk, note="our fault", by="test")
    sync_for(in_vain)
    assert in_vain.state_of(1) == ("excluded", "by_operator")
    assert in_vain.lago_wh_by_session() == {}
    in_vain.assert_conserved()


def test_while_its_invoice_is_a_draft_it_stays_held(in_vain):
    (invoice,) = (invoice for invoice in in_vain.lago.books.invoices if invoice.created_at.month == 4)
    invoice.status = "draft"
    sync_for(in_vain, late_policy="current_period")
    assert in_vain.state_of(1) == LATE
    assert "not final yet" in UsageEvent.objects.get().answer["says"]
    invoice.status = "finalized"
    in_vain.clock.advance(hours=6)
    sync_for(in_vain, late_policy="current_period")
    assert in_vain.state_of(1) == ("confirmed", None)
    assert in_vain.lago_wh_by_session() == {1: 5_000}
    in_vain.assert_conserved()


@pytest.mark.parametrize(("after", "state"), [("hours", LATE), ("days", ("confirmed", None))])
def test_an_invoice_that_lago_hides_is_final_after_a_day(in_vain, after, state):
    """Lago hides it while it makes it, and one without anything to pay for ever."""
    for invoice in in_vain.lago.books.invoices:
        invoice.status = "closed"
    in_vain.sync(late_policy="current_period")
    in_vain.clock.advance(**{after: 2})
    sync_for(in_vain, late_policy="current_period")
    assert in_vain.state_of(1) == state
    in_vain.assert_conserved()


def test_a_subscription_that_ended_was_invoiced_at_once(in_vain):
    world = in_vain
    world.map("TAG-BOB", "bob")
    world.customer("bob", since=world.clock.now() - timedelta(days=3))
    session = world.session("TAG-BOB", "CP-2", energy_wh=700)
    world.lago.add_fault(Fault("status", path="/events/batch", times=-1, status=503))
    world.sync()
    world.lago.clear_faults()
    world.lago.terminate("sub-bob")
    world.clock.advance(hours=1)
    sync_for(world)
    assert world.state_of(session) == LATE
    assert UsageEvent.objects.get(session__steve_id=session).state == "void"
    world.assert_conserved()


def test_what_was_tried_is_sent_again_when_its_plan_charges_the_metric_again(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=1_000)
    world.lago.add_fault(Fault("status", path="/events/batch", times=-1, status=503))
    world.sync()
    world.lago.clear_faults()
    plan = world.lago.books.catalogue.plans["ev_payg"]
    charges, plan.charges = plan.charges, type(plan.charges)()
    world.clock.advance(hours=1)
    sync_for(world)
    assert world.state_of(session) == ("held", "metric_not_charged")
    plan.charges = charges
    world.clock.advance(hours=6)
    sync_for(world)
    assert world.state_of(session) == ("confirmed", None)
    (event,) = UsageEvent.objects.all()
    assert event.n == 1
    world.assert_conserved()


def test_a_move_that_was_tried_in_vain_stays_held_and_can_be_excluded(in_vain):
    world = in_vain
    world.customer("bob", billing_time="calendar")
    billed = world.session("TAG-ALICE", "CP-2", energy_wh=300)
    world.sync()
    config = world.config()
    with open_clients(config) as (_, lago):
        policy, directory = policy_of(config), LagoDirectory(lago, config.lago_metric_code)
        session = ChargingSession.objects.get(steve_id=billed)
        (move,) = preview_move(
            [session.pk], customer="bob", subscription=None, policy=policy, directory=directory
        )
        carry_out_move(move, policy=policy, directory=directory, note="wrong driver", by="test")
    world.lago.add_fault(Fault("status", path="/events/batch", times=-1, status=503))
    world.sync()
    world.lago.clear_faults()
    world.clock.set(datetime(2026, 5, 1, 9, tzinfo=UTC))
    world.lago.run_billing()
    sync_for(world, late_policy="current_period")
    moves = UsageEvent.objects.filter(kind="move").order_by("n")
    assert [(event.energy_wh, event.reason) for event in moves] == [
        (-300, "refund_by_credit_note"),
        (300, "late_period"),
    ]
    assert all(event.given_up_at for event in moves)
    review.exclude(session.pk, note="left where it was", by="test")
    sync_for(world)
    assert world.state_of(billed) == ("confirmed", None)
    assert world.lago_wh("sub-bob") == 0
    world.assert_conserved()


# -- where Lago could still bill it ----------------------------------------------------------------------


def test_on_a_charge_in_advance_it_stays_held_and_nobody_can_bill_it_twice(world):
    tried_in_vain(world, pay_in_advance_charge=True)
    sync_for(world, late_policy="current_period")
    assert world.state_of(1) == LATE
    with pytest.raises(review.ReviewError, match="charges in advance"):
        review.accept(the_session().pk, note="bill it", by="test")
    review.exclude(the_session().pk, note="invoice by hand", by="test")
    sync_for(world)
    assert world.state_of(1) == ("excluded", "by_operator")
    assert world.lago_wh_by_session() == {}
    world.assert_conserved()


def test_on_a_recurring_metric_it_stays_held(in_vain):
    in_vain.lago.books.catalogue.metrics["ev_charging_kwh"].recurring = True
    sync_for(in_vain, late_policy="current_period")
    assert in_vain.state_of(1) == LATE
    assert "recurring" in UsageEvent.objects.get().answer["says"]


def test_where_lago_cannot_be_asked_for_the_invoice_it_stays_held_and_the_rest_goes_on(in_vain):
    in_vain.lago.add_fault(Fault("status", path="/customers/alice/past_usage", times=-1, status=500))
    other = in_vain.session("TAG-ALICE", "CP-2", energy_wh=300)
    sync_for(in_vain, late_policy="current_period")
    assert in_vain.state_of(1) == LATE
    assert in_vain.state_of(other) == ("confirmed", None)
    assert in_vain.lago_wh_by_session() == {other: 300}


# -- it comes after all ---------------------------------------------------------------------------------


@every_store
def test_what_comes_after_the_invoice_was_cut_is_billed_by_another_event(in_vain):
    in_vain.sync(late_policy="current_period")
    (event,) = UsageEvent.objects.all()
    arrive(in_vain, event)
    in_vain.clock.advance(minutes=15)
    sync_for(in_vain, late_policy="current_period")
    assert in_vain.state_of(1) == ("confirmed", None)
    assert in_vain.lago_wh_by_session() == {1: 5_000}
    assert [entry["state"] for entry in in_vain.lago.ledger()] == ["never", "open"]
    assert len(said("confirm.given_up")) == 1
    in_vain.assert_conserved()


@every_store
def test_what_was_given_up_and_turns_up_is_told_and_counts_nowhere(in_vain):
    sync_for(in_vain, late_policy="current_period")
    first = UsageEvent.objects.get(n=1)
    assert first.state == "void"
    arrive(in_vain, first)
    in_vain.clock.advance(days=1)
    in_vain.sync(late_policy="current_period")
    in_vain.sync(late_policy="current_period")
    (told,) = said("confirm.turned_up")
    assert first.transaction_id in told
    (condition,) = conditions(in_vain.config(), in_vain.clock.now())
    assert (condition.code, first.transaction_id in condition.says) == ("events_turned_up", True)
    assert in_vain.lago_wh_by_session() == {1: 5_000}
    in_vain.assert_conserved()
    in_vain.clock.advance(days=40)
    assert conditions(in_vain.config(), in_vain.clock.now()) == []


def test_adopting_names_what_was_given_up_and_counts_it_nowhere(in_vain):
    sync_for(in_vain, late_policy="current_period")
    first = UsageEvent.objects.get(n=1)
    arrive(in_vain, first)
    with open_clients(in_vain.config()) as (_, lago):
        adoption = adopt_events(in_vain.config(), lago, by="test", say=str)
    assert (adoption.seen, adoption.adopted, adoption.turned_up) == (2, 0, [first.transaction_id])
    in_vain.sync()
    assert control.read_status(in_vain.config()).mode == "live"
    assert in_vain.state_of(1) == ("confirmed", None)
    in_vain.assert_conserved()
